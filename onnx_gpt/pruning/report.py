"""What pruning says of itself. Schema `onnx-gpt/prune/1`."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import pydantic

from calibration.threads import in_order
from exporter.checkpoint import Checkpoint
from exporter.stored_weights import STORED_DTYPES, NotFloat
from exporter.variants import LayerSizes
from exporter.weights import Weight
from onnx_gpt.pruning.perplexity import Score
from onnx_gpt.report import Frozen, Stage

SCHEMA = "onnx-gpt/prune/1"
LEVEL = 1
"""Of zlib: what a web server or a package does while it sends."""

ZEROS = (
    "onnxruntime computes zeros like any other number: this model is no faster and takes no less memory than "
    "before. What zeros gain is a smaller download, where it is compressed."
)


class Size(Frozen):
    """Of a model: parameters, bytes of its weights as written, and what zlib makes of them."""

    parameters: int
    nbytes: int
    compressed: int


class Side(Frozen):
    """The model before or after."""

    size: Size
    perplexity: float
    bits_per_byte: float | None
    text_tokens: int


class PruneReport(Frozen):
    """What `prune` returns, and writes to ``report.json``.

    Attributes:
        sparsity: share of zeros by kind of linear map (``ffn.down``), over all layers.
        shares: of zeros, layer by layer, where single weights were pruned.
        layers: sizes of each layer, where they have changed.
        hidden: channels of the residual stream that are left, where some are gone.
        dropped: numbers of the layers that are gone, as they were before.
        vocabulary: tokens that are left, where some are gone.
        perplexity_ratio: after over before. Tokens are others where the vocabulary has changed: compare bits a byte
            then.
    """

    schema_: str = pydantic.Field(default=SCHEMA, alias="schema", serialization_alias="schema")
    version: str
    source: str
    family: str
    recipe: dict[str, Any]
    stages: tuple[Stage, ...]
    calibration: dict[str, Any]
    text: str
    before: Side
    after: Side
    perplexity_ratio: float
    sparsity: dict[str, float]
    shares: tuple[float, ...] = ()
    layers: tuple[LayerSizes, ...] = ()
    hidden: int | None = None
    dropped: tuple[int, ...] = ()
    vocabulary: int | None = None
    variant: bool = False
    notes: tuple[str, ...] = ()

    def json_text(self) -> str:
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


@dataclasses.dataclass(frozen=True)
class Counted:
    """One tensor: elements, zeros among them, and bytes as zlib leaves them."""

    elements: int
    zeros: int
    compressed: int


def counted(weight: Weight, dtype: str) -> Counted:
    """Read a tensor once, a piece at a time, as it would be written."""
    packer = zlib.compressobj(LEVEL)
    elements = zeros = compressed = 0
    for start, stop in weight.pieces():
        rows = weight.rows(start, stop).astype(STORED_DTYPES[dtype])
        elements += rows.size
        zeros += rows.size - int((rows != 0).sum())
        compressed += len(packer.compress(rows.tobytes()))
    return Counted(elements, zeros, compressed + len(packer.flush()))


def counts_of(checkpoint: Checkpoint, dtype: str) -> dict[str, Counted]:
    """Every tensor of a checkpoint by name, but masks and what else holds nothing learned."""
    names = sorted(name for name, weight in checkpoint.weights.items() if not isinstance(weight, NotFloat))
    found = in_order(lambda name: counted(checkpoint.weights[name], dtype), names)
    return dict(zip(names, found, strict=True))


def side(counts: Mapping[str, Counted], dtype: str, score: Score) -> Side:
    """The model before or after, out of what was counted and measured."""
    elements = sum(count.elements for count in counts.values())
    size = Size(
        parameters=elements,
        nbytes=elements * STORED_DTYPES[dtype].itemsize,
        compressed=sum(count.compressed for count in counts.values()),
    )
    return Side(
        size=size,
        perplexity=score.perplexity,
        bits_per_byte=score.bits_per_byte,
        text_tokens=score.tokens,
    )
