"""Recognises the canonical graph's mask, positions and biases by position by their structure."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from exporter.control import END, MASKED
from graph_passes.matching import attribute, constant, either_order, is_ints, placed_table, producer


@dataclasses.dataclass(frozen=True)
class Causal:
    """Query s may see key t: ``t ≤ s``, ``t > s − window``, and t is not padding.

    Attributes:
        attention_mask: int64 ``[B, T]``, 1 for a real token.
        window: keys that a query sees, itself included; None for all.
        table: initializer ``[context, H]``; the difference of its rows at t and s is added to the score. None for no
            such bias.
    """

    attention_mask: ir.Value
    window: int | None
    table: ir.Value | None = None


def mask_structure(mask: ir.Value) -> Causal | str:
    """What a mask says, or why it is not understood: bool ``[B, 1, S, T]``, or a bias ``[B, H, S, T]`` where such a
    mask is true."""
    biased = producer(mask, "Where")
    if biased is None:
        return _bool_mask(mask)
    seen, bias, masked = biased.inputs
    hidden = constant(masked)
    if seen is None or hidden is None or hidden.size != 1 or hidden.item() != MASKED:
        return "its mask is neither bool, nor a bias where it is seen"
    found = _bool_mask(seen)
    if isinstance(found, str):
        return found
    table = _table(bias, found.attention_mask)
    if table is None:
        return "its mask adds something else than a bias by position"
    return dataclasses.replace(found, table=table)


def _bool_mask(mask: ir.Value) -> Causal | str:
    node = producer(mask, "And")
    if node is None:
        return "its mask is not (causal and valid)"
    for seen, valid in either_order(node):
        attention_mask = _valid(valid)
        if attention_mask is None:
            continue
        found = _seen(seen, attention_mask)
        if found is not None:
            return found
    return "its mask is neither causal and valid, nor causal, recent and valid"


def _valid(value: ir.Value) -> ir.Value | None:
    """attention_mask of ``Unsqueeze(Cast(attention_mask, bool), [1, 2])``."""
    unsqueeze = producer(value, "Unsqueeze")
    if unsqueeze is None or not is_ints(unsqueeze.inputs[1], 1, 2):
        return None
    cast = producer(unsqueeze.inputs[0], "Cast")
    if cast is None or attribute(cast, "to", None) != ir.DataType.BOOL:
        return None
    source = cast.inputs[0]
    return source if source is not None and source.is_graph_input() else None


def _seen(value: ir.Value, attention_mask: ir.Value) -> Causal | None:
    causal = producer(value, "LessOrEqual")
    if causal is not None and _is_causal(causal, attention_mask):
        return Causal(attention_mask, None)
    both = producer(value, "And")
    if both is None:
        return None
    for left, right in either_order(both):
        causal, recent = producer(left, "LessOrEqual"), producer(right, "Greater")
        if causal is None or recent is None or not _is_causal(causal, attention_mask):
            continue
        window = _window(recent, causal)
        if window is not None:
            return Causal(attention_mask, window)
    return None


def _is_causal(node: ir.Node, attention_mask: ir.Value) -> bool:
    """keys ≤ queries, keys = 0 … T−1, queries = past … T−1 as a column."""
    keys, column = producer(node.inputs[0], "Range"), producer(node.inputs[1], "Unsqueeze")
    queries = producer(column.inputs[0], "Range") if column else None
    if keys is None or column is None or queries is None or not is_ints(column.inputs[1], 1):
        return False
    if not (is_ints(keys.inputs[0], 0) and is_ints(keys.inputs[2], 1) and is_ints(queries.inputs[2], 1)):
        return False
    totals = (_scalar(keys.inputs[1]), _scalar(queries.inputs[1]))
    if not all(_is_columns(total, attention_mask) for total in totals):
        return False
    return _is_past(_scalar(queries.inputs[0]), attention_mask)


def _window(recent: ir.Node, causal: ir.Node) -> int | None:
    """w of keys > queries − w, on the same keys and queries."""
    keys, oldest = recent.inputs
    sub = producer(oldest, "Sub")
    if keys is not causal.inputs[0] or sub is None or sub.inputs[0] is not causal.inputs[1]:
        return None
    width = constant(sub.inputs[1])
    return int(width.item()) if width is not None and width.size == 1 and width.item() > 0 else None


def positions_of(value: ir.Value | None) -> ir.Value | None:
    """attention_mask of the canonical positions ``[B, S]``: ``max(cumsum(attention_mask) − 1, 0)[:, past:]``."""
    slice_ = producer(value, "Slice")
    if slice_ is None or not _is_of_tokens(slice_, 1):
        return None
    attention_mask = _counted(slice_.inputs[0])
    return attention_mask if _is_past(slice_.inputs[1], attention_mask) else None


def _is_of_tokens(slice_: ir.Node, axis: int) -> bool:
    """Whether a Slice goes from somewhere to the end of an axis."""
    end = constant(slice_.inputs[2])
    return (
        len(slice_.inputs) == 4 and is_ints(slice_.inputs[3], axis) and end is not None and end.item() == END
    )


def _counted(value: ir.Value | None) -> ir.Value | None:
    """attention_mask of all positions ``[B, T]``, ``max(cumsum(attention_mask) − 1, 0)``."""
    clipped = producer(value, "Max")
    if clipped is None or not is_ints(clipped.inputs[1], 0):
        return None
    minus_one = producer(clipped.inputs[0], "Sub")
    if minus_one is None or not is_ints(minus_one.inputs[1], 1):
        return None
    count = producer(minus_one.inputs[0], "CumSum")
    if count is None or not is_ints(count.inputs[1], 1) or count.inputs[0] is None:
        return None
    return None if attribute(count, "exclusive", 0) or attribute(count, "reverse", 0) else count.inputs[0]


def _table(bias: ir.Value | None, attention_mask: ir.Value) -> ir.Value | None:
    """The table of ``table[j] − table[i]`` (`exporter.control.Control.bias`)."""
    sub = producer(bias, "Sub")
    if sub is None:
        return None
    keys, queries = (producer(value, "Unsqueeze") for value in sub.inputs)
    if (
        keys is None
        or queries is None
        or not is_ints(keys.inputs[1], -2)
        or not is_ints(queries.inputs[1], -1)
    ):
        return None
    of_keys, of_queries = producer(keys.inputs[0], "Transpose"), producer(queries.inputs[0], "Slice")
    if of_keys is None or of_queries is None or of_queries.inputs[0] is not of_keys.outputs[0]:
        return None
    if not _is_of_tokens(of_queries, -1) or not _is_past(of_queries.inputs[1], attention_mask):
        return None
    return _looked_up(of_keys.inputs[0], list(attribute(of_keys, "perm", ())), attention_mask)


def _looked_up(rows: ir.Value | None, perm: list[int], attention_mask: ir.Value) -> ir.Value | None:
    """The table of which these are the rows of all T keys, by place or counted over the real ones."""
    node = rows.producer() if rows is not None else None
    table = placed_table(node) if node is not None else None
    if node is None or table is None:
        return None
    if node.op_type == "Slice":
        start, stop, axis = node.inputs[1:4]
        whole = is_ints(start, 0) and is_ints(axis, 0) and _is_columns(stop, attention_mask)
        return table if whole and perm == [1, 0] else None
    places = producer(node.inputs[1], "Unsqueeze")
    counted = places is not None and is_ints(places.inputs[1], -1) and _counted(places.inputs[0])
    return table if counted is attention_mask and perm == [0, 2, 1] else None


def _scalar(value: ir.Value | None) -> ir.Value | None:
    squeeze = producer(value, "Squeeze")
    return squeeze.inputs[0] if squeeze else None


def _is_columns(value: ir.Value | None, matrix: ir.Value) -> bool:
    """value = the number of columns of a matrix, as a vector of one."""
    shape = producer(value, "Shape")
    return shape is not None and shape.inputs[0] is matrix and _second_dim(shape)


def _is_past(value: ir.Value | None, attention_mask: ir.Value | None) -> bool:
    """value = columns of the attention mask − columns of the tokens."""
    sub = producer(value, "Sub")
    if sub is None or attention_mask is None or not _is_columns(sub.inputs[0], attention_mask):
        return False
    length = producer(sub.inputs[1], "Shape")
    if length is None or length.inputs[0] is None or not _second_dim(length):
        return False
    tokens = length.inputs[0]
    return tokens.is_graph_input() and tokens is not attention_mask


def _second_dim(shape: ir.Node) -> bool:
    return bool(attribute(shape, "start", 0) == 1 and attribute(shape, "end", None) == 2)
