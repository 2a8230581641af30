"""One small decoder, its masks, rotary tables and positions spelled as exporters and users spell them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from exporter.emitter import Emitter

VOCAB, HIDDEN, HEADS, DIM, CONTEXT = 23, 8, 2, 4, 64
END = 2**63 - 1
LOW = float(np.finfo(np.float32).min)
INT, BOOL, FLOAT = ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.FLOAT


class Pen(Emitter):
    """Writes a graph tersely: numbers and arrays become constants, names are counted."""

    def __init__(self) -> None:
        super().__init__({})
        self.count = 0

    def __call__(self, op_type: str, *inputs: Any, **attributes: Any) -> Any:
        self.count += 1
        values = [None if given is None else self.value(given) for given in inputs]
        return self.op(op_type, values, name=f"n{self.count}", **attributes)

    def value(self, given: Any) -> ir.Value:
        if isinstance(given, ir.Value):
            return given
        array = np.array(given)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        digest = f"{array.dtype}.{array.shape}.{hash(array.tobytes())}"
        return self.constant(f"c.{digest}", array)


@dataclasses.dataclass(frozen=True)
class Call:
    """What a spelling may use: lengths int64 ``[1]``, and the inputs that the graph has."""

    pen: Pen
    input_ids: ir.Value
    attention_mask: ir.Value | None
    position_ids: ir.Value | None
    batch: ir.Value
    length: ir.Value
    past: ir.Value
    total: ir.Value

    def scalar(self, length: ir.Value) -> ir.Value:
        return self.pen("Squeeze", length)

    @property
    def queries(self) -> ir.Value:
        """Places of the tokens, ``[S, 1]``."""
        total = self.scalar(self.total)
        return self.pen("Unsqueeze", self.pen("Range", self.scalar(self.past), total, 1), [1])

    @property
    def keys(self) -> ir.Value:
        """Places of the keys, ``[T]``."""
        return self.pen("Range", 0, self.scalar(self.total), 1)

    @property
    def valid(self) -> ir.Value:
        """bool ``[B, 1, 1, T]``."""
        return self.pen("Unsqueeze", self.pen("Cast", self.attention_mask, to=BOOL), [1, 2])

    def and_valid(self, seen: ir.Value) -> ir.Value:
        return seen if self.attention_mask is None else self.pen("And", seen, self.valid)


# Masks: bool, True for what is seen ------------------------------------------------------------------------


def ranges(call: Call) -> ir.Value:
    return call.and_valid(call.pen("LessOrEqual", call.keys, call.queries))


def ranges_reversed(call: Call) -> ir.Value:
    pen = call.pen
    later = pen("Less", call.queries, call.keys)
    if call.attention_mask is None:
        return pen("Not", later)
    hidden = pen("Or", later, pen("Equal", pen("Unsqueeze", call.attention_mask, [1, 2]), 0))
    return pen("Not", hidden)


def buffer(call: Call) -> ir.Value:
    """A stored lower triangle, of which the rows and columns of a call are cut out."""
    pen = call.pen
    triangle = np.tril(np.ones((1, 1, CONTEXT, CONTEXT), bool))
    rows = pen("Slice", triangle, call.past, call.total, [2])
    return call.and_valid(pen("Slice", rows, [0], call.total, [3]))


def triangle(call: Call) -> ir.Value:
    pen = call.pen
    ones = pen(
        "ConstantOfShape",
        pen("Concat", call.length, call.total, axis=0),
        value=ir.tensor(np.ones(1, np.int64)),
    )
    lower = pen("Trilu", ones, call.scalar(call.past), upper=0)
    return call.and_valid(pen("Cast", lower, to=BOOL))


def gathered(call: Call) -> ir.Value:
    """transformers' masks by vmap: each element looks up its own row and key in the attention mask."""
    pen = call.pen
    seen = pen("LessOrEqual", pen("Unsqueeze", call.keys, [0, 1, 2]), pen("Unsqueeze", call.queries, [0, 1]))
    if call.attention_mask is None:
        return seen
    rows = pen("Unsqueeze", pen("Range", 0, call.scalar(call.batch), 1), [1, 2, 3])
    at = pen("Add", pen("Mul", rows, call.total), pen("Unsqueeze", call.keys, [0, 1, 2]))
    flat = pen("Reshape", pen("Cast", call.attention_mask, to=BOOL), [-1])
    return pen("And", seen, pen("Gather", flat, at, axis=0))


