"""Training passes without padding: samples lie end to end, attention alone sees them side by side.

Instructions differ in length by a factor of four, so almost half of a padded batch is padding, and
every projection, norm and activation works on it for nothing. Here they work on the T real tokens
alone. Attention needs samples side by side: it pads queries, keys and values on the right, where a
causal mask hides them, and drops what it added.
"""

from contextlib import contextmanager
from functools import partial

import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, rotate_half
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from recnb import RecnbError


def side_by_side(rows, pad, device):
    """Token rows padded on the right: ids int [S, L], and real bool [S, L], False on padding."""
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=device)
    real = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]
    return ids, real


def neighbours(costs, most):
    """Rows cut into groups of neighbours that cost at most so much; a dearer row stands alone.

    Args:
        costs: a number for each row.
        most: of a group; 0 = all rows are one group.

    Returns:
        Lists of row numbers, in order.
    """
    groups, room = [], 0
    for row, cost in enumerate(costs):
        if not groups or (most and cost > room):
            groups.append([])
            room = most
        groups[-1].append(row)
        room -= cost
    return groups


def side_places(group):
    """Where items stand if those of a group lie side by side, in rows as long as the largest group.

    Args:
        group: int [N], the group of each item.

    Returns:
        ``(int [N], length of a row)``.
    """
    order = group.argsort(stable=True)
    sizes = group.bincount()
    first = sizes.cumsum(0) - sizes  # where each group begins in that order
    offset = torch.empty_like(order)
    offset[order] = torch.arange(len(group), device=group.device) - first[group[order]]
    longest = int(sizes.max())
    return group * longest + offset, longest


def pack(ids, real):
    """Arguments of a forward pass over a batch laid end to end; use inside ``packed_attention``.

    Args:
        ids: int [S, L], padded on any side.
        real: bool [S, L], False on padding.

    Returns:
        Dict: input_ids and position_ids [1, T], in the order of ``real.nonzero()``; place int [T],
            where each token stands in the S x longest samples that attention sees; shape, those
            two numbers; hidden, None.
    """
    sample, column = real.nonzero(as_tuple=True)
    position = (real.cumsum(1) - 1)[sample, column]
    longest = int(position.max()) + 1
    return {
        "input_ids": ids[sample, column][None],
        "position_ids": position[None],
        "place": sample * longest + position,
        "shape": (len(ids), longest),
        "hidden": None,
    }


def pack_answers(ids, real, answer, prompt):
    """Like ``pack``, but each prompt comes once, with all answers that share it behind it.

    Args:
        ids: int [S, P + T], prompts padded on the left, answers on the right.
        real: bool [S, P + T], False on padding.
        answer: bool [S, T], True on an answer's tokens.
        prompt: int [S], a number of each sample's prompt; equal numbers mean equal prompts.

    Returns:
        ``(arguments, before)``: what ``pack`` returns, with hidden bool [prompts, 1, longest,
            longest], True where a token (third axis) must not look at another; and int [R], for
            each answer token the place of the token before it.
    """
    # A tree is a prompt with its answers as branches; its first sample stands for the prompt.
    start = real.shape[1] - answer.shape[1]
    each = torch.arange(len(ids), device=ids.device)
    _, tree = prompt.unique(return_inverse=True)  # int [S]
    first_of_tree = torch.full_like(tree, len(ids)).scatter_reduce(0, tree, each, "amin")
    first = first_of_tree[tree]  # int [S]
    fed = real.clone()
    fed[:, :start] &= (first == each)[:, None]
    fed[:, start:-1] &= answer[:, 1:]  # nothing is predicted from an answer's last token
    fed[:, -1] = False
    sample, column = fed.nonzero(as_tuple=True)
    order = tree[sample].argsort(stable=True)
    sample, column = sample[order], column[order]  # int [T] each
    place, longest = side_places(tree[sample])

    # A token sees what came before it in the prompt, branch 0, and in its own branch.
    trees = int(tree.max()) + 1
    branch = torch.zeros(trees * longest, dtype=torch.long, device=ids.device)
    branch[place] = torch.where(column < start, 0, sample + 1)
    branch = branch.view(trees, longest)
    hidden = (branch[:, None, :] != 0) & (branch[:, None, :] != branch[:, :, None])
    hidden |= torch.ones(longest, longest, dtype=torch.bool, device=ids.device).triu(1)

    found = torch.zeros_like(ids)  # [S, P + T], which of the tokens fed each one is
    found[sample, column] = torch.arange(len(sample), device=ids.device)
    before = torch.cat([found[first, start - 1][:, None], found[:, start:-1]], 1)[answer]
    arguments = {
        "input_ids": ids[sample, column][None],
        "position_ids": (real.cumsum(1) - 1)[sample, column][None],
        "place": place,
        "shape": (trees, longest),
        "hidden": hidden[:, None],
    }
    return arguments, before


@contextmanager
def using_attention(model, name):
    """Within it, the model's attention is the one registered under this name."""
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before


def packed_attention(model):
    """Within it, the model's attention expects the arguments of ``pack``."""
    return using_attention(model, "recnb_packed")


def next_logits(model, ids, real, keep):
    """``next_logits_held`` for models that keep all activations for the backward pass."""
    with next_logits_held(model, ids, real, keep) as logits:
        return logits


