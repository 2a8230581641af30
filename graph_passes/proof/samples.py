"""Data for the two sides of a witness: small, valid by the graph's contract, the same for both.

Floats are random, integers follow from one attention mask. Weights are drawn instead of read: a pass never sees
what is in them, so what holds for one content holds for all; an expression over weights (stacked, transposed)
is computed from what was drawn.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from exporter.weight_tensor import WeightTensor
from exporter.weights import Array, Weight
from graph_passes.inference.dims import BATCH, PAST, SEQUENCE, evaluate, symbols
from graph_passes.matching import SMALL
from graph_passes.proof.evaluate import CannotEvaluate
from graph_passes.proof.keys import Facts, leaf_id, parts_of
from graph_passes.proof.subgraph import NodeSnapshot, Subgraph
from graph_passes.proof.witness import Witness

LIMIT = 64 << 20
"""Bytes that the data of one witness may take."""

SLICED = 1 << 20
"""Bytes from which on a weight is cut to `COLUMNS` where that changes nothing but the size of a sum."""

COLUMNS = 32
"""Terms that are left of a long sum."""

Draw = Callable[[tuple[int, ...], np.random.Generator], np.ndarray]


class TooLarge(CannotEvaluate):
    """The data would take more than `LIMIT`."""


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What a call of the model says.

    Attributes:
        batch: B.
        tokens: S.
        past: tokens in the cache.
        lengths: tokens of each row that are real, the rest is padding on the right; all of them where empty.
    """

    batch: int
    tokens: int
    past: int
    lengths: tuple[int, ...] = ()
    kept: int = 2

    @property
    def total(self) -> int:
        return self.past + self.tokens

    def attention_mask(self) -> np.ndarray:
        """int64 ``[B, T]``."""
        lengths = self.lengths or (self.total,) * self.batch
        return (np.arange(self.total) < np.array(lengths)[:, None]).astype(np.int64)


PLAIN = Scenario(2, 3, 4)
MASKED = (Scenario(2, 5, 0, (5, 3)), Scenario(1, 3, 4), Scenario(2, 1, 4, kept=1))
"""A padded prompt; more tokens after a cache; one token for each row after a cache."""

WITHOUT_CACHE = (Scenario(2, 5, 0, (5, 3)), Scenario(2, 4, 0))


def scenarios(witness: Witness) -> tuple[Scenario, ...]:
    """What is worth trying: several calls where the mask matters, one where it does not."""
    masks = [value for value in witness.inputs if _role(value) == "mask"]
    if not masks:
        return (PLAIN,)
    sizes = [size for mask in masks for size in witness.facts[mask].dims or ()]
    return MASKED if any(PAST in symbols(size) for size in sizes) else WITHOUT_CACHE


def _role(value: ir.Value) -> str:
    """What a graph input is, by the name and shape that the contract or an exporter gives it."""
    if not value.is_graph_input():
        return ""
    name, rank = str(value.name), len(value.shape or ())
    for part in ("mask", "position", "keep", "seqlens", "total"):
        if part in name:
            return part
    if rank >= 4:
        return "past"
    return "tokens" if rank == 2 and value.dtype in (ir.DataType.INT64, ir.DataType.INT32) else ""


# Lengths ------------------------------------------------------------------------------------------


def concrete(facts: Facts, scenario: Scenario) -> tuple[int, ...]:
    """A shape in numbers. A symbol that the scenario says nothing of has the length of the kept logits.

    Raises:
        CannotEvaluate: the rank or type is not known.
    """
    if facts.dims is None or facts.dtype is None:
        raise CannotEvaluate("type and shape of what it reads are not known")
    known = {BATCH: scenario.batch, SEQUENCE: scenario.tokens, PAST: scenario.past}
    lengths = {
        name: known.get(name, min(scenario.kept, scenario.tokens)) for d in facts.dims for name in symbols(d)
    }
    return tuple(evaluate(dim, lengths) for dim in facts.dims)


# Values -------------------------------------------------------------------------------------------


