"""The settings of one pruning job, checked before anything is read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

from calibration.pruning.sparsity import Sparsity, invalid, sparsity_of
from calibration.pruning.weights import method_of
from onnx_gpt.recipe import HELD_OUT_TEXT, OWN_TEXT
from onnx_gpt.unread import Read, require_read

Allocation = Literal["searched", "uniform"]
STRUCTURES = ("ffn", "heads", "hidden", "layers", "vocab")
USED = "used"
"""What ``vocab`` may be: the tokens that the calibration text uses."""
FITTED, MAGNITUDE = "fitted", "magnitude"
"""Methods of taking structures out."""


@dataclasses.dataclass(frozen=True)
class Structures:
    """What is taken out.

    Attributes:
        ffn, heads, hidden: shares of the neurons, of the heads and of the residual stream's channels, at least 0 and
            below 1.
        layers: a number of layers from 1 on, or a share of them.
        vocab: whether tokens that the calibration text does not use go.
    """

    ffn: float = 0.0
    heads: float = 0.0
    layers: float = 0.0
    vocab: bool = False
    hidden: float = 0.0

    @property
    def narrows(self) -> bool:
        return self.ffn > 0 or self.heads > 0 or self.hidden > 0


def structures_of(text: str) -> Structures:
    """``ffn=0.25,heads=0.33,hidden=0.1,layers=4,vocab=used``.

    Raises:
        OnnxGptError: ``prune-invalid`` (exit 2).
    """
    found: dict[str, Any] = {}
    for item in text.split(","):
        name, _, value = (part.strip() for part in item.partition("="))
        if name not in STRUCTURES or name in found:
            raise invalid(
                f"{item.strip()!r} is nothing that could be taken out, or is said twice",
                f"give some of {', '.join(STRUCTURES)}, as in ffn=0.25,layers=4,vocab=used",
            )
        found[name] = _vocab(value) if name == "vocab" else _amount(name, value)
    return Structures(**found)


def _vocab(value: str) -> bool:
    if value != USED:
        raise invalid(f"vocab={value} is not known", f"write vocab={USED}, with --calibration")
    return True


def _amount(name: str, value: str) -> float:
    try:
        amount = float(value)
    except ValueError:
        amount = -1.0
    whole = name == "layers" and amount >= 1 and amount.is_integer()
    if not (0 < amount < 1 or whole):
        raise invalid(f"{name}={value} is no share", f"write {name}=0.25, a share above 0 and below 1")
    return amount


@dataclasses.dataclass(frozen=True)
class PruneRecipe:
    """What `onnx_gpt.prune` is to do, declared once: Python and the command line take it from here.

    Attributes:
        sparsity: Share of the weights inside layers that become zero, 0 to 1.
        pattern: N:M keeps N of every M neighbouring weights: 2:4, 4:8.
        structured: What to take out: ffn=SHARE (neurons), heads=SHARE (with what shares their keys), hidden=SHARE
            (channels of the residual stream), layers=NUMBER or SHARE, vocab=used (tokens that --calibration does not
            use go), separated by commas.
        method: sparsegpt, wanda or magnitude for --sparsity, sparsegpt by default. fitted or, to compare, magnitude
            for --structured.
        allocate: searched asks more of layers that can bear it; uniform as much of each. With uniform, the
            feed-forwards of a result are alike and any program can read it; otherwise it may be a variant that only
            onnx-gpt reads.
        calibration: Text that scores are taken from: .txt, .jsonl, .parquet, .npy, a folder. Python's documentation by
            default.
        text: UTF-8 file to measure perplexity on; held-out English of Python's own documentation by default.
        tokens: Tokens to measure it on, at least.
        windows: Windows of calibration text, 512 tokens each where the context holds as many.
        probe: Of these, how many the search measures on.
    """

    sparsity: float | None = None
    pattern: str | None = None
    structured: str | None = None
    method: str | None = None
    allocate: Allocation | None = None
    calibration: Path | None = None
    text: Path | None = None
    tokens: int = 2048
    windows: int = 32
    probe: int = 4

    def __post_init__(self) -> None:
        if self.allocate not in (None, *get_args(Allocation)):
            known = " or ".join(get_args(Allocation))
            raise invalid(f"there is no allocation {self.allocate!r}", f"use {known}")
        if self.structured is None:
            self._check_weights()
        else:
            self._check_structures(self.structured)
        if self.tokens < 1 or self.windows < 1 or self.probe < 1:
            raise invalid("tokens, windows and probe are 1 at least", "give larger numbers")
        require_read(self, READS)

    def _check_weights(self) -> None:
        method_of(self.resolved_method)
        sparsity_of(self.sparsity, self.pattern)
        if self.pattern is not None and self.allocate == "searched":
            raise invalid("a pattern is the same in every layer", "drop --allocate")

    def _check_structures(self, structured: str) -> None:
        wanted = structures_of(structured)
        if self.sparsity is not None or self.pattern is not None:
            raise invalid(
                "single weights and structures are pruned one after the other",
                "take structures out first, then prune the result with --sparsity",
            )
        if self.resolved_method not in (FITTED, MAGNITUDE):
            raise invalid(
                f"structures are not taken out by {self.method!r}", f"use {FITTED}, or {MAGNITUDE} to compare"
            )
        if self.resolved_method == MAGNITUDE and (wanted != Structures(ffn=wanted.ffn) or self.searches):
            raise invalid(
                "magnitude takes neurons out, as many of every layer",
                "give ffn alone, and --allocate uniform",
            )
        if wanted.vocab and self.calibration is None:
            raise invalid(
                "tokens that no text uses can be left out only where a text is given",
                "give --calibration PATH",
            )

    @property
    def resolved_method(self) -> str:
        return self.method or ("sparsegpt" if self.structured is None else FITTED)

    @property
    def structures(self) -> Structures:
        """What is taken out; nothing where single weights are pruned."""
        return Structures() if self.structured is None else structures_of(self.structured)

    @property
    def wanted_sparsity(self) -> Sparsity:
        return sparsity_of(self.sparsity, self.pattern)

    @property
    def searches(self) -> bool:
        """Whether the split over layers is searched."""
        usual = "uniform" if self.pattern is not None or self.resolved_method == MAGNITUDE else "searched"
        return (self.allocate or usual) == "searched"

    @property
    def reads_text(self) -> bool:
        """Whether calibration text is needed."""
        if self.structured is None:
            return self.searches or method_of(self.resolved_method).READS_TEXT
        return self.resolved_method == FITTED

    @property
    def fits(self) -> bool:
        """Whether anything is zeroed or taken out by a method: tokens go by themselves."""
        wanted = self.structures
        return self.structured is None or wanted.narrows or wanted.layers > 0

    @property
    def divides(self) -> bool:
        """Whether layers can lose unequally much."""
        return self.structured is None or self.structures.ffn > 0

    def echo(self) -> dict[str, Any]:
        """Plain values, for people and for the report."""
        what: dict[str, Any] = {"structured": self.structured}
        if self.structured is None:
            what = {"sparsity": self.wanted_sparsity.share} | (
                {"pattern": self.pattern} if self.pattern else {}
            )
        given = str(self.calibration or OWN_TEXT)
        return {
            "method": self.resolved_method,
            **what,
            "allocate": "searched" if self.searches else "uniform",
            **({"calibration": given, "windows": self.windows} if self.reads_text else {}),
            "text": str(self.text or HELD_OUT_TEXT),
            "tokens": self.tokens,
        }


READS = (
    Read(("method",), lambda recipe: recipe.fits, "tokens are taken out without one", "take out more"),
    Read(
        ("allocate",),
        lambda recipe: recipe.divides or recipe.allocate == "uniform",
        "every layer loses as much of what is taken out",
        "take neurons out too, --structured ffn=0.25 say",
    ),
    Read(
        ("calibration", "windows"),
        lambda recipe: recipe.reads_text,
        "magnitude with a uniform split reads no text",
        "choose another --method, or --allocate searched",
    ),
)
"""What reads those settings of a pruning job that not every one reads."""
