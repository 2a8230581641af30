"""Which input and output of somebody's decoder is which: by the contract's names, else by where values flow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from exporter.control import KEEP
from exporter.errors import OnnxGptError, first_line, rejected
from exporter.onnx_format.reader import read_file
from graph_passes.control.caches import caches_of
from graph_passes.control.interface import interface_of
from graph_passes.inference import facts
from onnx_gpt.exporting import interface_unknown, logits_of
from onnx_gpt.generation.decoder_session import DTYPES

CONTRACT = ("input_ids", "attention_mask", "position_ids", KEEP)
"""Inputs whose names tell what they are (docs/architecture.md)."""
PAST, PRESENT = "past_key_values.", "present."


@dataclasses.dataclass(frozen=True)
class CacheSlot:
    """Keys or values of one layer: the input, the output that it becomes, and the sizes that are fixed (else None)."""

    past: str
    present: str
    shape: tuple[int | None, ...]
    dtype: Any


@dataclasses.dataclass(frozen=True)
class GraphInterface:
    """A decoder's inputs and outputs by name.

    Attributes:
        tokens: int ``[B, S]``.
        mask: ``[B, T]``, 1 for a real token; None where the graph takes none.
        positions: int ``[B, S]``, or None.
        places: int ``[S]``, places in the cache, or None.
        keep: takes ``num_logits_to_keep``.
        slots: the cache, one for the keys and one for the values of each layer.
        axis: of a cache, along which tokens lie.
    """

    tokens: str
    mask: str | None
    positions: str | None
    places: str | None
    keep: bool
    logits: str
    slots: tuple[CacheSlot, ...]
    axis: int = 2


def interface_by_name(session: Any) -> GraphInterface | None:
    """The interface of a graph that uses the contract's names, without reading the graph; None for any other."""
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = [value.name for value in session.get_outputs()]
    defaults = [value.name for value in session.get_overridable_initializers()]
    pasts = [name for name in inputs if name.startswith(PAST)]
    presents = [name.replace(PAST, PRESENT, 1) for name in pasts]
    known = {*CONTRACT, *pasts}
    if not known.issuperset(inputs) or "input_ids" not in inputs or not {"logits", *presents} <= {*outputs}:
        return None
    slots = [_slot(inputs[past], present) for past, present in zip(pasts, presents, strict=True)]
    if any(slot is None for slot in slots):
        return None
    return GraphInterface(
        tokens="input_ids",
        mask="attention_mask" if "attention_mask" in inputs else None,
        positions="position_ids" if "position_ids" in inputs else None,
        places=None,
        keep=KEEP in inputs or KEEP in defaults,
        logits="logits",
        slots=tuple(slot for slot in slots if slot is not None),
    )


def interface_by_flow(path: Path) -> GraphInterface:
    """The interface of any decoder's graph.

    Raises:
        OnnxGptError: ``interface-unknown`` (exit 3); what reading the file raises.
    """
    model = read_file(path)
    found = interface_of(model.graph)
    if isinstance(found, str):
        raise interface_unknown(found)
    facts.annotate(model)
    caches = caches_of(model.graph, found)
    if isinstance(caches, str):
        raise interface_unknown(caches)
    axis = found.past_axis
    slots = []
    for cache in caches:
        told = facts.dims(cache.present) or ()
        shape = tuple(size if isinstance(size, int) and i != axis else None for i, size in enumerate(told))
        assert cache.past.dtype is not None
        slots.append(
            CacheSlot(str(cache.past.name), str(cache.present.name), shape, cache.past.dtype.numpy())
        )
    return GraphInterface(
        tokens=str(found.input_ids.name),
        mask=_name(found.attention_mask),
        positions=_name(found.position_ids),
        places=_name(found.cache_position),
        keep=KEEP in [str(value.name) for value in model.graph.inputs],
        logits=str(logits_of(model.graph).name),
        slots=tuple(slots),
        axis=axis,
    )


def _slot(past: Any, present: str) -> CacheSlot | None:
    """A cache by name, where it lies as the contract has it: ``[B, K, T, D]`` with K and D known."""
    shape: Sequence[Any] = past.shape
    fixed = len(shape) == 4 and isinstance(shape[1], int) and isinstance(shape[3], int)
    if not fixed or past.type not in DTYPES:
        return None
    return CacheSlot(past.name, present, (None, shape[1], None, shape[3]), DTYPES[past.type])


def _name(value: ir.Value | None) -> str | None:
    return None if value is None else str(value.name)


def unloadable(path: Path, error: Exception) -> OnnxGptError:
    """The refusal of a file that onnxruntime does not take."""
    return rejected(
        "model-unloadable",
        f"onnxruntime does not load {str(path)!r}: {first_line(error)}",
        "export the model again",
    )