def counted(call: Call) -> ir.Value:
    """Places by CumSum of ones instead of Range."""
    pen = call.pen
    ones = pen("Expand", 1, call.total)
    places = pen("Sub", pen("CumSum", ones, 0), 1)
    queries = pen("Unsqueeze", pen("Slice", places, call.past, [END], [0]), [1])
    return call.and_valid(pen("GreaterOrEqual", queries, places))


def window(width: int) -> Callable[[Call], ir.Value]:
    def windowed(call: Call) -> ir.Value:
        pen = call.pen
        distance = pen("Sub", call.queries, call.keys)
        seen = pen("And", pen("GreaterOrEqual", distance, 0), pen("Less", distance, width))
        return call.and_valid(seen)

    return windowed


def window_up_to(width: int) -> Callable[[Call], ir.Value]:
    """Written with the largest distance instead of the first that is too large."""

    def windowed(call: Call) -> ir.Value:
        pen = call.pen
        distance = pen("Sub", call.queries, call.keys)
        seen = pen("And", pen("GreaterOrEqual", distance, 0), pen("LessOrEqual", distance, width - 1))
        return call.and_valid(seen)

    return windowed


def window_of_bands(width: int) -> Callable[[Call], ir.Value]:
    """Two triangles: not after the query, and not before the window."""

    def windowed(call: Call) -> ir.Value:
        pen = call.pen
        shape = pen("Concat", call.length, call.total, axis=0)
        ones = pen("ConstantOfShape", shape, value=ir.tensor(np.ones(1, np.int64)))
        past = call.scalar(call.past)
        lower = pen("Trilu", ones, past, upper=0)
        band = pen("Trilu", lower, pen("Sub", past, width - 1), upper=1)
        return call.and_valid(pen("Cast", band, to=BOOL))

    return windowed


def branching(call: Call) -> ir.Value:
    """One token sees everything; several look at where they are."""
    pen = call.pen
    several = pen("LessOrEqual", call.keys, call.queries)
    every = pen("Expand", True, pen("Concat", call.length, call.total, axis=0))

    def branch(value: ir.Value, name: str) -> ir.Graph:
        inside = ir.node("Identity", [value], name=name)
        inside.outputs[0].name = name
        return ir.Graph([], inside.outputs, nodes=[inside], name=name)

    one = pen("Squeeze", pen("Equal", call.length, [1]))
    branches = {"then_branch": branch(every, "one"), "else_branch": branch(several, "several")}
    return call.and_valid(pen("If", one, **branches))


MASKS: Mapping[str, Callable[[Call], ir.Value]] = {
    spelling.__name__: spelling
    for spelling in (ranges, ranges_reversed, buffer, triangle, gathered, counted, branching)
}


def window_in_a_buffer(width: int) -> Callable[[Call], ir.Value]:
    """GPT-Neo's local attention: the band is stored, its width is written nowhere."""

    def windowed(call: Call) -> ir.Value:
        pen, whole = call.pen, np.ones((CONTEXT, CONTEXT), bool)
        rows = pen("Slice", np.tril(whole) & ~np.tril(whole, -width), call.past, call.total, [0])
        return call.and_valid(pen("Slice", rows, [0], call.total, [1]))

    return windowed


WINDOWS: Mapping[str, Callable[[int], Callable[[Call], ir.Value]]] = {
    "window": window,
    "window_of_bands": window_of_bands,
    "window_in_a_buffer": window_in_a_buffer,
}


# Masks that are not causal and valid -----------------------------------------------------------------------


