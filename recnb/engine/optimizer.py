"""Muon for the layers' matrices, AdamW for the rest: for models whose every weight is trained.

AdamW scales each number of an update by itself. Muon (Jordan et al. 2024) takes a matrix as a whole
and makes its update orthogonal, so that rare directions move as far as common ones.
benchmarks/LOG.md measures what a mini model gains from it. Embeddings, which are looked up rather
than multiplied, and norms stay with AdamW.
"""

import torch


class MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon and torch's AdamW as one optimizer: one step, one schedule, one state to save.

    Args:
        model: a causal language model of transformers; every weight of it is trained.
        muon: Muon's peak step size, on AdamW's scale: its updates are as large as AdamW's with it.
        adamw: AdamW's.
    """

    def __init__(self, model, muon, adamw):
        tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
        matrices, others = [], []
        for weight in model.parameters():
            if weight.ndim == 2 and not any(weight is table for table in tables):
                matrices.append(weight)
            else:
                others.append(weight)
        self.parts = (
            torch.optim.Muon(matrices, lr=muon, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=adamw, weight_decay=0.0, fused=True),
        )
        super().__init__([part.param_groups[0] for part in self.parts], {})

    @torch.no_grad()
    def step(self, closure=None):
        """A step of both, with the groups and the state that schedules and checkpoints see."""
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state
            part.step()