def integers(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Small integers other than 0, whose sums are exact in any order."""
    return rng.choice(np.array([-3, -2, -1, 1, 2, 3], np.float32), shape)


def reals(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Normal numbers; rows of the last axis differ in scale, so that an epsilon shows."""
    drawn = rng.standard_normal(shape, np.float32)
    if len(shape) >= 2:
        rows = np.exp2(rng.integers(-9, 2, (*shape[:-1], 1))).astype(np.float32)
        drawn *= rows
    return drawn


def weights(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Matrices that keep a norm; vectors away from 0 and 1."""
    drawn = rng.standard_normal(shape, np.float32)
    return drawn / np.float32(math.sqrt(shape[-1])) if len(shape) >= 2 else drawn + np.float32(0.5)


@dataclasses.dataclass(frozen=True)
class Sample:
    """What is fed to both sides."""

    feeds: Mapping[ir.Value, np.ndarray]
    scenario: Scenario

    def feeds_of(self, piece: Subgraph) -> dict[ir.Value, np.ndarray]:
        """What one side reads."""
        read = dict.fromkeys((*piece.inputs, *piece.initializers()))
        return {value: self.feeds[value] for value in read if value in self.feeds}


def sample(witness: Witness, scenario: Scenario, *, exact: bool, read: bool = False) -> Sample:
    """Data for a witness in a scenario.

    Args:
        exact: small integers instead of normal numbers.
        read: the weights' own contents.

    Raises:
        CannotEvaluate: for a shape that is not known; `TooLarge`.
    """
    rng = np.random.default_rng(0)
    sliced = {} if read else sliceable(witness)
    feeds: dict[ir.Value, np.ndarray] = {}
    budget = LIMIT
    for value in witness.inputs:
        facts = witness.facts[value]
        shape = list(concrete(facts, scenario))
        if value in sliced:
            shape[sliced[value]] = COLUMNS
        if math.prod(shape) > budget // 8:  # what is drawn is made of doubles
            raise TooLarge(f"{value.name} takes more than {LIMIT >> 20} MiB")
        feeds[value] = _fed(value, facts, tuple(shape), scenario, exact, rng)
        budget -= feeds[value].nbytes
    pieces = (witness.before, witness.after)
    leaves: dict[object, np.ndarray] = {}
    for value in dict.fromkeys(v for piece in pieces for v in piece.initializers()):
        if value.is_graph_input():
            feeds[value] = _default(value, scenario)
            continue
        if not _is_drawn(value) or read:
            budget -= value.const_value.nbytes if value.const_value is not None else 0
        else:
            feeds[value] = _drawn(
                value, sliced.get(value), integers if exact else weights, rng, leaves, budget
            )
            budget -= feeds[value].nbytes
        if budget < 0:
            raise TooLarge(f"its data takes more than {LIMIT >> 20} MiB")
    return Sample(feeds, scenario)


def _fed(
    value: ir.Value,
    facts: Facts,
    shape: tuple[int, ...],
    scenario: Scenario,
    exact: bool,
    rng: np.random.Generator,
) -> np.ndarray:
    assert facts.dtype is not None
    dtype = facts.dtype.numpy()
    role = _role(value)
    mask = scenario.attention_mask()
    if facts.is_float and role != "mask":
        return (integers if exact else reals)(shape, rng).astype(dtype)
    if role == "mask" and shape == mask.shape:
        return mask.astype(dtype)
    if role == "position":
        counted: np.ndarray = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, scenario.past :]
        return np.broadcast_to(counted if len(shape) > 1 else counted[0], shape).astype(dtype)
    if role == "seqlens":
        lengths: np.ndarray = mask.sum(axis=1) - 1
        return lengths.astype(dtype).reshape(shape)
    if role == "total":
        return np.full(shape, scenario.total, dtype)
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(np.bool_)
    return rng.integers(0, 8, shape).astype(dtype)


def _default(value: ir.Value, scenario: Scenario) -> np.ndarray:
    """Of an input that need not be fed: the logits to keep, or what the graph says."""
    tensor = value.const_value
    assert tensor is not None
    own = tensor.numpy()
    return np.full(own.shape, scenario.kept, own.dtype) if _role(value) == "keep" else own


# Weights ------------------------------------------------------------------------------------------


def _is_drawn(value: ir.Value) -> bool:
    """Whether a pass cannot have seen what is in an initializer."""
    tensor = value.const_value
    if tensor is None or value.dtype is None or not Facts.of(value).is_float:
        return False
    return isinstance(tensor, ir.LazyTensor) or tensor.nbytes > SMALL


def _drawn(
    value: ir.Value,
    axis: int | None,
    draw: Draw,
    rng: np.random.Generator,
    leaves: dict[object, np.ndarray],
    budget: int,
) -> np.ndarray:
    tensor = value.const_value
    assert tensor is not None and value.dtype is not None
    size = tensor.nbytes if axis is None else tensor.nbytes // tensor.shape.numpy()[axis] * COLUMNS
    if size > budget:
        raise TooLarge(f"{value.name} takes {size >> 20} MiB")
    dtype = value.dtype.numpy()
    if isinstance(tensor, WeightTensor):
        columns = None if axis is None else COLUMNS
        array = _expression(tensor.weight, columns, draw, rng, leaves).read()
        return (np.ascontiguousarray(array.T) if tensor.transpose else array).astype(dtype)
    shape = list(tensor.shape.numpy())
    if axis is not None:
        shape[axis] = COLUMNS
    if id(tensor) not in leaves:
        leaves[id(tensor)] = draw(tuple(shape), rng)
    return leaves[id(tensor)].astype(dtype)


def _expression(
    weight: Weight,
    columns: int | None,
    draw: Draw,
    rng: np.random.Generator,
    leaves: dict[object, np.ndarray],
) -> Weight:
    """The same expression over leaves that were drawn, each once."""
    if parts_of(weight):
        assert dataclasses.is_dataclass(weight)
        changed = {}
        for field in dataclasses.fields(weight):
            part = getattr(weight, field.name)
            if isinstance(part, Weight):
                changed[field.name] = _expression(part, columns, draw, rng, leaves)
            elif isinstance(part, tuple) and part and isinstance(part[0], Weight):
                changed[field.name] = tuple(_expression(p, columns, draw, rng, leaves) for p in part)
        return dataclasses.replace(weight, **changed)
    key = leaf_id(weight)
    if key not in leaves:
        shape = weight.shape if columns is None else (weight.shape[0], columns)
        leaves[key] = draw(shape, rng)
    return Array(leaves[key])


def sliceable(witness: Witness) -> dict[ir.Value, int]:
    """Large weights, with the axis of a sum that can be made short, and what they are multiplied with.

    An input that only products read, each with a weight that only such products read, may have fewer columns
    if all these weights have as many rows.
    """
    snapshots = (*witness.before.nodes, *witness.after.nodes)
    outputs = {*witness.before.outputs, *witness.after.outputs}
    readers: dict[ir.Value, list[tuple[NodeSnapshot, int]]] = {}
    for snapshot in snapshots:
        for i, value in enumerate(snapshot.inputs):
            if value is not None:
                readers.setdefault(value, []).append((snapshot, i))
    turned = {
        snapshot.outputs[0]: snapshot.inputs[0]
        for snapshot in snapshots
        if snapshot.op_type == "Transpose"
        and snapshot.inputs[0] is not None
        and _is_weight(snapshot.inputs[0])
    }
    found: dict[ir.Value, int] = {}
    for value in witness.inputs:
        weights_of = [_contracted(snapshot, i, turned) for snapshot, i in readers.get(value, ())]
        known = [pair for pair in weights_of if pair is not None]
        if len(known) < len(weights_of) or value in outputs or not known:
            continue
        if max(w.const_value.nbytes for w, _ in known if w.const_value is not None) < SLICED:
            continue
        lhs = {value}
        if all(_only_products(w, readers, turned, lhs) for w, _ in known):
            found[value] = -1
            found.update(known)
    return found


def _is_weight(value: ir.Value) -> bool:
    return value.const_value is not None and len(value.shape or ()) == 2 and _is_drawn(value)


def _contracted(
    snapshot: NodeSnapshot, i: int, turned: Mapping[ir.Value, ir.Value | None]
) -> tuple[ir.Value, int] | None:
    """The weight that input i is multiplied with, and the weight's axis that is summed over."""
    if i != 0 or snapshot.op_type not in ("MatMul", "FusedMatMul") or snapshot.inputs[1] is None:
        return None
    weight, axis = snapshot.inputs[1], 0
    flags = {attribute.name: attribute.value for attribute in snapshot.attributes}
    if flags.get("transA", 0) or flags.get("transBatchA", 0) or flags.get("transBatchB", 0):
        return None
    if flags.get("transB", 0):
        axis = 1
    source = turned.get(weight)
    if source is not None:
        weight, axis = source, 1 - axis
    if not _is_weight(weight) or _mixes_columns(weight, axis):
        return None
    return weight, axis


def _mixes_columns(weight: ir.Value, axis: int) -> bool:
    """Whether the summed axis of a weight is not that of its leaves' columns."""
    tensor = weight.const_value
    if not isinstance(tensor, WeightTensor):
        return False
    waiting = [tensor.weight]
    while waiting:
        part = waiting.pop()
        if type(part).__name__ == "Transposed":
            return True
        waiting.extend(parts_of(part))
    return axis != (0 if tensor.transpose else 1)


def _only_products(
    weight: ir.Value,
    readers: Mapping[ir.Value, Sequence[tuple[NodeSnapshot, int]]],
    turned: Mapping[ir.Value, ir.Value | None],
    lhs: set[ir.Value],
) -> bool:
    for snapshot, i in readers.get(weight, ()):
        if snapshot.op_type == "Transpose":
            if not _only_products(snapshot.outputs[0], readers, turned, lhs):
                return False
        elif i != 1 or snapshot.op_type not in ("MatMul", "FusedMatMul") or snapshot.inputs[0] not in lhs:
            return False
    return True