def strict(call: Call) -> ir.Value:
    first = call.pen("Equal", call.keys, 0)  # so that no row is empty
    return call.and_valid(call.pen("Or", first, call.pen("Less", call.keys, call.queries)))


def prefix(call: Call) -> ir.Value:
    seen = call.pen("LessOrEqual", call.keys, call.queries)
    return call.and_valid(call.pen("Or", seen, call.pen("Less", call.keys, 2)))


def both_ways(call: Call) -> ir.Value:
    return call.and_valid(call.pen("GreaterOrEqual", call.pen("Add", call.keys, call.queries), 0))


def chunks(call: Call) -> ir.Value:
    """Llama 4's: a token sees the earlier ones of its own chunk."""
    pen = call.pen
    same = pen("Equal", pen("Div", call.keys, 4), pen("Div", call.queries, 4))
    return call.and_valid(pen("And", same, pen("LessOrEqual", call.keys, call.queries)))


def sees_padding(call: Call) -> ir.Value:
    return call.pen("LessOrEqual", call.keys, call.queries)


def window_of_real_tokens(call: Call) -> ir.Value:
    """A window that does not count padding."""
    pen = call.pen
    keys = pen("Unsqueeze", pen("CumSum", call.attention_mask, 1), [1, 2])
    queries = pen(
        "Unsqueeze", pen("Slice", pen("CumSum", call.attention_mask, 1), call.past, [END], [1]), [1, 3]
    )
    recent = pen("Less", pen("Sub", queries, keys), 3)
    return call.and_valid(pen("And", recent, pen("LessOrEqual", call.keys, call.queries)))


def by_head(call: Call) -> ir.Value:
    """The second head sees only the token itself."""
    pen = call.pen
    own = pen("Equal", call.keys, call.queries)
    heads = np.array([True, False]).reshape(1, HEADS, 1, 1)
    seen = pen("And", pen("LessOrEqual", call.keys, call.queries), pen("Or", heads, own))
    return call.and_valid(seen)


def with_a_hole(call: Call) -> ir.Value:
    """A stored triangle in which one element, far down, is not seen."""
    pen, stored = call.pen, np.tril(np.ones((CONTEXT, CONTEXT), bool))
    stored[40, 20] = False
    return call.and_valid(
        pen("Slice", pen("Slice", stored, call.past, call.total, [0]), [0], call.total, [1])
    )


NO_MASKS: Mapping[str, Callable[[Call], ir.Value]] = {
    spelling.__name__: spelling
    for spelling in (
        with_a_hole,
        strict,
        prefix,
        both_ways,
        chunks,
        sees_padding,
        window_of_real_tokens,
        by_head,
    )
}


# How scores meet a mask ------------------------------------------------------------------------------------


def where_seen(call: Call, scores: ir.Value, seen: ir.Value) -> ir.Value:
    return call.pen("Where", seen, scores, LOW)


def where_hidden(call: Call, scores: ir.Value, seen: ir.Value) -> ir.Value:
    return call.pen("Where", call.pen("Not", seen), -1e9, scores)


def added(call: Call, scores: ir.Value, seen: ir.Value) -> ir.Value:
    return call.pen("Add", scores, call.pen("Where", seen, 0.0, LOW))


def added_product(call: Call, scores: ir.Value, seen: ir.Value) -> ir.Value:
    weight = call.pen("Cast", seen, to=FLOAT)
    return call.pen("Add", call.pen("Mul", call.pen("Sub", 1.0, weight), -10000.0), scores)


def subtracted(call: Call, scores: ir.Value, seen: ir.Value) -> ir.Value:
    hidden = call.pen("Cast", call.pen("Not", seen), to=FLOAT)
    return call.pen("Sub", scores, call.pen("Mul", hidden, 1e6))


def in_two_steps(call: Call, scores: ir.Value, seen: ir.Value) -> ir.Value:
    """GPT-2's: the mask first, then padding once more, as a number to add."""
    scores = where_seen(call, scores, seen)
    if call.attention_mask is None:
        return scores
    return call.pen("Add", scores, call.pen("Where", call.valid, 0.0, -1e9))


