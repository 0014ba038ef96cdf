"""A cache whose rows grow by different numbers of tokens, and passes over the new tokens alone.

Each row's states lie without a gap, so a row that is fed fifteen forced tokens and a row that is
fed one do not pad each other: projections, norms and activations work on the real tokens of all
rows, end to end; only attention sees the rows side by side. Forgetting a wrong guess is setting a
length back.
"""

import torch
from torch.nn import functional as F
from transformers import AttentionInterface

from recnb import RecnbError
from recnb.engine.packed import ending_at, only_plain, side_places, using_attention


class RaggedCache:
    """Keys and values of B rows.

    Attributes:
        length: int [B], tokens of each row so far.
        keys, values: for each layer [B, H, room, d].
        part: the slice of the rows that the pass under way is about; R of them.
        row, position: int [T], each token's row among the R of this pass, and its place there.
        end: the longest of these rows with those tokens.
        sides: ``side_by_side`` of all of them.
    """

    block = 64

    def __init__(self, layers, device):
        self.keys, self.values = [None] * layers, [None] * layers
        self.length, self.room, self.device = None, 0, device

    def reserve(self, rows, room):
        """Passes to come will feed so many rows of up to this many tokens."""
        if self.length is None:
            self.length = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.room = room

    def select(self, rows):
        """Keep these rows, in this order; a row may come several times."""
        for states in (self.keys, self.values):
            for layer, found in enumerate(states):
                states[layer] = found[rows]
        self.length = self.length[rows]

    def open(self, counts, part):
        """Note where the next tokens go: ``counts`` int [R], new ones of each row of the part."""
        self.reserve(len(counts), self.room)
        before = self.length[part]
        self.part, self.end = part, int((before + counts).max())
        self.row = torch.repeat_interleave(torch.arange(len(counts), device=self.device), counts)
        first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        self.position = before[self.row] + torch.arange(len(self.row), device=self.device) - first
        self.sides = self.side_by_side(slice(None))

    def side_by_side(self, asked):
        """How attention sees those of the new tokens that ask.

        Args:
            asked: index of the N tokens among the T.

        Returns:
            ``(slot, width, visible)``: int [N], where each stands among R x width tokens side by
                side; bool [R, 1, width, end], which places each of these may look at.
        """
        slot, width = side_places(self.row[asked])
        rows = len(self.length[self.part])
        visible = torch.ones(rows * width, self.end, dtype=torch.bool, device=self.device)
        places = torch.arange(self.end, device=self.device)
        visible[slot] = places <= self.position[asked][:, None]
        return slot, width, visible.view(rows, 1, width, self.end)

    def write(self, layer, key, value):
        """Store new states [H, T, d]; return all so far of these rows [R, H, end, d], as views."""
        found, device = [], key.device.type
        if torch.is_autocast_enabled(device):  # the product that they go into would cast them
            key, value = (x.to(torch.get_autocast_dtype(device)) for x in (key, value))
        for states, new in ((self.keys, key), (self.values, value)):
            if states[layer] is None or states[layer].shape[2] < self.end:
                states[layer] = self._grown(states[layer], new)
            here = states[layer][self.part]
            here[self.row, :, self.position] = new.transpose(0, 1)
            found.append(here[:, :, : self.end])
        return found

    def _grown(self, old, new):
        room = max(self.room, self.end) + self.block
        grown = new.new_zeros(len(self.length), new.shape[0], room, new.shape[2])
        if old is not None:
            grown[:, :, : old.shape[2]] = old
        return grown


def token_bytes(model):
    """Bytes that a cache of this model takes for one token of one row."""
    config, number = model.config, model.dtype.itemsize
    if torch.is_autocast_enabled(model.device.type):
        number = torch.get_autocast_dtype(model.device.type).itemsize
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * width * number


def feed(model, cache, rows, keep, part=slice(None)):
    """One pass over new tokens.

    Args:
        model: a causal language model of transformers.
        cache: ``RaggedCache``, changed in place.
        rows: a list of new token ids for each row; it may be empty.
        keep: how many of the last new places of each row shall get logits.
        part: which rows of the cache these are.

    Returns:
        ``(logits, starts)``: [N, V] of the kept places, row after row, and where each row's begin.

    Raises:
        RecnbError: the model does not take part in transformers' attention interface.
    """
    counts = torch.tensor([len(row) for row in rows], device=cache.device)
    cache.open(counts, part)
    tokens, kept, starts = [], [], []
    for row, m in zip(rows, keep, strict=True):
        tokens += row
        starts.append(len(kept))
        kept += range(len(tokens) - m, len(tokens))
    ids = torch.tensor([tokens], device=cache.device)  # [1, T]
    kept = torch.tensor(kept, device=cache.device)  # [N]
    with using_attention(model, "recnb_cached"), ending_at(model, kept):
        out = model(input_ids=ids, position_ids=cache.position[None], use_cache=False, cache=cache)
    if any(states is None for states in cache.keys):
        raise RecnbError(
            "this model computes attention in its own way and cannot be decoded here: take a "
            "Llama-like one"
        )
    cache.length[part] += counts
    return out.logits[0], starts


def attend(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling,
    dropout=0.0,
    cache=None,
    asked=None,
    sliding_window=None,
    softcap=None,
    s_aux=None,
    **unused,
):
    """Causal attention over a ``RaggedCache``: [1, heads, T, d] -> [1, T, heads, d].

    With ``asked`` (int [N]) the queries are those of these new tokens alone, and so is the result.

    Raises:
        RecnbError: the model's attention is more than plain causal attention.
    """
    only_plain(softcap, s_aux, sliding_window, cache.end)
    keys, values = cache.write(module.layer_idx, key[0], value[0])
    rows, heads, groups = len(keys), key.shape[1], query.shape[1] // key.shape[1]
    slot, width, visible = cache.sides if asked is None else cache.side_by_side(asked)
    new = query[0].transpose(0, 1)  # [T, heads, d]
    full = len(new) == rows * width
    padded = new if full else new.new_zeros(rows * width, *new.shape[1:]).index_copy(0, slot, new)
    padded = padded.view(rows, width, heads, groups, -1)
    padded = padded.permute(0, 2, 3, 1, 4)  # [rows, heads, groups, width, d]
    mixed = mix(padded, keys, values, visible, scaling, fused=query.is_cuda)
    out = mixed.permute(0, 3, 1, 2, 4).reshape(rows * width, heads * groups, -1)
    return (out if full else out[slot])[None], None


def mix(query, keys, values, visible, scaling, fused):
    """Attention of new tokens over a cache.

    Args:
        query: [B, heads, groups, w, d]; the ``groups`` of a head share its keys and values.
        keys, values: [B, heads, n, d].
        visible: bool [B, 1, w, n].
        fused: by PyTorch's fused kernel, or step by step, which is no slower on a CPU.

    Returns:
        [B, heads, groups, w, d].
    """
    rows, heads, groups, width, _ = query.shape
    if fused:
        query = query.flatten(1, 2)
        mixed = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=visible, scale=scaling, enable_gqa=groups > 1
        )
        return mixed.unflatten(1, (heads, groups))
    scores = (query * scaling).flatten(2, 3) @ keys.transpose(2, 3)
    scores = scores.unflatten(2, (groups, width)).masked_fill_(~visible[:, :, None], float("-inf"))
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    mixed = weights.flatten(2, 3) @ values
    return mixed.unflatten(2, (groups, width))


AttentionInterface.register("recnb_cached", attend)
