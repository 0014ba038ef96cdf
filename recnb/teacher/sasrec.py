"""SASRec (Kang and McAuley 2018): a causal Transformer that predicts the next item of a history."""

import torch
from torch import nn
from torch.nn import functional as F


def causal_mask(real):
    """real bool [B, L], False on padding -> bool [B, L, L]: place i may look at place j."""
    length = real.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
    # A padded position may look at itself: a row of the mask with no True would give NaN.
    eye = torch.eye(length, dtype=torch.bool, device=real.device)
    return (causal & real[:, None, :]) | eye


class Block(nn.Module):
    """Pre-norm attention and feed-forward, both with a residual."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x, mask, last=0):
        """x [B, L, D] -> [B, L, D], or the last ``last`` positions of it.

        The mask is bool [B, 1, L, L], True = may look.
        """
        b, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q[:, :, -last:], k, v, attn_mask=mask[:, :, -last:])
        x = x[:, -last:] + F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), drop)
        return x + F.dropout(self.feed(self.norm2(x)), drop)


class SASRec(nn.Module):
    """Scores every item as the next one.

    Args:
        items: N, the number of items (ids 1..N, 0 is padding).
        width, layers, heads, dropout, max_length: see the ``teacher`` section of a profile.
    """

    def __init__(self, items, width, layers, heads, dropout, max_length):
        super().__init__()
        self.max_length, self.dropout = max_length, dropout
        self.item = nn.Embedding(items + 1, width, padding_idx=0)
        self.position = nn.Embedding(max_length, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.item.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        with torch.no_grad():
            self.item.weight[0].zero_()

    def hidden(self, sequences, last=0):
        """sequences int [B, L], padded with 0 on the left, L <= max_length -> states [B, L, D].

        With ``last`` only the states of the last positions are worked out [B, last, D]: all a
        prediction needs. Positions count from the right: the latest item always has the last one,
        whatever the padding.
        """
        length = sequences.shape[1]
        positions = torch.arange(self.max_length - length, self.max_length, device=sequences.device)
        drop = self.dropout if self.training else 0.0
        x = F.dropout(self.item(sequences) + self.position(positions), drop)
        mask = causal_mask(sequences.ne(0))[:, None]
        for block in self.blocks[:-1]:
            x = block(x, mask)
        return self.norm(self.blocks[-1](x, mask, last))

    def logits(self, states):
        """states [..., D] -> scores of all items [..., N+1]; the padding item scores -inf."""
        scores = states @ self.item.weight.T
        padding = torch.zeros(1, dtype=torch.long, device=scores.device)
        return scores.index_fill_(-1, padding, float("-inf"))