def filled_with_zero(call: Call, scores: ir.Value, seen: ir.Value) -> ir.Value:
    return call.pen("Where", seen, scores, 0.0)


def hidden_a_little(call: Call, scores: ir.Value, seen: ir.Value) -> ir.Value:
    return call.pen("Add", scores, call.pen("Where", seen, 0.0, -50.0))


def alibi(call: Call, scores: ir.Value, seen: ir.Value) -> ir.Value:
    """Press et al. (arXiv 2108.12409): a bias by distance, and the mask in one number."""
    pen = call.pen
    distance = pen("Cast", pen("Sub", call.keys, call.queries), to=FLOAT)
    bias = pen("Mul", distance, np.array([0.5, 0.25], np.float32).reshape(1, HEADS, 1, 1))
    return pen("Add", scores, pen("Where", seen, bias, LOW))


def before_another_axis(call: Call, scores: ir.Value, seen: ir.Value) -> ir.Value:
    """The softmax that follows the mask is one over queries."""
    return call.pen("Softmax", added(call, scores, seen), axis=2)


NO_MEETINGS = {
    meeting.__name__: meeting for meeting in (filled_with_zero, hidden_a_little, alibi, before_another_axis)
}

MEETINGS: Mapping[str, Callable[[Call, ir.Value, ir.Value], ir.Value]] = {
    meeting.__name__: meeting
    for meeting in (where_seen, where_hidden, added, added_product, subtracted, in_two_steps)
}


# Positions ``[B or 1, S]`` ---------------------------------------------------------------------------------


def places(call: Call) -> ir.Value:
    return call.pen("Unsqueeze", call.pen("Squeeze", call.queries, [1]), [0])


def given(call: Call) -> ir.Value:
    return call.position_ids if call.position_ids is not None else places(call)


def from_mask(call: Call) -> ir.Value:
    """transformers': counted over the real tokens, 1 where there is padding."""
    if call.attention_mask is None:
        return places(call)
    pen = call.pen
    counts = pen("Sub", pen("CumSum", call.attention_mask, 1), 1)
    filled = pen("Where", pen("Equal", call.attention_mask, 0), 1, counts)
    return pen("Slice", filled, call.past, [END], [1])


POSITIONS = {spelling.__name__: spelling for spelling in (places, given, from_mask)}


# Rotary tables: (cos, sin) that multiply ``[B, H, S, D]`` ---------------------------------------------------

FREQUENCIES = np.array([1.0, 0.1], np.float32)
Angles = tuple[ir.Value, ir.Value]


def _angles(call: Call, positions: ir.Value, frequencies: Any = FREQUENCIES) -> ir.Value:
    """``[B, S, D/2]``"""
    steps = call.pen("Cast", call.pen("Unsqueeze", positions, [2]), to=FLOAT)
    return call.pen("Mul", steps, frequencies)


def computed(call: Call, positions: ir.Value) -> Angles:
    angles = _angles(call, positions)
    both = call.pen("Unsqueeze", call.pen("Concat", angles, angles, axis=-1), [1])
    return call.pen("Cos", both), call.pen("Sin", both)


def by_product(call: Call, positions: ir.Value) -> Angles:
    """transformers': an outer product, in an axis order that is turned afterwards; scaled as YaRN does."""
    steps = call.pen("Cast", call.pen("Unsqueeze", positions, [1]), to=FLOAT)
    angles = call.pen("Transpose", call.pen("MatMul", FREQUENCIES.reshape(1, -1, 1), steps), perm=[0, 2, 1])
    both = call.pen("Concat", angles, angles, axis=-1)
    return tuple(
        call.pen("Unsqueeze", call.pen("Mul", call.pen(op, both), 1.25), [1]) for op in ("Cos", "Sin")
    )  # type: ignore[return-value]


