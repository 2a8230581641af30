"""Chooses the codes of a model product by product, each on what the quantized ones before it give.

For each piece of the graph, which begins with products of known inputs: take the second moment of those inputs,
choose codes (`calibration.quantization.gptq`), and run the piece with the runtime's own kernels on those codes. So
codes answer for the errors of everything before them, int8 activations included, and each product runs once. Memory
holds one piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibration import collecting
from calibration.collecting import Stream
from calibration.journal import Journal
from calibration.progress import Advance
from calibration.quantization import gptq
from calibration.quantization.sites import Site
from calibration.quantization.tensors import CHUNK, Coder, Filed
from calibration.quantization.weight_only import pieces, quantize_weights
from calibration.scheme import TABLE, Gptq, Grid, WeightOnly
from calibration.segments import Segment, cut
from calibration.statistics.hessian import Hessian, product
from calibration.threads import in_order, single_threaded_blas
from exporter.block_codes import Coded
from exporter.weights import Weight

WIDE = 8
"""Bits at which a table is rounded to nearest: nothing is left to gain."""
TABLE_DAMPING = 0.1
"""Damping of a table's objective. Its codes serve lookups too, where an error in any column counts alike, so it is more
than that of other products."""


def calibrate(
    model: ir.Model, scheme: Gptq, tokens: np.ndarray, folder: Path, advance: Advance, key: str = ""
) -> dict[str, list[Coder | None]]:
    """The codes of every product inside a layer, and of a table narrower than `WIDE`.

    Args:
        model: a float decoder as passes leave it; it is not changed.
        tokens: int64 ``[N, S]``, every one real.
        folder: scratch; the codes stay in it until the model has been written. What a run that was killed has left
            there is gone on from (`calibration.journal`).
        key: of model, scheme and tokens: another one starts afresh.

    Returns:
        Coders for `quantize_weights`, by the name of the matrix.
    """
    journal = Journal(folder, key)
    stream = journal.resume(Stream(tokens, folder))
    segments = cut(model, at="products")
    coders: dict[str, list[Coder | None]] = {}
    with single_threaded_blas():
        for i, segment in enumerate(segments[:-1]):
            own = _coders(segment, scheme, folder)
            coders |= own
            if i < journal.done:
                continue
            advance(i, len(segments) - 1, segment.name)
            _choose(segment, scheme, own, stream)
            quantize_weights(segment.model, scheme, own)
            forward(segment, stream, folder)
            journal.note({}, stream)
        head = _head(segments[-1], scheme, folder)
        if head is not None:
            site, coder, grid = head
            if journal.done < len(segments):
                advance(len(segments) - 1, len(segments), "head")
                inputs = moments(segments[-1], stream)[str(site.input.name)].finish()
                objective = gptq.objective(inputs, TABLE_DAMPING, site.role)
                fill_file(coder, site.weight, grid, objective, str(site.table.name))
                journal.note({}, stream)
            coders[str(site.table.name)] = [coder]
    stream.close()
    return coders


def _head(segment: Segment, scheme: Gptq, folder: Path) -> tuple[Site, Filed, Grid] | None:
    """The product with the table, where its codes are chosen, and where they lie."""
    site = next((site for site in segment.sites() if site.kind == "multiply"), None)
    grid = scheme.grid_of(TABLE)
    if site is None or grid is None or grid.bits >= WIDE:
        return None
    rows, columns = site.weight.shape
    return site, Filed(grid.format, (rows, columns), folder / segment.name), grid


def _coders(segment: Segment, scheme: Gptq, folder: Path) -> dict[str, list[Coder | None]]:
    """Where the codes of a piece's products lie, or will."""
    sites = [site for site in segment.sites() if site.kind == "multiply"]
    return {
        str(site.table.name): list(filed(site, scheme, folder / f"{segment.name}.{n}"))
        for n, site in enumerate(sites)
    }


def filed(site: Site, scheme: WeightOnly, stem: Path) -> Iterator[Filed | None]:
    """Files for the codes of a product's pieces, None where one stays float."""
    for i, (weight, grid) in enumerate(pieces(site, scheme)):
        rows, columns = weight.shape
        file = stem.with_name(f"{stem.name}.{i}")
        yield None if grid is None else Filed(grid.format, (rows, columns), file)


def _choose(
    segment: Segment, scheme: Gptq, coders: Mapping[str, Sequence[Coder | None]], stream: Stream
) -> None:
    sites = {str(site.table.name): site for site in segment.sites() if site.kind == "multiply"}
    if not sites:
        return
    inputs = moments(segment, stream)
    prepared: dict[str, gptq.Objective] = {}
    for name, site in sites.items():
        source = str(site.input.name)
        if source not in prepared:
            prepared = {source: gptq.objective(inputs[source].finish(), scheme.damping, site.role)}
        fill(coders[name], site, scheme, prepared[source])


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


def fill(coders: Sequence[Coder | None], site: Site, scheme: WeightOnly, inputs: gptq.Objective) -> None:
    """Choose the codes of a product's pieces into their files."""
    for coder, (weight, grid) in zip(coders, pieces(site, scheme), strict=True):
        if isinstance(coder, Filed) and grid is not None:
            fill_file(coder, weight, grid, inputs, str(site.table.name))


def fill_file(coder: Filed, weight: Weight, grid: Grid, inputs: gptq.Objective, name: str) -> None:
    """Choose a weight's codes, some rows at a time, into their files; the name is for errors."""
    coder.clear()

    def coded(rows: tuple[int, int]) -> Coded:
        return gptq.quantize(weight.rows(*rows), inputs, grid, name, rows[0])

    for some in in_order(coded, weight.pieces(CHUNK)):
        coder.append(some)


def forward(segment: Segment, stream: Stream, folder: Path) -> None:
    """Run a segment as it is now, and leave what later ones need."""
    piece = collecting.load(segment, segment.outgoing, folder / "piece")
    for batch, values in collecting.run(piece, segment, stream):
        stream.put(batch, {name: values[name] for name in segment.outgoing})
    stream.advance(segment.passing)
