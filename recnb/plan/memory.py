"""What a training and an answer take: bytes and operations, from a shape and the work.

``tests/test_plan.py`` compares each equation with the tensors that PyTorch really keeps.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pass:
    """One forward pass for training.

    Attributes:
        tokens: T, real ones, end to end.
        answers: R, the places that carry loss.
        places: P, samples x the longest one, as attention sees them side by side.
        longest: the longest sample, L.
    """

    tokens: float
    answers: float
    places: float
    longest: float


@dataclass(frozen=True)
class Numbers:
    """How a training computes.

    Attributes:
        size: c, bytes of the model's numbers.
        autocast: matrix products in bfloat16.
        rank: r, of LoRA; 0 = all weights are trained.
        fused: attention by one kernel, as on a GPU.
    """

    size: int
    autocast: bool
    rank: int
    fused: bool

    @property
    def product(self):
        """a, bytes of the numbers of a matrix product."""
        return 2 if self.autocast else self.size

    @property
    def cast_inputs(self):
        """Autocast casts an input once for each product that it goes into."""
        return self.autocast and self.size == 4

    @property
    def norm(self):
        """Bytes that a norm keeps of each number: its input in float32, and what a trained weight
        is multiplied with."""
        return 4 if self.rank else 4 + self.size

    @property
    def cast(self):
        """Bytes of the copy that autocast makes of a float32 weight."""
        return 2 if self.autocast and self.size == 4 else 0


def block_bytes(shape, work, numbers):
    """Bytes that one block but the last keeps for the backward pass, without checkpointing.

    With w the width, i the inner width, q = heads x head, a and c of ``Numbers``, it keeps for

    - each of T tokens: 4·2w of its two norms (2c·w more where their weights are trained); a·n·w
      of the inputs of its products, n = 6 where an input is cast once a product, else 3;
      4a·i of the feed-forward part (gate, its SiLU, up, their product); 7a·r of LoRA; (2c + a)·q,
      query, key and value on their way to where attention wants them;
    - each of P places: 3a·q of attention, a·L·heads of probabilities and, where those are cast
      from float32, 4·L·heads more. A fused kernel keeps 4a·q alone.

    Under autocast, weights of float32 are kept once more, in 2 bytes, and so is LoRA.
    """
    keys, rest = _of_token(shape, numbers)
    placed, queries = _of_place(shape, work, numbers)
    return work.tokens * (keys + rest) + work.places * (placed + queries) + _casts(shape, numbers)


def last_block_bytes(shape, work, numbers):
    """The same of the last block: T tokens pass the first norm and give keys and values, the R
    answers alone do all the rest."""
    keys, rest = _of_token(shape, numbers)
    if not numbers.cast_inputs:  # the answers' part of an input is a copy
        rest += numbers.product * shape.width
    placed, queries = _of_place(shape, work, numbers)
    asked = work.answers * (rest + queries)
    return work.tokens * keys + work.places * placed + asked + _casts(shape, numbers)


def _of_token(shape, numbers):
    """Of a token: what comes before and with its key and value, and all that comes after."""
    query, size, product = shape.heads * shape.head, numbers.size, numbers.product
    norm = numbers.norm * shape.width
    before, inputs = (2, 6) if numbers.cast_inputs else (1, 3)
    keys = norm + product * (before * shape.width + 2 * numbers.rank) + (size + product) * query
    wide = (inputs - before) * shape.width + 4 * shape.inner + 5 * numbers.rank
    return keys, norm + product * wide + size * query


def _of_place(shape, work, numbers):
    """Of a place in attention: its key and value, and its query with probabilities or output."""
    query, product = shape.heads * shape.head, numbers.product
    if numbers.fused:
        return 2 * product * query, 2 * product * query
    scores = shape.heads * work.longest * (product + (4 if product == 2 else 0))
    return 2 * product * query, product * query + scores


def _casts(shape, numbers):
    lora = 2 * shape.adapter(numbers.rank) / shape.layers if numbers.autocast else 0
    return numbers.cast * shape.matrices + lora


def saved_bytes(shape, work, numbers, checkpointing, layers_from=0):
    """Bytes of the activations that a forward pass keeps for the backward pass.

    Without checkpointing (blocks - 1) x ``block_bytes`` + ``last_block_bytes``, less the first
    norm's, whose input needs no gradient under LoRA; with it a block keeps its input alone, c·w a
    token. Both times the vocabulary's probabilities and the last norm's input in float32,
    4·R·(V + w), and where all weights are trained what norm and head are multiplied with,
    R·w·(c + a).

    Args:
        layers_from: blocks below it are not trained and keep nothing (``sft.layers_from``).
    """
    head = work.answers * (4 * shape.vocabulary + numbers.norm * shape.width)
    head += 0 if numbers.rank else work.answers * numbers.product * shape.width
    head += numbers.cast * shape.vocabulary * shape.width
    trained = shape.layers - layers_from
    if checkpointing:
        return trained * numbers.size * work.tokens * shape.width + head
    blocks = (trained - 1) * block_bytes(shape, work, numbers)
    blocks -= 4 * work.tokens * shape.width if numbers.rank else 0
    return blocks + last_block_bytes(shape, work, numbers) + head


def logits_bytes(shape, answers):
    """Bytes that the vocabulary takes for a moment: the logits in 16 and in 32 bits, and the
    gradient in 32, 10·R·V, beside the probabilities of ``saved_bytes``."""
    return 10 * answers * shape.vocabulary


def training_bytes(shape, number, rank, layers_from=0, adapters=1):
    """Bytes of weights that are trained, their gradients and Adam's two numbers a weight.

    Returns:
        ``(adapters, gradients and optimizer)``. LoRA's are float32 (4 + 12 bytes a weight); without
        LoRA the model's own weights are trained, 3c bytes a weight.
    """
    if not rank:
        return 0, 3 * number * shape.parameters
    weights = adapters * shape.adapter(rank, layers_from)
    return 4 * weights, 12 * weights


def cache_bytes(shape, rows, tokens, number):
    """Bytes of the keys and values of so many rows: 2·layers·kv_heads·head·number a token."""
    return 2 * shape.layers * shape.kv_heads * shape.head * number * rows * tokens


def operations(shape, tokens, answers, rank, checkpointing, layers_from=0):
    """Floating-point operations of training on so many tokens.

    A forward pass is 2 a weight and token, F; the gradient of the inputs another F, that of the
    weights a third where they are trained; checkpointing adds one F. Blocks below ``layers_from``
    take the first alone.
    """
    block = 2 * tokens * shape.matrices
    head = 2 * answers * shape.vocabulary * shape.width
    times = (2 if rank else 3) + bool(checkpointing)
    return block * (layers_from + times * (shape.layers - layers_from)) + times * head
