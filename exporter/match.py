"""Holds a checkpoint against its family's description: every tensor named once, none left over, every shape right."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from exporter.decoder import Decoder, Part
from exporter.errors import rejected
from exporter.weights import Plus, Rows, Transposed, Weight


def match_weights(
    decoder: Decoder, weights: Mapping[str, Weight], ignored: Iterable[str] = ()
) -> dict[str, Weight]:
    """Weights by role (``layers.3.ffn.down.weight``), read from nowhere yet.

    Args:
        ignored: regular expressions of tensor names that carry no learned value (causal masks, rotary tables).

    Raises:
        OnnxGptError: ``weights-mismatch``, listing all missing, unused and mis-shaped tensors at once.
    """
    parts = dict(decoder.parts())
    findings = _missing_or_misshaped(parts.values(), weights)
    used = {part.name for part in parts.values()}
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
            f"the weights do not fit the configuration of a {decoder.family} model ({len(findings)} findings)",
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
                f"shape: {part.name} is {list(weight.shape)}, the configuration asks for {list(part.stored_shape)}"
            )
    return list(findings.values())


def resolve(part: Part, weight: Weight) -> Weight:
    """The part's value as an expression over the stored tensor."""
    if part.transposed:
        weight = Transposed(weight)
    if part.rows is not None:
        weight = Rows(weight, part.rows)
    if part.plus:
        weight = Plus(weight, part.plus)
    return weight