def stored(call: Call, positions: ir.Value) -> Angles:
    angles = np.outer(np.arange(CONTEXT), np.concatenate([FREQUENCIES, FREQUENCIES])).astype(np.float32)
    rows = (call.pen("Gather", table, positions) for table in (np.cos(angles), np.sin(angles)))
    return tuple(call.pen("Unsqueeze", row, [1]) for row in rows)  # type: ignore[return-value]


def cut_out(call: Call, positions: ir.Value) -> Angles:
    """Rows of a stored table by places, without a batch axis."""
    angles = np.outer(np.arange(CONTEXT), np.concatenate([FREQUENCIES, FREQUENCIES])).astype(np.float32)
    tables = (np.cos(angles)[None, None], np.sin(angles)[None, None])
    return tuple(call.pen("Slice", table, call.past, call.total, [2]) for table in tables)  # type: ignore[return-value]


ROTARY = {spelling.__name__: spelling for spelling in (computed, by_product, stored, cut_out)}


def stretched(call: Call, positions: ir.Value) -> Angles:
    """Dynamic scaling: frequencies depend on how long the call is."""
    pen = call.pen
    longer = pen("Max", pen("Div", pen("Cast", call.total, to=FLOAT), 8.0), 1.0)
    angles = _angles(call, positions, pen("Div", FREQUENCIES, longer))
    both = pen("Unsqueeze", pen("Concat", angles, angles, axis=-1), [1])
    return pen("Cos", both), pen("Sin", both)


def in_reverse(call: Call, positions: ir.Value) -> Angles:
    """Positions counted from the end."""
    return computed(call, call.pen("Sub", call.total, positions))


NO_ROTARY = {spelling.__name__: spelling for spelling in (stretched, in_reverse)}


# Learned positions -----------------------------------------------------------------------------------------


def looked_up(table: np.ndarray, call: Call, positions: ir.Value) -> ir.Value:
    return call.pen("Gather", table, positions)


def looked_up_from_2(table: np.ndarray, call: Call, positions: ir.Value) -> ir.Value:
    """OPT's: the first two rows are not used."""
    return call.pen("Gather", table, call.pen("Add", positions, 2))


def sliced(table: np.ndarray, call: Call, positions: ir.Value) -> ir.Value:
    return call.pen("Slice", table[None], call.past, call.total, [1])


LEARNED = {spelling.__name__: spelling for spelling in (looked_up, looked_up_from_2, sliced)}


def scaled(table: np.ndarray, call: Call, positions: ir.Value) -> ir.Value:
    return call.pen("Mul", call.pen("Gather", table, positions), 0.5)


def from_the_end(table: np.ndarray, call: Call, positions: ir.Value) -> ir.Value:
    return call.pen("Gather", table, call.pen("Sub", call.total, positions))


def up_to_32(table: np.ndarray, call: Call, positions: ir.Value) -> ir.Value:
    return call.pen("Gather", table, call.pen("Min", positions, 32))


NO_LEARNED = {spelling.__name__: spelling for spelling in (scaled, from_the_end, up_to_32)}


# The decoder -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Spelling:
    """One decoder of one layer. Functions of the lists above; None for parts that it has not."""

    mask: Callable[[Call], ir.Value] = ranges
    meeting: Callable[[Call, ir.Value, ir.Value], ir.Value] = added
    positions: Callable[[Call], ir.Value] = places
    rotary: Callable[[Call, ir.Value], Angles] | None = None
    learned: Callable[[np.ndarray, Call, ir.Value], ir.Value] | None = None
    cache: bool = True
    mask_input: bool = True
    position_input: bool = False
    ids: ir.DataType = INT
    mask_type: ir.DataType = INT
    names: tuple[str, str] = ("past_key_values.0.key", "past_key_values.0.value")
    tokens_first: bool = False
    """The cache is [B, P, H, D]."""


