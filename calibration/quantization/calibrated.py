"""Chooses the codes of a model layer by layer, each on what the quantized layers before it give.

For each layer: run it in float on what has come so far and collect the second moment of every product's inputs;
choose codes (`calibration.quantization.gptq`); run the layer again with the runtime's own kernels on those codes. So a
layer's codes answer for the errors of the layers before, int8 activations included. Memory holds one layer.
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
from calibration.statistics.hessian import Hessian
from exporter.weights import BlockFormat, Weight

Advance = Callable[[int, int, str], None]
"""Told how many layers of how many are done, and what is being done."""


def calibrate(
    model: ir.Model, scheme: Gptq, tokens: np.ndarray, folder: Path, advance: Advance
) -> dict[str, list[Coder]]:
    """The codes of every product inside a layer.

    Args:
        model: a float decoder as passes leave it; it is not changed.
        tokens: int64 ``[N, S]``, every one real.
        folder: scratch; the codes stay in it until the model has been written.

    Returns:
        Coders for `quantize_weights`, by the name of the matrix.
    """
    stream = Stream(tokens, folder)
    segments = cut(model)
    coders: dict[str, list[Coder]] = {}
    for i, segment in enumerate(segments[:-1]):
        advance(i, len(segments) - 1, segment.name)
        chosen = _choose(segment, scheme, stream, folder)
        quantize_weights(segment.model, scheme, chosen)
        _forward(segment, stream, folder)
        coders |= chosen
    return coders


def _choose(segment: Segment, scheme: Gptq, stream: Stream, folder: Path) -> dict[str, list[Coder]]:
    sites = {str(site.table.name): site for site in segment.sites() if site.kind == "multiply"}
    if not sites:
        return {}
    inputs = collect(segment, stream, folder)
    chosen: dict[str, list[Coder]] = {}
    prepared: dict[str, gptq.Objective] = {}
    for n, (name, site) in enumerate(sites.items()):
        source = str(site.input.name)
        if source not in prepared:
            prepared = {source: gptq.objective(inputs[source].finish(), scheme.damping, site.role)}
        chosen[name] = [
            _quantized(weight, grid, prepared[source], site, folder / f"{segment.name}.{n}.{i}")
            for i, (weight, grid) in enumerate(pieces(site, scheme))
        ]
    return chosen


def collect(segment: Segment, stream: Stream, folder: Path) -> dict[str, Hessian]:
    """The second moments of the inputs of a segment's products, by the inputs' names."""
    wanted = dict.fromkeys(collecting.taps(segment).values())
    piece = collecting.load(
        segment, [name for name in wanted if name not in segment.incoming], folder / "piece"
    )
    found: dict[str, Hessian] = {}
    for _, values in collecting.run(piece, segment, stream):
        for name in wanted:
            known = found.get(name) or Hessian.empty(values[name].shape[-1])
            found[name] = known.add(values[name])
    return found


def _quantized(weight: Weight, grid: Grid, inputs: gptq.Objective, site: Site, stem: Path) -> Filed:
    rows, columns = weight.shape
    coder = Filed(BlockFormat(grid.bits, grid.block_size, False, "float16"), (rows, columns), stem)
    for start, stop in weight.pieces(CHUNK):
        coder.append(gptq.quantize(weight.rows(start, stop), inputs, grid, str(site.table.name), start))
    return coder


def _forward(segment: Segment, stream: Stream, folder: Path) -> None:
    """Run a segment as it is now, and leave what later ones need."""
    piece = collecting.load(segment, segment.outgoing, folder / "piece")
    for batch, values in collecting.run(piece, segment, stream):
        stream.put(batch, {name: values[name] for name in segment.outgoing})
    stream.advance(segment.passing)
