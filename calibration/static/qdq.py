"""Products in 8 bits by quantize-dequantize pairs, the form in which every runtime finds its own integer kernels:

    x · Wᵀ + b   ⇒   DQ(Q(x)) · DQ(codes) + b

x is uint8 with one scale and zero point, the codes int8 with a scale for each output channel. onnxruntime runs it as
MatMulIntegerToFloat, in u8·s8 products summed as int32. What several products read is rounded once.

The inputs of down have no range that fits all tokens: a few are thousands of times as large as the others. There each
token is brought to one size first, by its largest value, and the outputs back:

    s = max |x| / 127,  x · Wᵀ   ⇒   s · (DQ(Q(x / s)) · DQ(codes))
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from calibration.int8 import LARGEST
from calibration.quantization.sites import Site, drop_unused, site_of
from calibration.static.codes import ChannelCodes, RoundedCodes
from graph_passes.matching import initializer, make, replace

STATIC = frozenset(["q", "k", "v", "qkv", "o", "gate", "up", "gate_up"])
"""Last part of the roles whose inputs have one range."""
SMALLEST = 1e-30
"""Scale of a token that is all zero."""

Range = tuple[float, float]


def static_sites(model: ir.Model, others: Collection[str] = ()) -> list[Site]:
    """The products of a float graph that are to be static, in graph order.

    Args:
        others: roles beyond those whose inputs have one range; theirs are rounded token by token.
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
        ranges: of each site's input: least and greatest value that the grid reaches. An input without a range is
            rounded token by token.
        chosen: codes by the name of the matrix; the others are rounded to nearest.
    """
    graph = model.graph
    rounded: dict[ir.Value, ir.Value] = {}
    for site in sites:
        name = str(site.nodes[0].name)
        new: list[ir.Node] = []
        step: ir.Value | None = None
        if site.input not in ranges:
            brought, step = _to_one_size(graph, site.input, name)
            new += [*brought, *_rounded(graph, brought[-1].outputs[0], (-LARGEST - 1, LARGEST), name)]
            given = new[-1].outputs[0]
        else:
            if site.input not in rounded:
                pair = _rounded(graph, site.input, ranges[site.input], name)
                rounded[site.input] = pair[-1].outputs[0]
                new += pair
            given = rounded[site.input]
        matrix = str(site.table.name)
        weight = (chosen or {}).get(matrix) or RoundedCodes(matrix.removesuffix(".weight"), site.weight)
        factors = [initializer(graph, weight.codes), initializer(graph, weight.scale)]
        wide = make("DequantizeLinear", factors, f"{name}.weight", axis=1)
        own = name if step is None else f"{name}.product"
        product = make("MatMul", [given, wide.outputs[0]], own, role=site.role)
        new += [wide, product]
        if step is not None:
            new.append(make("Mul", [product.outputs[0], step], name))
        replace(site.nodes[0], [site.nodes[0]], new, [(site.nodes[0].outputs[0], new[-1].outputs[0])])
    drop_unused(graph, [site.table for site in sites])


def grid_of(ends: Range) -> tuple[float, int]:
    """Scale and zero point of the uint8 grid that reaches from end to end and holds zero."""
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    scale = max((high - low) / 255, float(np.finfo(np.float32).tiny))
    return scale, int(np.clip(np.rint(-low / scale), 0, 255))


def rounded_to(values: np.ndarray, ends: Range) -> np.ndarray:
    """What a product sees of its inputs: float32, rounded to the grid."""
    scale, zero = grid_of(ends)
    with np.errstate(over="ignore"):  # where there was nothing but zero
        codes = np.rint(values / np.float32(scale))
    np.clip(codes, -zero, 255 - zero, out=codes)
    codes *= np.float32(scale)
    return codes


def rows_rounded(values: np.ndarray) -> np.ndarray:
    """The same of inputs that are rounded token by token."""
    step = np.maximum(np.abs(values).max(axis=-1, keepdims=True) / np.float32(LARGEST), np.float32(SMALLEST))
    rounded: np.ndarray = np.rint(values / step) * step
    return rounded


def _to_one_size(graph: ir.Graph, value: ir.Value, name: str) -> tuple[list[ir.Node], ir.Value]:
    """Nodes that divide each token by a scale, the last giving the result, and the scale ``[B, S, 1]``."""

    def number(array: np.ndarray, what: str) -> ir.Value:
        return initializer(graph, ir.tensor(array, name=f"{name}.{what}"))

    size = make("Abs", [value], f"{name}.sizes")
    axis = number(np.array([-1], np.int64), "last_axis")
    largest = make("ReduceMax", [size.outputs[0], axis], f"{name}.largest", keepdims=1)
    code = number(np.array(1 / LARGEST, np.float32), "code")
    step = make("Mul", [largest.outputs[0], code], f"{name}.step")
    least = number(np.array(SMALLEST, np.float32), "least_step")
    bounded = make("Max", [step.outputs[0], least], f"{name}.live_step")
    divided = make("Div", [value, bounded.outputs[0]], f"{name}.one_size")
    return [size, largest, step, bounded, divided], bounded.outputs[0]


def _rounded(graph: ir.Graph, value: ir.Value, ends: Range, name: str) -> list[ir.Node]:
    """Q and DQ of one value, by a scale and zero point that represent zero exactly."""
    scale, zero = grid_of(ends)
    grid = [
        initializer(graph, ir.tensor(np.array(scale, np.float32), name=f"{name}.input_scale")),
        initializer(graph, ir.tensor(np.array(zero, np.uint8), name=f"{name}.input_zero")),
    ]
    quantize = make("QuantizeLinear", [value, *grid], f"{name}.input_codes")
    return [quantize, make("DequantizeLinear", [quantize.outputs[0], *grid], f"{name}.input_rounded")]
