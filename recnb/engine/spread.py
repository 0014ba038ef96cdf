"""A frozen model spread over the processes that train beside it: each keeps a part (FSDP2)."""

from torch.distributed.fsdp import fully_shard


def spread(model):
    """Leave each process a part of every block's frozen weights.

    A block's parts are brought together before it computes and given up behind it, in both
    directions. What is trained (LoRA, rows of titles) and what lies outside the blocks stays whole
    in every process: so do optimizer, checkpoints and adapters. From now on all processes must make
    the same number of passes.

    Args:
        model: a PEFT model, the same in each process; changed in place.
    """
    trained = {weight for weight in model.parameters() if weight.requires_grad}
    for block in model.get_base_model().get_decoder().layers:
        fully_shard(block, ignored_params=trained)
    fully_shard(model, ignored_params=set(model.parameters()))  # leads the blocks, holds nothing
