"""Holds a checkpoint against its family's description: no tensor missing, none unused, all shapes right."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from exporter.checkpoint import Checkpoint
from exporter.decoder import Decoder, Part
from exporter.errors import rejected
from exporter.families import describe, family_of
from exporter.stored_weights import NotFloat
from exporter.weight_expressions import Rows, plus, times, transposed
from exporter.weights import Weight

BFLOAT16 = 2.0**-8
"""How far a number may be from another that bfloat16 has rounded, relatively."""


def matched(checkpoint: Checkpoint) -> tuple[Decoder, dict[str, Weight]]:
    """A checkpoint's decoder and its weights by role, as `match_weights` gives them.

    Raises:
        OnnxGptError: ``architecture-unknown`` (exit 3), ``config-invalid``, ``weights-mismatch``.
    """
    decoder = describe(checkpoint)
    return decoder, match_weights(decoder, checkpoint.weights, getattr(family_of(checkpoint), "IGNORED", ()))


def match_weights(
    decoder: Decoder, weights: Mapping[str, Weight], ignored: Iterable[str] = ()
) -> dict[str, Weight]:
    """Weights by role (``layers.3.ffn.down.weight``), read from nowhere yet.

    Args:
        ignored: regular expressions of the names of tensors that hold nothing learned (causal masks).

    Raises:
        OnnxGptError: ``weights-mismatch``, listing all missing, unused and mis-shaped tensors at once, and constants
            that are others than the family's.
    """
    parts = dict(decoder.parts())
    findings = [*_missing_or_misshaped(parts.values(), weights), *_other_constants(decoder, weights)]
    used = {part.name for part in parts.values()} | dict(decoder.constants).keys()
    ignore = [re.compile(pattern) for pattern in ignored]
    for name, weight in weights.items():
        if name in used or any(pattern.fullmatch(name) for pattern in ignore):
            continue
        if decoder.tied and name == "lm_head.weight" and weight.shape == decoder.embedding.stored_shape:
            continue  # some writers store the tied table twice; that it is the same is parity's business
        findings.append(f"unused: {name} {list(weight.shape)}")
    if findings:
        raise rejected(
            "weights-mismatch",
            f"the weights do not fit this {decoder.family} configuration ({len(findings)} findings)",
            "check that config.json and the weight files belong together and are complete",
            tuple(findings),
        )
    return {role: resolve(part, weights[part.name]) for role, part in parts.items()}


def _missing_or_misshaped(parts: Iterable[Part], weights: Mapping[str, Weight]) -> list[str]:
    findings: dict[str, str] = {}
    for part in parts:
        weight = weights.get(part.name)
        if weight is None:
            findings[part.name] = f"missing: {part.name} {list(part.stored_shape)}"
        elif weight.shape != part.stored_shape:
            findings[part.name] = (
                f"shape: {part.name} is {list(weight.shape)}, "
                f"the configuration asks for {list(part.stored_shape)}"
            )
        elif isinstance(weight, NotFloat):
            findings[part.name] = f"dtype: {part.name} is {weight.dtype}, which is not a float type"
    return list(findings.values())


def _other_constants(decoder: Decoder, weights: Mapping[str, Weight]) -> Iterator[str]:
    for name, value in decoder.constants:
        weight = weights.get(name)
        if weight is None:
            continue
        if weight.shape not in ((), (1,)):
            yield f"shape: {name} is {list(weight.shape)}, and is one number in every such model"
        elif not np.allclose(stored := weight.read(), value, rtol=BFLOAT16, atol=0):
            yield f"value: {name} is {stored.item():g}, and {value:g} in every such model"


def resolve(part: Part, weight: Weight) -> Weight:
    """The part's value as an expression over the stored tensor."""
    if part.transposed:
        weight = transposed(weight)
    if part.rows is not None:
        weight = Rows(weight, part.rows)
    if part.plus:
        weight = plus(weight, part.plus)
    if part.times != 1.0:
        weight = times(weight, part.times)
    return weight
