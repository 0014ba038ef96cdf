"""A low-rank update that stays beside the weights it belongs to, for weights of 16 bits.

Adding an update to bfloat16 weights rounds each sum to eight bits: what RL changes in a hundred
steps is smaller than that almost everywhere, and gone. Beside the weights it keeps its 32 bits.
"""

import torch
from peft.tuners.lora import LoraLayer
from torch.nn import functional as F


class Beside(torch.nn.Linear):
    """A frozen linear layer with a frozen update: W x + scale B A x, the update in float32 (under
    autocast its products are bfloat16, as the layer's own).

    It is a linear layer for all who look at it, so that further adapters can be put on it.

    Args:
        layer: the linear layer, which may have an update beside it already.
        down, up: A float [r, inputs] and B float [outputs, r].
    """

    def __init__(self, layer, down, up, scale):
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.layer, self.scale = layer, scale
        self.register_buffer("down", down.float(), persistent=False)
        self.register_buffer("up", up.float(), persistent=False)

    @property
    def weight(self):
        """W, without the update."""
        return self.layer.weight

    @property
    def bias(self):
        """Of the layer, or None."""
        return self.layer.bias

    def forward(self, x):
        """As PEFT computes it in training: the sum in float32, then rounded once."""
        plain = self.layer(x)
        update = F.linear(F.linear(x.float(), self.down), self.up) * self.scale
        return (plain + update).to(plain.dtype)


def kept_beside(peft):
    """The model inside a PEFT model, LoRA beside its weights; all else the adapter holds is merged.

    Args:
        peft: a PEFT model with one adapter.
    """
    updates = {}
    for name, layer in peft.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            for adapter in layer.active_adapters:
                down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
                updates[name] = down.data, up.data.clone(), layer.scaling[adapter]
                up.data.zero_()  # nothing is left to merge
    model = peft.merge_and_unload()
    for name, update in updates.items():
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, child, Beside(getattr(owner, child), *update))
    return model
