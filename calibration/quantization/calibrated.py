"""Chooses the codes of a model product by product, each on what the quantized ones before it give.

For each piece of the graph, which begins with products of known inputs: take the second moment of those inputs,
choose codes (`calibration.quantization.gptq`), and run the piece with the runtime's own kernels on those codes. So
codes answer for the errors of everything before them, int8 activations included, and each product runs once. Memory
holds one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibration import collecting
from calibration.collecting import Stream
from calibration.quantization import gptq
from calibration.quantization.sites import Site
from calibration.quantization.tensors import CHUNK, Coder, Filed
from calibration.quantization.weight_only import pieces, quantize_weights
from calibration.scheme import Gptq, Grid
from calibration.segments import Segment, cut
from calibration.statistics.hessian import Hessian, product
from calibration.threads import in_order, single_threaded_blas
from exporter.weights import BlockFormat, Coded, Weight

Advance = Callable[[int, int, str], None]
"""Told how many layers of how many are done, and what is being done."""


def calibrate(
    model: ir.Model, scheme: Gptq, tokens: np.ndarray, folder: Path, advance: Advance
) -> dict[str, list[Coder | None]]:
    """The codes of every product inside a layer.

    Args:
        model: a float decoder as passes leave it; it is not changed.
        tokens: int64 ``[N, S]``, every one real.
        folder: scratch; the codes stay in it until the model has been written.

    Returns:
        Coders for `quantize_weights`, by the name of the matrix.
    """
    stream = Stream(tokens, folder)
    segments = cut(model, at="products")
    coders: dict[str, list[Coder | None]] = {}
    with single_threaded_blas():
        for i, segment in enumerate(segments[:-1]):
            advance(i, len(segments) - 1, segment.name)
            chosen = _choose(segment, scheme, stream, folder)
            quantize_weights(segment.model, scheme, chosen)
            forward(segment, stream, folder)
            coders |= chosen
    return coders


def _choose(segment: Segment, scheme: Gptq, stream: Stream, folder: Path) -> dict[str, list[Coder | None]]:
    sites = {str(site.table.name): site for site in segment.sites() if site.kind == "multiply"}
    if not sites:
        return {}
    inputs = moments(segment, stream)
    chosen: dict[str, list[Coder | None]] = {}
    prepared: dict[str, gptq.Objective] = {}
    for n, (name, site) in enumerate(sites.items()):
        source = str(site.input.name)
        if source not in prepared:
            prepared = {source: gptq.objective(inputs[source].finish(), scheme.damping, site.role)}
        chosen[name] = [
            None
            if grid is None
            else quantized(weight, grid, prepared[source], site, folder / f"{segment.name}.{n}.{i}")
            for i, (weight, grid) in enumerate(pieces(site, scheme))
        ]
    return chosen


def moments(segment: Segment, stream: Stream) -> dict[str, Hessian]:
    """The second moments of the inputs of a piece's products, by the inputs' names."""
    names = list(dict.fromkeys(collecting.taps(segment).values()))

    def products(batch: int) -> dict[str, tuple[np.ndarray, int]]:
        return {name: product(value) for name, value in stream.feeds(batch, names).items()}

    found: dict[str, Hessian] = {}
    for batch in in_order(products, range(len(stream.batches))):
        for name, (moment, count) in batch.items():
            known = found.get(name) or Hessian.empty(len(moment))
            found[name] = known.add_product(moment, count)
    return found


def quantized(weight: Weight, grid: Grid, inputs: gptq.Objective, site: Site, stem: Path) -> Filed:
    """Choose a weight's codes, a piece of rows at a time, into files."""
    rows, columns = weight.shape
    coder = Filed(BlockFormat(grid.bits, grid.block_size, False, "float16"), (rows, columns), stem)

    def coded(rows: tuple[int, int]) -> Coded:
        return gptq.quantize(weight.rows(*rows), inputs, grid, str(site.table.name), rows[0])

    for some in in_order(coded, weight.pieces(CHUNK)):
        coder.append(some)
    return coder


def forward(segment: Segment, stream: Stream, folder: Path) -> None:
    """Run a segment as it is now, and leave what later ones need."""
    piece = collecting.load(segment, segment.outgoing, folder / "piece")
    for batch, values in collecting.run(piece, segment, stream):
        stream.put(batch, {name: values[name] for name in segment.outgoing})
    stream.advance(segment.passing)
