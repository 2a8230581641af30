"""Whether a finished graph takes and gives what docs/architecture.md says ("The graph's contract")."""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir

_CACHE = re.compile(r"(past_key_values|present)\.(\d{1,6})\.(key|value)")
_INTEGERS = (ir.DataType.INT64,)
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_CACHED = (*_FLOATS, ir.DataType.INT8)
ANY_SIZE = "an integer"
_INPUTS: dict[str, tuple[str, ...]] = {
    "input_ids": ("batch_size", "sequence_length"),
    "attention_mask": ("batch_size", "total_sequence_length"),
    "position_ids": ("batch_size", "sequence_length"),
    "num_logits_to_keep": (),
}


def contract_breaches(model: ir.Model) -> Iterator[str]:
    """What is not as the contract says, one sentence each.

    A graph without a cache, of a user's module, names its dims as it likes.
    """
    inputs, outputs = model.graph.inputs, model.graph.outputs
    slots = {_slot(value) for value in inputs} - {None}
    for value in inputs:
        name = str(value.name)
        if name in _INPUTS:
            yield from _typed(value, _INTEGERS, _INPUTS[name] if slots else None)
        elif _slot(value) is not None and name.startswith("past"):
            yield from _typed(value, _CACHED, ("batch_size", ANY_SIZE, "past_sequence_length", ANY_SIZE))
        else:
            yield f"it takes {name!r}, which no runtime of a bundle gives"
    names = {str(value.name) for value in inputs}
    if "input_ids" not in names:
        yield "it does not take input_ids"
    if slots and "attention_mask" not in names:
        yield "it has a cache and does not take attention_mask"
    for value in outputs:
        if str(value.name) == "logits":
            yield from _typed(value, _FLOATS, ("batch_size", "", ANY_SIZE) if slots else None)
        elif _slot(value) is not None and str(value.name).startswith("present"):
            yield from _typed(value, _CACHED, ("batch_size", ANY_SIZE, "total_sequence_length", ANY_SIZE))
        else:
            yield f"it gives {value.name!r}, which no runtime of a bundle expects"
    if all(value.name != "logits" for value in outputs):
        yield "it gives no logits"
    yield from _caches(model)


def _caches(model: ir.Model) -> Iterator[str]:
    """Each past becomes a present of the same sizes, for layers that are counted from 0."""
    pasts = {_slot(value): value for value in model.graph.inputs if _slot(value) is not None}
    presents = {_slot(value): value for value in model.graph.outputs if _slot(value) is not None}
    for layer, which in sorted({slot for slot in {*pasts, *presents} if slot is not None}):
        past, present = pasts.get((layer, which)), presents.get((layer, which))
        if past is None or present is None:
            yield f"the {which} cache of layer {layer} is not both taken and given"
        elif past.dtype != present.dtype or _sizes(past)[1::2] != _sizes(present)[1::2]:
            yield f"the {which} cache of layer {layer} is given in another form than it is taken"
    layers = sorted({slot[0] for slot in pasts if slot is not None})
    if layers != list(range(len(layers))):
        yield "its caches are not those of layers 0, 1, 2 …"


def _slot(value: ir.Value) -> tuple[int, str] | None:
    """Layer and kind of a cache."""
    match = _CACHE.fullmatch(str(value.name))
    return (int(match[2]), match[3]) if match else None


def _sizes(value: ir.Value) -> list[object]:
    if value.shape is None:
        return []
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def _typed(value: ir.Value, dtypes: tuple[ir.DataType, ...], dims: tuple[str, ...] | None) -> Iterator[str]:
    """``dims`` are symbols, `ANY_SIZE`, or empty for anything."""
    if value.dtype not in dtypes:
        held = value.dtype.name.lower() if value.dtype is not None else "of no type"
        yield f"{value.name} is {held}, not {' or '.join(dtype.name.lower() for dtype in dtypes)}"
    if dims is None:
        return
    sizes = _sizes(value)
    fits = len(sizes) == len(dims) and all(map(_fits, sizes, dims))
    if not fits:
        wanted = ", ".join(dim or "…" for dim in dims)
        yield f"{value.name} has the dims [{', '.join(map(str, sizes))}], not [{wanted}]"


def _fits(size: object, dim: str) -> bool:
    return isinstance(size, int) and size > 0 if dim == ANY_SIZE else dim in ("", size)
