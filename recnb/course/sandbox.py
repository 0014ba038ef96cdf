"""Limits for a process that runs somebody's code: time, memory, files, network, other processes.

Each is set where the system has it, and ``enter`` says which are in force. They make a teacher's
evening safe from mistakes and from students who try things; they are no wall against an attacker
with a flaw of the kernel or of Python's libraries in hand (docs/course.md).
"""

import ctypes
import math
import os
import platform
import resource
import struct
import sys
import sysconfig
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""Landlock's system calls, the same on all processors."""
READ_FILE, READ_DIR = 1 << 2, 1 << 3
FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
"""All rights on files that each version of Landlock knows; from 5 on also that of devices."""
TCP, SCOPES = 0b11, 0b11
SET_NO_NEW_PRIVS, SET_SECCOMP, FILTER = 38, 22, 2
ALLOW, DENY, NO_SUCH_CALL, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
NEW_THREAD = 0x00010000
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""A processor's name for seccomp, and the column of its numbers below."""
DENIED = {
    "socket": (41, 198),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "io_uring_setup": (425, 425),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "setrlimit": (160, 164),
    "setpriority": (141, 140),
    # Landlock does not hold these back: rights and times of files; lengths before Linux 6.2
    "truncate": (76, 45),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
}
CLONE, CLONE3, PRLIMIT = (56, 220), (435, 435), (302, 261)

_libc = ctypes.CDLL(None, use_errno=True)


def enter(seconds, memory):
    """Set every limit that this system has on the calling process, for good.

    Args:
        seconds: processor time.
        memory: bytes that the process may ask for beyond what it has.

    Returns:
        List of what is in force: of "time", "memory", "files", "network", "processes".
    """
    held = ["time"]
    _limit(resource.RLIMIT_CPU, math.ceil(seconds), math.ceil(seconds) + 1)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + memory)
        held.append("memory")
        _libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if _landlock():
            held.append("files")
        if _seccomp():
            held += ["network", "processes"]
    return held


def _limit(what, soft, hard=None):
    most = resource.getrlimit(what)[1]
    hard = soft if hard is None else hard
    hard = hard if most == resource.RLIM_INFINITY else min(hard, most)
    resource.setrlimit(what, (min(soft, hard), hard))


def readable():
    """What a student's code may read: Python, its packages without the kit, system libraries."""
    paths = sysconfig.get_paths()
    folders = {Path(paths[name]) for name in ("stdlib", "platstdlib")}
    packages = {Path(paths[name]) for name in ("purelib", "platlib")}
    for folder in folders | packages:
        if folder.is_dir():
            yield from (one for one in folder.iterdir() if not _is_kit(one))
    for folder in map(Path, ("/usr/lib", "/usr/lib64", "/lib", "/lib64")):
        if folder.is_dir():
            yield from (one for one in folder.iterdir() if not one.name.startswith("python"))
    yield from map(Path, ("/etc/ld.so.cache", "/dev/null", "/dev/urandom"))
    yield Path("/sys/devices/system/cpu")


def _is_kit(path):
    return "recnb" in path.name or path.name in ("site-packages", "dist-packages")


def _landlock():
    """Reading of ``readable`` alone, no writing, no TCP, no signals to others; False = not here."""
    version = _libc.syscall(CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    rights = FILE_RIGHTS.get(version, (1 << 16) - 1)
    parts = [rights, TCP, SCOPES][: 1 if version < 4 else 2 if version < 6 else 3]
    attributes = struct.pack(f"{len(parts)}Q", *parts)
    ruleset = _libc.syscall(CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return False
    for path in readable():
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # not on this system
        right = READ_FILE | READ_DIR if path.is_dir() else READ_FILE
        rule = struct.pack("=Qi", right, opened)
        _libc.syscall(ADD_RULE, ruleset, 1, rule, 0)
        os.close(opened)
    done = _libc.syscall(RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return done


def _seccomp():
    """No sockets, no other processes, no other program; False where it cannot be had."""
    if platform.machine() not in MACHINES:
        return False
    name, column = MACHINES[platform.machine()]
    load, equal, at_least, has_bits, end = 0x20, 0x15, 0x35, 0x45, 0x06
    number, arguments = 0, 16
    lines = [(load, 0, 0, 4), (equal, 1, 0, name), (end, 0, 0, KILL), (load, 0, 0, number)]
    if column == 0:  # the second set of numbers that x86_64 has
        lines += [(at_least, 0, 1, 0x40000000), (end, 0, 0, DENY)]
    for numbers in DENIED.values():
        if numbers[column] is not None:
            lines += [(equal, 0, 1, numbers[column]), (end, 0, 0, DENY)]
    # clone3 hides its flags in memory; told that it is not there, the C library takes clone
    lines += [(equal, 0, 1, CLONE3[column]), (end, 0, 0, NO_SUCH_CALL)]
    lines += [(equal, 0, 3, CLONE[column]), (load, 0, 0, arguments)]
    lines += [(has_bits, 1, 0, NEW_THREAD), (end, 0, 0, DENY), (load, 0, 0, number)]
    # limits may be read, not set: both halves of the pointer to new ones must be 0
    lines += [(equal, 0, 5, PRLIMIT[column]), (load, 0, 0, arguments + 16)]
    lines += [(equal, 0, 2, 0), (load, 0, 0, arguments + 20)]
    lines += [(equal, 1, 0, 0), (end, 0, 0, DENY), (end, 0, 0, ALLOW)]
    code = b"".join(struct.pack("HBBI", *line) for line in lines)
    kept = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(kept))
    return _libc.prctl(SET_SECCOMP, FILTER, program, 0, 0) == 0
