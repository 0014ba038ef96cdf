"""Matrix products of a model that only answers, with weights laid out once for the processor.

PyTorch's float32 ``linear`` keeps weights row by row and rearranges parts of them in every call.
oneDNN, which comes with PyTorch, can take them rearranged beforehand, and the products are faster:
``make bench`` compares whole lists. The copies need the memory of the weights once more, so they
live for one call only, which also keeps them true to weights that change.
"""

from contextlib import contextmanager
from functools import partial, wraps

import torch
from torch.nn import Linear


@contextmanager
def prepacked(model):
    """Within it, the linear layers of a float32 model on a CPU use such copies.

    Nothing changes for other layers, for other devices and types, and where gradients or autocast
    are on; a model that a trainer prepared switches autocast on inside its own forward.
    """
    layers = [layer for layer in model.modules() if _suits(layer)]
    if torch.is_grad_enabled() or not torch.backends.mkldnn.is_available():
        layers = []
    for layer in layers:
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)
        layer.forward = partial(_forward, layer, weight)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _suits(layer):
    if type(layer) is not Linear:
        return False
    return layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32


def _forward(layer, weight, x):
    if torch.is_autocast_enabled("cpu"):
        return Linear.forward(layer, x)
    return torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, "none", [], "")


def answering(work):
    """Decorate ``work(model, ...)``, which computes no gradients and changes no weight."""

    @wraps(work)
    def inside(model, *arguments, **named):
        with torch.no_grad(), prepacked(model):
            return work(model, *arguments, **named)

    return inside
