"""What a run is planned for: this machine, or GPUs of a stated size."""

from dataclasses import dataclass

from recnb import machine

GIB = 2**30
A100_TFLOPS = 29.0
"""What one GPU of the paper made of its SL stage: 70 minutes an epoch on four (A.2), over the
tokens and operations computed here."""
A100_TOKENS = 2240.0
"""Answer tokens a second of one GPU: the paper's 20 lists of 112 tokens (A.2), by vLLM. This kit's
own decoding on a GPU has not been timed."""


@dataclass(frozen=True)
class Hardware:
    """What a run is planned for.

    Attributes:
        memory: GiB of one process.
        processes: that work together in stages 04 to 06, one GPU each (``compute.processes``).
        tflops: of one process in training, 10^12 operations a second.
        tokens: answer tokens a second of one process; None = from ``tflops`` of float32.
        source: "measured" or "stated", said of every hour.
        cuda: GPUs.
        autocast: matrix products in bfloat16.
    """

    memory: float
    processes: int
    tflops: float
    tokens: float | None
    source: str
    cuda: bool
    autocast: bool


def this_machine(profile):
    """The GPU of this machine if there is one, with the paper's speed; else its cores, measured."""
    import torch

    if torch.cuda.is_available():
        return stated(profile, torch.cuda.get_device_properties(0).total_memory / GIB)
    speed, fast = machine.recorded(profile.model), machine.autocast(profile.model)
    if "float32" not in speed:
        width = profile.model.width if profile.model.name == "mini" else machine.HUB_WIDTH
        speed = machine.number_format(width)
    tflops = speed["bfloat16" if fast else "float32"] * machine.cores() / 1000
    memory = machine.memory() / GIB
    processes = profile.compute.processes  # they share the memory and the cores
    tflops, memory = tflops / processes, memory / processes
    return Hardware(memory, processes, tflops, None, "measured", False, fast)


def stated(profile, memory, tflops=0.0, tokens=0.0):
    """GPUs of so much memory (GiB), one a process, at a stated speed or the paper's."""
    speed = tflops or A100_TFLOPS, tokens or A100_TOKENS
    fast = profile.model.autocast is not False
    return Hardware(memory, profile.compute.processes, *speed, "stated", True, fast)