@contextmanager
def next_logits_held(model, ids, real, keep):
    """Logits of the token after each kept place, nothing else going through the LM head.

    Checkpointed layers run again in the backward pass, which must happen within it: outside, the
    model has its own attention and its own last layer again.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        ids: int [S, L].
        real: bool [S, L], False on padding.
        keep: bool [S, L], a part of ``real``.

    Yields:
        float32 [R, V], in the order of ``keep.nonzero()``.
    """
    with packed_attention(model), ending_at(model, keep[real].nonzero()[:, 0]):
        yield model(**pack(ids, real), use_cache=False).logits[0].float()


@contextmanager
def ending_at(model, places):
    """Within it, only these places [R] of a pass leave the last layer, for final norm and LM head.

    The last layer still needs keys and values of every place; its queries and its feed-forward
    part, most of the layer, are computed for the R alone; with checkpointing they are computed
    again in the backward pass, as all layers are. Layers that are not built like Llama's run as
    they are, and give up the other places at their end.

    Raises:
        RecnbError: the model is not a stack of such layers at all.
    """
    if not hasattr(model.get_decoder(), "layers"):
        raise RecnbError(
            "this model is built in its own way and cannot be trained or decoded here: take a "
            "Llama-like one"
        )
    last = model.get_decoder().layers[-1]
    # A spread layer is of a class of its own, derived from FSDPModule and what it was before.
    kind = type(last).__bases__[1] if isinstance(last, FSDPModule) else type(last)

    def forward(hidden_states, **arguments):
        if kind not in (LlamaDecoderLayer, MistralDecoderLayer, Qwen2DecoderLayer):
            return type(last).forward(last, hidden_states, **arguments)[:, places]
        if last.gradient_checkpointing and last.training:
            again = partial(ending, **arguments)
            return checkpoint(again, hidden_states, use_reentrant=False)
        return ending(hidden_states, **arguments)

    def ending(hidden_states, **arguments):
        mixed = asking(last.self_attn, last.input_layernorm(hidden_states), places, **arguments)
        kept = hidden_states[:, places] + mixed
        return kept + last.mlp(last.post_attention_layernorm(kept))

    last.forward = forward
    try:
        yield
    finally:
        del last.forward


def asking(attention, states, places, position_embeddings, **arguments):
    """Llama-like attention in which some places alone ask: [1, T, w], places [R] -> [1, R, w].

    The attention functions of this package take ``asked``, the places that queries come from.
    """

    def heads(x):
        return x.view(1, x.shape[1], -1, attention.head_dim).transpose(1, 2)

    def turned(x, cos, sin):
        return x * cos[:, None] + rotate_half(x) * sin[:, None]

    cos, sin = position_embeddings
    query = turned(heads(attention.q_proj(states[:, places])), cos[:, places], sin[:, places])
    key = turned(heads(attention.k_proj(states)), cos, sin)
    value = heads(attention.v_proj(states))
    window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
    arguments |= {"scaling": attention.scaling, "sliding_window": window, "asked": places}
    mixed, _ = attend(attention, query, key, value, **arguments)
    return attention.o_proj(mixed.reshape(1, len(places), -1))


def only_plain(softcap, sinks, window, length):
    """Raise if a model's attention is more than plain causal attention over so many tokens."""
    if softcap is not None or sinks is not None or (window is not None and window < length):
        raise RecnbError(
            "this model's attention (soft cap, sinks or a sliding window) cannot be trained or "
            "decoded here: take a Llama-like one"
        )


def attend(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling,
    dropout=0.0,
    place=None,
    shape=None,
    hidden=None,
    asked=None,
    sliding_window=None,
    softcap=None,
    s_aux=None,
    **unused,
):
    """Causal attention for transformers' interface: [1, heads, T, d] -> [1, T, heads, d].

    With ``asked`` (int [R]) the queries are those of these places alone, and so is the result.

    Raises:
        RecnbError: the model's attention is more than plain causal attention.
    """
    samples, longest = shape
    only_plain(softcap, s_aux, sliding_window, longest)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    there, width = place, longest
    if asked is not None:
        asked = place[asked]
        there, width = side_places(asked // longest)
        if hidden is None:
            of_asked = torch.arange(longest, device=query.device) > (asked % longest)[:, None]
        else:
            of_asked = hidden.flatten(0, 2)[asked]
        hidden = of_asked.new_zeros(samples * width, longest).index_copy(0, there, of_asked)
        hidden = hidden.view(samples, 1, width, longest)

    def unpacked(x, place, length):
        x = x[0].transpose(0, 1)
        padded = x.new_zeros(samples * length, *x.shape[1:]).index_copy(0, place, x)
        return padded.view(samples, length, *x.shape[1:]).transpose(1, 2)

    query = unpacked(query, there, width)  # [samples, heads, width, d]
    key, value = unpacked(key, place, longest), unpacked(value, place, longest)
    if query.is_cuda:
        visible = None if hidden is None else ~hidden
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, is_causal=hidden is None, scale=scaling
        )
    else:  # PyTorch's fused attention is slower than this on CPUs without matrix units
        if hidden is None:
            hidden = torch.ones(longest, longest, dtype=torch.bool, device=query.device).triu(1)
        scores = ((query * scaling) @ key.transpose(2, 3)).masked_fill(hidden, float("-inf"))
        mixed = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype) @ value
    out = mixed.transpose(1, 2).reshape(samples * width, mixed.shape[1], -1)
    return out[there][None], None


AttentionInterface.register("recnb_packed", attend)
