"""What the dims of a decoder's inputs are, by what the inputs are for.

Exporters name dims as they like: Optimum's mask is ``past_sequence_length + 1`` long, whatever the number of tokens.
So the names that a graph declares count only for inputs whose purpose is not known; tokens, mask, positions and cache
have the dims of the graph's contract (docs/architecture.md), which makes the mask as long as past and call together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from graph_passes.inference.dims import BATCH, PAST, SEQUENCE, Size, parse, symbol, symbols
from graph_passes.inference.known import Shape


def input_dims(inputs: Sequence[ir.Value]) -> Mapping[ir.Value, Shape]:
    """Dims of the inputs whose rank is declared."""
    caches = [value for value in inputs if _is_cache(value) and not isinstance(_declared(value, -2), int)]
    main = _spelled(caches[0], -2) if caches else ""
    tokens = _tokens(inputs)
    length = None if tokens is None else _declared(tokens, 1)
    calls: Size = length if isinstance(length, int) else symbol(SEQUENCE)
    total: Size | None = calls + symbol(PAST) if caches else calls
    if not caches and any(map(_is_cache, inputs)):
        total = None  # the cache has a fixed size, of which the mask tells how much is in use
    found: dict[ir.Value, Shape] = {}
    for value in inputs:
        if value.shape is None:
            continue
        if value in caches:
            past = symbol(PAST) if _spelled(value, -2) in ("", main) else symbol(_spelled(value, -2))
            wanted: list[Size | None] = [*[symbol(BATCH)] * (len(value.shape) - 3), None, past, None]
        else:
            wanted = _by_purpose(value, value is tokens, calls, total)
        if wanted:
            found[value] = tuple(
                dim if isinstance(dim, int) else symbol(f"{value.name}#{axis}") if size is None else size
                for axis, (dim, size) in enumerate(zip(value.shape, wanted, strict=True))
            )
    return {**found, **_others([value for value in inputs if value not in found], found)}


def _others(inputs: Sequence[ir.Value], known: Mapping[ir.Value, Shape]) -> dict[ir.Value, Shape]:
    """Dims of the other inputs: a name means what it means on the inputs that are known, where that is one thing."""
    meanings: dict[str, set[Size]] = {}
    for value, shape in known.items():
        for axis, size in enumerate(shape):
            meanings.setdefault(_spelled(value, axis), set()).add(size)
    taken = {name for shape in known.values() for size in shape for name in symbols(size)}
    found = {}
    for value in inputs:
        if value.shape is None:
            continue
        sizes: list[Size] = []
        for axis, dim in enumerate(value.shape):
            name = _spelled(value, axis)
            means = meanings.get(name, set())
            if isinstance(dim, int):
                sizes.append(dim)
            elif len(means) == 1 and name:
                sizes.append(next(iter(means)))
            elif means or not name or symbols(parse(name)) & taken:
                sizes.append(symbol(f"{value.name}#{axis}"))
            else:
                sizes.append(parse(name))
        found[value] = tuple(sizes)
    return found


def _by_purpose(value: ir.Value, tokens: bool, calls: Size, total: Size | None) -> list[Size | None]:
    """Dims of tokens, mask, positions or embeddings; None for one of its own, and no dims for other inputs."""
    rank, name, batch = len(value.shape or ()), str(value.name), symbol(BATCH)
    if "mask" in name and rank == 2:
        return [batch, total]
    if "mask" in name and rank == 4:
        return [batch, None, calls, total]
    if tokens or ("position" in name and rank == 2 and _is_integer(value)):
        return [batch, calls]
    if "embed" in name and rank == 3:
        return [batch, calls, None]
    return []


def _tokens(inputs: Sequence[ir.Value]) -> ir.Value | None:
    """The input of token ids: the first integer matrix that is neither mask nor positions."""
    for value in inputs:
        other = any(word in str(value.name) for word in ("mask", "position"))
        if not other and _is_integer(value) and value.shape is not None and len(value.shape) == 2:
            return value
    return None


def _is_integer(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.INT64, ir.DataType.INT32)


def _is_cache(value: ir.Value) -> bool:
    """Keys or values of the past: floats ``[B, K, P, D]``, or ``[2, B, K, P, D]`` with both."""
    shape, name = value.shape, str(value.name)
    if shape is None or len(shape) not in (4, 5):
        return False
    if value.dtype is None or not value.dtype.is_floating_point():
        return False
    return isinstance(shape[-3], int) and not any(word in name for word in ("mask", "bias"))


def _declared(value: ir.Value, axis: int) -> int | str:
    dim = None if value.shape is None else value.shape[axis]
    return dim if isinstance(dim, int) else _spelled(value, axis)


def _spelled(value: ir.Value, axis: int) -> str:
    """What the file calls a dim; empty for one without a name."""
    dim = None if value.shape is None else value.shape[axis]
    return "" if dim is None or isinstance(dim, int) or dim.value is None else dim.value
