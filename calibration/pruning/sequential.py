"""Prunes single weights product by product, each on what the pruned ones before it give.

For each piece of the graph, which begins with products of known inputs: take the second moment of those inputs, set
weights to zero, run the piece. So weights answer for the losses of everything before them, and each product runs
once. What is pruned is every linear map inside a layer; tables, heads and norms stay. Memory holds one piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibration.collecting import Stream
from calibration.progress import Advance
from calibration.pruning.sparsity import Sparsity
from calibration.pruning.weights import Method
from calibration.quantization.calibrated import forward, moments
from calibration.quantization.sites import Site
from calibration.segments import cut
from calibration.threads import in_order, single_threaded_blas
from exporter.stored_weights import Stored
from exporter.weight_tensor import WeightTensor
from exporter.weights import Weight


def prune_weights(
    model: ir.Model,
    method: Method,
    sparsity: Sequence[Sparsity],
    tokens: np.ndarray | None,
    folder: Path,
    advance: Advance,
) -> dict[str, Weight]:
    """Pruned matrices by role, ``layers.3.ffn.down.weight``.

    Args:
        model: a decoder's graph after `calibration.pruning.model.PIPELINE`; it is not changed.
        sparsity: of each layer.
        tokens: int64 ``[N, S]``, every one real; None for a method that reads no text.
        folder: scratch; the matrices lie in it until the checkpoint has been written.
    """
    stream = Stream(tokens, folder) if tokens is not None else None
    segments = cut(model, at="products")[:-1]
    pruned: dict[str, Weight] = {}
    with single_threaded_blas():
        for i, segment in enumerate(segments):
            advance(i, len(segments), segment.name)
            sites = [site for site in segment.sites() if site.kind == "multiply"]
            inputs = moments(segment, stream) if stream is not None and sites else {}
            found = {name: moment.finish() for name, moment in inputs.items()}

            def prune(site: Site, found: Mapping[str, np.ndarray] = found) -> np.ndarray:
                wanted = sparsity[layer_of(site.role)]
                return method.prune(site.weight.read(), found.get(str(site.input.name)), wanted, site.role)

            for site, rows in zip(sites, in_order(prune, sites), strict=True):
                pruned[f"{site.role}.weight"] = replaced(site, filed(rows, folder / f"{site.role}.f32"))
            if stream is not None:
                forward(segment, stream, folder)
    return pruned


def layer_of(role: str) -> int:
    """``layers.3.ffn.down`` ⇒ 3."""
    return int(role.split(".")[1])


def filed(rows: np.ndarray, path: Path) -> Weight:
    """A matrix put into a file: it waits there until the checkpoint is written."""
    np.ascontiguousarray(rows, np.float32).tofile(path)
    return Stored(path, 0, "F32", rows.shape, path.stem)


def replaced(site: Site, weight: Weight) -> Weight:
    """Let a site of a segment multiply by another matrix ``[out, in]``; gives the matrix."""
    tensor = site.table.const_value
    transpose = isinstance(tensor, WeightTensor) and tensor.transpose
    site.table.const_value = WeightTensor(str(site.table.name), weight, transpose=transpose)
    site.table.shape = ir.Shape(weight.shape[::-1] if transpose else weight.shape)
    return weight