def write(spelling: Spelling) -> ir.Model:
    """The decoder; its weights are the same for every spelling."""
    pen, rng = Pen(), np.random.default_rng(0)
    batch, tokens, past = "batch_size", "sequence_length", "past_sequence_length"
    ids = pen.input("input_ids", spelling.ids, [batch, tokens])
    whole = f"{past} + {tokens}" if spelling.cache else tokens
    mask = pen.input("attention_mask", spelling.mask_type, [batch, whole]) if spelling.mask_input else None
    positions = pen.input("position_ids", INT, [batch, tokens]) if spelling.position_input else None
    caches = []
    if spelling.cache:
        shape = [batch, past, HEADS, DIM] if spelling.tokens_first else [batch, HEADS, past, DIM]
        caches = [pen.input(name, FLOAT, shape) for name in spelling.names]
    length = pen("Shape", ids, start=1, end=2)
    axis = 1 if spelling.tokens_first else 2
    before = pen("Shape", caches[0], start=axis, end=axis + 1) if caches else pen.value([0])
    total = pen("Add", before, length) if caches else length
    integers = mask if mask is None or spelling.mask_type == INT else pen("Cast", mask, to=INT)
    call = Call(pen, ids, integers, positions, pen("Shape", ids, start=0, end=1), length, before, total)

    def weight(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[0]))

    embedding, w_q, w_k, w_v, w_o, head, table = (
        weight(*shape)
        for shape in (
            (VOCAB, HIDDEN),
            *[(HIDDEN, HEADS * DIM)] * 3,
            (HEADS * DIM, HIDDEN),
            (HIDDEN, VOCAB),
            (CONTEXT, HIDDEN),
        )
    )
    at = spelling.positions(call)
    x = pen("Gather", embedding * 4, ids)
    if spelling.learned is not None:
        x = pen("Add", x, spelling.learned(table * 8, call, at))

    def heads(w: np.ndarray) -> ir.Value:
        return pen("Transpose", pen("Reshape", pen("MatMul", x, w), [0, 0, HEADS, DIM]), perm=[0, 2, 1, 3])

    q, k, v = heads(w_q), heads(w_k), heads(w_v)
    if spelling.rotary is not None:
        cos, sin = spelling.rotary(call, at)
        q, k = (_rotated(pen, part, cos, sin) for part in (q, k))
    presents = []
    if caches and spelling.tokens_first:
        turned = [pen("Transpose", part, perm=[0, 2, 1, 3]) for part in (k, v)]
        presents = [pen("Concat", old, new, axis=1) for old, new in zip(caches, turned, strict=True)]
        k, v = (pen("Transpose", part, perm=[0, 2, 1, 3]) for part in presents)
    elif caches:
        k, v = presents = [pen("Concat", old, new, axis=2) for old, new in zip(caches, (k, v), strict=True)]
    scores = pen("Mul", pen("MatMul", q, pen("Transpose", k, perm=[0, 1, 3, 2])), 1.5)
    scores = spelling.meeting(call, scores, spelling.mask(call))
    y = pen("Transpose", pen("MatMul", pen("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    y = pen("Add", x, pen("MatMul", pen("Reshape", y, [0, 0, HEADS * DIM]), w_o))
    logits = pen("MatMul", y, head)
    logits.name, logits.type, logits.shape = "logits", ir.TensorType(FLOAT), ir.Shape([batch, tokens, VOCAB])
    outputs = [logits]
    for name, value in zip(spelling.names, presents, strict=False):
        shape = [batch, whole, HEADS, DIM] if spelling.tokens_first else [batch, HEADS, whole, DIM]
        value.name, value.type, value.shape = f"new.{name}", ir.TensorType(FLOAT), ir.Shape(shape)
        outputs.append(value)
    return ir.Model(pen.graph(outputs, name="spelled", opset=18), ir_version=10)


def _rotated(pen: Pen, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
    first, second = pen("Slice", x, [0], [DIM // 2], [3]), pen("Slice", x, [DIM // 2], [END], [3])
    turned = pen("Concat", pen("Neg", second), first, axis=-1)
    return pen("Add", pen("Mul", x, cos), pen("Mul", turned, sin))
