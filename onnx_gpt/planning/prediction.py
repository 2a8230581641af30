"""What a plan expects of a bundle, as a recipe carries it, and what came of it, as a report says it."""

from __future__ import annotations

from typing import Any

import pydantic

from onnx_gpt.report import Parity

CONTEXT = 512
"""Tokens of the prompt, and before the steps, that speeds are stated for."""


class Estimate(pydantic.BaseModel):
    """A figure, the range that it is claimed to lie in, and what it rests on."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
    value: float
    low: float
    high: float
    basis: str

    @classmethod
    def within(cls, value: float, share: float, basis: str) -> Estimate:
        """A figure that is right to a share of itself."""
        return cls(value=value, low=value * (1 - share), high=value * (1 + share), basis=basis)

    def holds(self, measured: float) -> bool:
        return self.low <= measured <= self.high


class Predicted(pydantic.BaseModel):
    """The section ``[predicted]`` of a recipe.

    Attributes:
        device: whose tables speeds come from.
        before: commands that make the checkpoint which the recipe is for; none where that is the source itself.
        size: bytes of the model's graph and weights.
        kl: mean KL of the finished model from the float source, nats a token.
        own_kl: of that, what the recipe does to the checkpoint that it is given.
        decode: tokens a second after 512; None where the device was never measured.
        prompt: tokens a second of a prompt of 512; likewise.
        memory: bytes of the process, at its peak, with a cache of 512 tokens; likewise.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
    device: str
    before: tuple[str, ...] = ()
    size: Estimate
    kl: Estimate
    own_kl: Estimate
    decode: Estimate | None = None
    prompt: Estimate | None = None
    memory: Estimate | None = None

    def against(self, size: int, parity: Parity | str) -> dict[str, Any]:
        """For the report: each figure with what was measured while the bundle was made, and whether it held.

        Speed and memory are measured by `onnx_gpt.bench`, not here.
        """
        outcomes = {"size": float(size)}
        if isinstance(parity, Parity):
            outcomes["own_kl"] = parity.mean_kl
        found: dict[str, Any] = {"device": self.device}
        for name in ("size", "own_kl", "kl", "decode", "prompt", "memory"):
            estimate = getattr(self, name)
            if estimate is not None:
                measured = outcomes.get(name)
                held = None if measured is None else estimate.holds(measured)
                found[name] = {**estimate.model_dump(), "measured": measured, "held": held}
        return found
