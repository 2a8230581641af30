"""Products in 8 bits by quantize-dequantize pairs, the form in which every runtime finds its own integer kernels:

    x · Wᵀ + b   ⇒   DQ(Q(x)) · DQ(codes) + b

x is uint8 with one scale and zero point, the codes int8 with a scale for each output channel. onnxruntime runs it as
MatMulIntegerToFloat, in u8·s8 products summed as int32. What several products read is rounded once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from calibration.quantization.sites import Site, site_of
from calibration.static.codes import ChannelCodes, RoundedCodes
from graph_passes.matching import initializer, make, replace

STATIC = frozenset(["q", "k", "v", "qkv", "o", "gate", "up", "gate_up"])
"""Last part of the roles that are always static. down is where it can be: a few tokens give it values in some layers
that are thousands of times as large as all others, so that no scale fits both."""

Range = tuple[float, float]


def static_sites(model: ir.Model, others: Collection[str] = ()) -> list[Site]:
    """The products of a float graph that are to be static, in graph order.

    Args:
        others: roles beyond those that always are.
    """
    sites = [site for site in map(site_of, list(model.graph)) if site is not None]
    return [site for site in sites if is_static(site, others)]


def is_static(site: Site, others: Collection[str] = ()) -> bool:
    """Whether a site is a product that is to be static."""
    named = site.role.rpartition(".")[2] in STATIC or site.role in others
    return site.kind == "multiply" and named


def quantize_products(
    model: ir.Model,
    sites: Sequence[Site],
    ranges: Mapping[ir.Value, Range],
    chosen: Mapping[str, ChannelCodes] | None = None,
) -> None:
    """Rewrite products, in place; weights are read when the file is written.

    Args:
        sites: of `static_sites`.
        ranges: of each site's input: least and greatest value that the grid reaches.
        chosen: codes by the name of the matrix; the others are rounded to nearest.
    """
    graph = model.graph
    rounded: dict[ir.Value, ir.Value] = {}
    for site in sites:
        name = str(site.nodes[0].name)
        new: list[ir.Node] = []
        if site.input not in rounded:
            pair = _rounded(graph, site.input, ranges[site.input], name)
            rounded[site.input] = pair[-1].outputs[0]
            new += pair
        matrix = str(site.table.name)
        weight = (chosen or {}).get(matrix) or RoundedCodes(matrix.removesuffix(".weight"), site.weight)
        factors = [initializer(graph, weight.codes), initializer(graph, weight.scale)]
        wide = make("DequantizeLinear", factors, f"{name}.weight", axis=1)
        product = make("MatMul", [rounded[site.input], wide.outputs[0]], name, role=site.role)
        replace(
            site.nodes[0],
            [site.nodes[0]],
            [*new, wide, product],
            [(site.nodes[0].outputs[0], product.outputs[0])],
        )
    for table in {site.table for site in sites}:
        if not table.uses():
            del graph.initializers[str(table.name)]


def grid_of(ends: Range) -> tuple[float, int]:
    """Scale and zero point of the uint8 grid that reaches from end to end and holds zero."""
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    scale = max((high - low) / 255, float(np.finfo(np.float32).tiny))
    return scale, int(np.clip(np.rint(-low / scale), 0, 255))


def rounded_to(values: np.ndarray, ends: Range) -> np.ndarray:
    """What a product sees of its inputs: float32, rounded to the grid."""
    scale, zero = grid_of(ends)
    codes = np.rint(values / np.float32(scale))
    np.clip(codes, -zero, 255 - zero, out=codes)
    codes *= np.float32(scale)
    return codes


def _rounded(graph: ir.Graph, value: ir.Value, ends: Range, name: str) -> list[ir.Node]:
    """Q and DQ of one value, by a scale and zero point that represent zero exactly."""
    scale, zero = grid_of(ends)
    grid = [
        initializer(graph, ir.tensor(np.array(scale, np.float32), name=f"{name}.input_scale")),
        initializer(graph, ir.tensor(np.array(zero, np.uint8), name=f"{name}.input_zero")),
    ]
    quantize = make("QuantizeLinear", [value, *grid], f"{name}.input_codes")
    return [quantize, make("DequantizeLinear", [quantize.outputs[0], *grid], f"{name}.input_rounded")]
