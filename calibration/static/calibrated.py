"""Static 8 bits chosen product by product, each on what the quantized ones before it give.

For each piece of the graph, which begins with products of known inputs: find the range of those inputs, choose codes
for the least error on the rounded inputs, and run the piece in integers. So ranges and codes answer for the errors of
everything before them. For a static product the objective is that of its own arithmetic,

    min ‖W·X − Ŵ·X̂‖,  X̂ = DQ(Q(X)),  taken as  min tr((W − Ŵ)·H·(W − Ŵ)ᵀ)  with  H = X̂·X̂ᵀ / T,

by GPTQ with one scale a channel (`calibration.quantization.gptq`; Frantar et al. 2022, arXiv 2210.17323).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibration.collecting import Stream
from calibration.int8 import LARGEST
from calibration.journal import Journal
from calibration.progress import Advance
from calibration.quantization import gptq
from calibration.quantization.calibrated import filed, fill, forward, moments
from calibration.quantization.sites import Site
from calibration.quantization.tensors import CHUNK, Coder
from calibration.quantization.weight_only import Coders, quantize_weights
from calibration.scheme import Gptq, Grid, Static
from calibration.segments import Segment, cut
from calibration.static.codes import ChannelCodes, ChosenCodes
from calibration.static.qdq import Range, is_static, quantize_products, rounded_to, rows_rounded
from calibration.statistics.hessian import Hessian, product
from calibration.statistics.histogram import Histogram
from calibration.threads import in_order, single_threaded_blas

SAMPLED = 4
"""Of so many tokens one is counted for a range."""


@dataclasses.dataclass(frozen=True)
class Channels(Grid):
    """8 bits with one scale for a whole row, −127 … 127."""

    @property
    def low(self) -> int:
        return -LARGEST

    @classmethod
    def of(cls, columns: int) -> Channels:
        """For rows of so many columns."""
        return cls(8, max(16, 1 << (columns - 1).bit_length()))


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What was chosen for a model.

    Attributes:
        ranges: of the inputs of static products, by name.
        codes: of static products, by the name of the matrix.
        coders: of the other products, for `quantize_weights`.
    """

    ranges: Mapping[str, Range]
    codes: Mapping[str, ChannelCodes]
    coders: Coders

    def and_also(self, other: Chosen) -> Chosen:
        """Both, of different products."""
        return Chosen(
            {**self.ranges, **other.ranges}, {**self.codes, **other.codes}, {**self.coders, **other.coders}
        )

    def ranges_of(self, sites: Sequence[Site]) -> dict[ir.Value, Range]:
        """Ranges by value, of the inputs that have one."""
        known = ((site.input, self.ranges.get(str(site.input.name))) for site in sites)
        return {value: ends for value, ends in known if ends is not None}


def calibrate(
    model: ir.Model,
    scheme: Static,
    tokens: np.ndarray,
    folder: Path,
    advance: Advance,
    others: Collection[str] = (),
    key: str = "",
) -> Chosen:
    """Ranges and codes of every product inside a layer.

    Args:
        model: a float decoder as passes leave it; it is not changed.
        tokens: int64 ``[N, S]``, every one real.
        folder: scratch; the codes stay in it until the model has been written. What a run that was killed has left
            there is gone on from (`calibration.journal`).
        others: roles that are to be static beyond those that always are.
        key: of model, scheme and tokens: another one starts afresh.
    """
    journal = Journal(folder, key)
    stream = journal.resume(Stream(tokens, folder))
    segments = cut(model, at="products")
    chosen = Chosen({}, {}, {})
    with single_threaded_blas():
        for i, segment in enumerate(segments[:-1]):
            sites = [site for site in segment.sites() if site.kind == "multiply"]
            own = _files(segment, sites, scheme, folder, others)
            if i < journal.done:
                chosen = chosen.and_also(own)
                continue
            advance(i, len(segments) - 1, segment.name)
            static = [site for site in sites if is_static(site, others)]
            ranged = dict.fromkeys(str(site.input.name) for site in static if site.role not in others)
            own = dataclasses.replace(own, ranges={name: _range(name, stream) for name in ranged})
            _choose(segment, sites, scheme, own, stream)
            quantize_products(segment.model, static, own.ranges_of(static), own.codes)
            quantize_weights(segment.model, scheme, own.coders)
            forward(segment, stream, folder)
            journal.note(own.ranges, stream)
            chosen = chosen.and_also(own)
    stream.close()
    ranges = {name: (float(low), float(high)) for name, (low, high) in journal.found.items()}
    return dataclasses.replace(chosen, ranges=ranges)


def _files(
    segment: Segment, sites: Sequence[Site], scheme: Static, folder: Path, others: Collection[str]
) -> Chosen:
    """Where the codes of a piece's products lie, or will; nothing is known of their inputs."""
    codes: dict[str, ChannelCodes] = {}
    coders: dict[str, list[Coder | None]] = {}
    for n, site in enumerate(sites):
        name, stem = str(site.table.name), folder / f"{segment.name}.{n}"
        if is_static(site, others):
            rows, columns = site.weight.shape
            codes[name] = ChosenCodes(name.removesuffix(".weight"), (rows, columns), stem)
        else:
            coders[name] = list(filed(site, scheme, stem))
    return Chosen({}, codes, coders)


def _choose(segment: Segment, sites: Sequence[Site], scheme: Static, own: Chosen, stream: Stream) -> None:
    damping = Gptq(scheme.layers, scheme.table).damping
    for site in sites:
        source, name = str(site.input.name), str(site.table.name)
        codes = own.codes.get(name)
        moment = (
            moments(segment, stream)[source]
            if codes is None
            else _rounded_moment(source, own.ranges.get(source), stream)
        )
        inputs = gptq.objective(moment.finish(), damping, site.role)
        if isinstance(codes, ChosenCodes):
            _fill_channels(codes, site, inputs)
        else:
            fill(own.coders[name], site, scheme, inputs)


def _range(name: str, stream: Stream) -> Range:
    found = Histogram.empty()
    for batch in range(len(stream.batches)):
        value = stream.feeds(batch, [name])[name]
        found.add(value.reshape(-1, value.shape[-1])[batch % SAMPLED :: SAMPLED])
    return found.finish().least_error()


def _rounded_moment(name: str, ends: Range | None, stream: Stream) -> Hessian:
    """The second moment of inputs as the product sees them."""

    def rounded(batch: int) -> np.ndarray:
        value = stream.feeds(batch, [name])[name]
        return rows_rounded(value) if ends is None else rounded_to(value, ends)

    moment: Hessian | None = None
    for found, count in in_order(lambda batch: product(rounded(batch)), range(len(stream.batches))):
        moment = (moment or Hessian.empty(len(found))).add_product(found, count)
    assert moment is not None
    return moment


def _fill_channels(chosen: ChosenCodes, site: Site, inputs: gptq.Objective) -> None:
    weight, name = site.weight, str(site.table.name)
    grid = Channels.of(weight.shape[1])
    chosen.clear()
    work = in_order(
        lambda ab: gptq.quantize(weight.rows(*ab), inputs, grid, name, ab[0]), weight.pieces(CHUNK)
    )
    for coded in work:
        scale = coded.scale[:, 0].astype(np.float32)
        codes = (coded.codes.astype(np.int16) - LARGEST) * np.where(scale < 0, -1, 1)[:, None]
        chosen.append(codes.astype(np.int8), np.abs(scale))
