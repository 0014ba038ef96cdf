#!/usr/bin/env bash
# make slurm-test: a real SLURM of one node, started for this test alone, and what recnb does on it (cases.py).
#
# Needs root on Debian or Ubuntu, in a container or a machine that may be changed: it installs four packages and, while
# it runs, links /etc/slurm/slurm.conf. All else lies in a temporary folder; at the end nothing runs and nothing is left
# but the packages. Outside a container it starts only with RECNB_SLURM_TEST=1.
set -euo pipefail

packages=(slurmctld slurmd slurm-client munge)
python=${1:?usage: slurm_test.sh PYTHON [CASE ...], PYTHON that of the environment with recnb}
shift
here=$(cd "$(dirname "$0")" && pwd)

refuse() {
    echo "slurm-test: $*" >&2
    exit 1
}

in_container() {
    [ -e /.dockerenv ] || [ -e /run/.containerenv ] || grep -qs container= <(tr '\0' '\n' </proc/1/environ)
}

[ "$(id -u)" = 0 ] || refuse "needs root, which SLURM's daemons are started as: run it in a container"
in_container || [ "${RECNB_SLURM_TEST:-}" = 1 ] ||
    refuse "this is no container. It would install ${packages[*]} and start SLURM; if this machine may be changed, set RECNB_SLURM_TEST=1"
[ ! -e /etc/slurm/slurm.conf ] || refuse "/etc/slurm/slurm.conf is there: this machine has a SLURM, which stays as it is"
"$python" -c "import recnb, snakemake_executor_plugin_slurm" ||
    refuse "$python lacks recnb or Snakemake's plugin for SLURM (pip install --no-deps -r docs/cluster/requirements.lock)"

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "install ok" || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || refuse "no apt-get here to install ${missing[*]} with"
    echo "slurm-test: installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# Short, since a socket's path may have 107 characters; the daemons want to reach what is in it.
folder=$(mktemp -d /tmp/recnb-slurm-XXXXXX)
daemons=()
cases=
made_etc=no

stop() {
    code=$?
    trap - EXIT INT TERM
    if [ -n "$cases" ]; then # it ends what it started
        kill "$cases" 2>/dev/null || true
        wait "$cases" 2>/dev/null || true
    fi
    scancel --full --user root 2>/dev/null || true
    for _ in $(seq 30); do
        [ -n "$(squeue --noheader 2>/dev/null)" ] || break
        sleep 1
    done
    # Of a job that was ended, this SLURM may lose sight of what its shell had started.
    for environment in /proc/[0-9]*/environ; do
        if grep -qszx "RECNB_RUNS=$folder/runs" "$environment"; then
            pid=${environment#/proc/}
            kill -KILL "${pid%/environ}" 2>/dev/null || true
        fi
    done
    for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do
        kill "${daemons[i]}" 2>/dev/null || true
        wait "${daemons[i]}" 2>/dev/null || true
    done
    rm -f /etc/slurm/slurm.conf /etc/slurm/gres.conf
    [ "$made_etc" = no ] || rmdir /etc/slurm 2>/dev/null || true
    if [ "$code" != 0 ] && [ -n "${RECNB_SLURM_KEEP:-}" ]; then
        echo "slurm-test: kept for you to look at: $folder" >&2
    else
        rm -rf "$folder"
    fi
    exit "$code"
}
trap stop EXIT
trap 'exit 130' INT TERM

mkdir -p "$folder"/{ctl,spool,run,log,dev,home,tmp}
for gpu in 0 1 2 3; do # four "GPUs": character devices that are /dev/null
    mknod "$folder/dev/gpu$gpu" c 1 3 2>/dev/null || ln -s /dev/null "$folder/dev/gpu$gpu"
done

# munge, with key, socket and log of its own: one that runs already is left alone.
head -c 1024 /dev/urandom >"$folder/munge.key"
chmod 600 "$folder/munge.key"
/usr/sbin/munged --foreground --force --key-file "$folder/munge.key" --socket "$folder/munge.socket" \
    --pid-file "$folder/run/munged.pid" --seed-file "$folder/munge.seed" --log-file "$folder/log/munged.log" \
    2>"$folder/log/munged.err" &
daemons+=($!)

host=$(hostname -s)
cat >"$folder/slurm.conf" <<CONF
ClusterName=recnb
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/ctl
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
# The node claims more than the machine has: an allocation must differ from the node, and the kit's profile for A100 nodes
# must be one that a cluster would take.
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=bf_interval=2,sched_interval=2
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
KillWait=5
JobRequeue=1
MinJobAge=7200
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=64 RealMemory=512000 Gres=gpu:a100:4 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=1-0 PriorityTier=1 PreemptMode=REQUEUE
PartitionName=cpu Nodes=$host MaxTime=INFINITE PriorityTier=1
PartitionName=gpu Nodes=$host MaxTime=INFINITE PriorityTier=1
PartitionName=urgent Nodes=$host MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
CONF
printf 'AutoDetect=off\nName=gpu Type=a100 File=%s/dev/gpu[0-3]\n' "$folder" >"$folder/gres.conf"
# A link, since steps of a job drop SLURM_CONF from their environment.
[ -d /etc/slurm ] || made_etc=yes
mkdir -p /etc/slurm
ln -s "$folder/slurm.conf" "$folder/gres.conf" /etc/slurm/
for _ in $(seq 20); do
    [ ! -S "$folder/munge.socket" ] || break
    sleep 0.5
done
slurmctld -D -f "$folder/slurm.conf" >"$folder/log/slurmctld.out" 2>&1 &
daemons+=($!)
slurmd -D -f "$folder/slurm.conf" >"$folder/log/slurmd.out" 2>&1 &
daemons+=($!)
for _ in $(seq 60); do
    [ "$(sinfo --noheader --partition main --format %T 2>/dev/null)" != idle ] || break
    sleep 1
done
[ "$(sinfo --noheader --partition main --format %T)" = idle ] || {
    tail -n 5 "$folder"/log/*.log "$folder"/log/*.out >&2
    refuse "SLURM did not come up (its logs above)"
}
echo "slurm-test: $(slurmctld -V) runs in $folder"

# What programs keep for later goes into the folder, too.
export HOME=$folder/home TMPDIR=$folder/tmp RECNB_RUNS=$folder/runs
unset XDG_CACHE_HOME RECNB_CACHE SNAKEMAKE_PROFILE
"$python" "$here/cases.py" "$folder" "$@" & # in the background, so that a signal is heeded at once
cases=$!
wait "$cases"
