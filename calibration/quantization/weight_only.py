"""Weight-only quantization of a graph: every matrix becomes codes and block scales that onnxruntime multiplies by.

    x · Wᵀ + b      ⇒  MatMulNBits(x, codes, scale, b)
    W[i]            ⇒  reshape(GatherBlockQuantized(codes, i, scale))

A tied embedding and head share one set of codes and scales. Scales lie on disk as float16 where that is exact
and are cast to float32 by nodes that onnxruntime folds away when it loads the graph.

Blocks with a minimum (``w = s·q + m``) would need float zero points, for which onnxruntime has no fast
kernel. With z = 2^(bits−1), the code of zero, they are split into what a fast kernel does and a thin product:

    x · Wᵀ = MatMulNBits(x, q, s) + blocksum(x) · (m + z·s)ᵀ        since  s·q + m = s·(q − z) + (m + z·s)

where blocksum adds up x within each block: K/block columns instead of K.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import onnx_ir as ir

from calibration.quantization.keep import hides_codes, runs, takes
from calibration.quantization.lowering import Lowering
from calibration.quantization.sites import Site, drop_unused, site_of, unknown_product
from calibration.quantization.tensors import Coder, Keeping, QuantizedWeight, Rounding
from calibration.scheme import TABLE, Grid, Keep, WeightOnly, WeightScheme
from exporter.errors import OnnxGptError, rejected, unsupported
from exporter.weight_expressions import Stack
from exporter.weight_tensor import WeightTensor
from exporter.weights import Weight


@dataclasses.dataclass(frozen=True)
class Treatment:
    """What became of one weight.

    Attributes:
        role: ``layers.3.ffn.down``; of a vector, its initializer's name.
        op: the op that reads it now.
        shape: ``(out, in)``, or that of the vector.
        bits, block_size: of the codes; None where it stays float.
        minimum: whether blocks have a minimum beside their scale.
        reason: why it stays float; empty where it was quantized.
    """

    role: str
    op: str
    shape: tuple[int, ...]
    bits: int | None = None
    block_size: int | None = None
    minimum: bool = False
    reason: str = ""


Coders: TypeAlias = Mapping[str, Sequence[Coder | None]]
"""Codes that were chosen beforehand, by the name of the matrix: one for each of `pieces`, None where it is float."""


def quantize_weights(
    model: ir.Model, scheme: WeightScheme, coders: Coders | None = None
) -> tuple[Treatment, ...]:
    """Replace every matrix of a float32 graph by codes, in place. No weight is read: that happens in writing.

    After an error the graph is as it was.

    Args:
        coders: of the matrices whose codes calibration has chosen; the others are rounded to nearest.

    Returns:
        One treatment for each use of a weight, floats included; several where rows of one matrix differ in
        format.

    Raises:
        OnnxGptError: ``cannot-quantize`` for a matrix used in a way that cannot take the scheme,
            ``nothing-to-keep`` where the source is not quantized.
    """
    graph = model.graph
    sites = [site for site in map(site_of, list(graph)) if site is not None]
    if isinstance(scheme, Keep) and not any(_has_codes(site.weight) for site in sites):
        raise rejected(
            "nothing-to-keep",
            "the source holds only floats: there is no quantization of its own to keep",
            "choose int8 or int4, or leave it unquantized",
        )
    _refuse_unknown(graph, {site.table for site in sites})
    tables = {site.table for site in sites if site.kind == "lookup"}
    plans = [_plan(site, scheme, site.table in tables or site.role == "head", coders or {}) for site in sites]
    lowering = Lowering(graph)
    done: list[Treatment] = []
    for site, plan in zip(sites, plans, strict=True):
        done += _rewrite(site.as_it_stands(), plan, lowering)
    drop_unused(graph, [site.table for site in sites])
    return (*done, *_vectors(graph))


Plan = list[tuple[Weight, Coder | None, str]]
"""Rows of a matrix from top to bottom: each piece with its coder, or why it stays float."""


def pieces(site: Site, scheme: WeightOnly) -> list[tuple[Weight, Grid | None]]:
    """Rows of a layer's matrix from top to bottom, as the longest pieces that share a grid; None is float."""
    found: list[tuple[list[Weight], Grid | None]] = []
    for role, part in site.parts():
        grid = scheme.grid_of(role)
        if found and found[-1][1] == grid:
            found[-1][0].append(part)
        else:
            found.append(([part], grid))
    if len(found) == 1:
        return [(site.weight, found[0][1])]
    return [(parts[0] if len(parts) == 1 else Stack(tuple(parts)), grid) for parts, grid in found]


def _plan(site: Site, scheme: WeightScheme, table: bool, coders: Coders) -> Plan:
    if isinstance(scheme, Keep):
        plan = [_kept(site, piece) for piece in runs(site.weight)]
        if site.kind == "lookup" and len(plan) > 1:
            raise _cannot(site.role, "rows of one table have several formats")
        return plan
    if site.role == "positions":
        return [(site.weight, None, "a table of positions is small, and its error would reach every channel")]
    name = str(site.table.name)
    found = [(site.weight, scheme.grid_of(TABLE))] if table else pieces(site, scheme)
    chosen = coders.get(name) or [_rounding(weight, grid, name) for weight, grid in found]
    return [
        (weight, coder, "" if coder else "left float by the scheme")
        for (weight, _), coder in zip(found, chosen, strict=True)
    ]


def _rounding(weight: Weight, grid: Grid | None, name: str) -> Coder | None:
    return None if grid is None else Rounding(weight, grid, name)


def _kept(site: Site, piece: Weight) -> tuple[Weight, Coder | None, str]:
    form = piece.format
    if form is None:
        if hides_codes(piece):
            raise _cannot(site.role, "the source's codes do not lie along its rows")
        return piece, None, "float in the source"
    if not takes(form, piece.shape[1]):
        raise _cannot(site.role, f"no kernel takes {form.bits}-bit codes in blocks of {form.block}")
    return piece, Keeping(piece, form), ""


def _rewrite(site: Site, plan: Plan, lowering: Lowering) -> list[Treatment]:
    """Lower one site; what became of its pieces."""
    if all(coder is None for _, coder, _ in plan):
        return [Treatment(site.role, site.nodes[0].op_type, site.weight.shape, reason=plan[0][2])]
    if site.kind == "lookup":
        for weight in _quantized(site, plan):
            assert isinstance(weight, QuantizedWeight)
            lowering.lookup(site, weight)
    else:
        lowering.multiply(site, _quantized(site, plan))
    op = "GatherBlockQuantized" if site.kind == "lookup" else "MatMulNBits"
    return [
        Treatment(site.role, "MatMul", piece.shape, reason=reason)
        if coder is None
        else Treatment(
            site.role,
            op,
            piece.shape,
            coder.format.bits,
            coder.format.block,
            coder.format.has_minimum,
        )
        for piece, coder, reason in plan
    ]


def _quantized(site: Site, plan: Plan) -> list[QuantizedWeight | Weight]:
    stem = str(site.table.name).removesuffix(".weight")
    done: list[QuantizedWeight | Weight] = []
    for i, (piece, coder, _) in enumerate(plan):
        name = stem if len(plan) == 1 else f"{stem}.{i}"
        rows, columns = piece.shape
        done.append(piece if coder is None else QuantizedWeight(name, (rows, columns), coder))
    return done


def _has_codes(weight: Weight) -> bool:
    return any(piece.format is not None for piece in runs(weight))


def _refuse_unknown(graph: ir.Graph, known: set[ir.Value]) -> None:
    """Every matrix has been dealt with, or this is an error."""
    for node in graph:
        value = unknown_product(node)
        if value is not None and value not in known:
            raise _cannot(str(value.name), f"node {node.name!r} uses it in a {node.op_type}")
    for value in graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, WeightTensor) and len(tensor.shape) > 1 and value not in known:
            raise _cannot(str(value.name), "no MatMul or Gather reads it")


def _vectors(graph: ir.Graph) -> Iterable[Treatment]:
    for value in graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, WeightTensor) and len(tensor.shape) == 1:
            users = {node.op_type for node, _ in value.uses()}
            yield Treatment(
                str(value.name),
                ", ".join(sorted(users)),
                tensor.weight.shape,
                reason="a vector, not a matrix",
            )


def _cannot(role: str, why: str) -> OnnxGptError:
    return unsupported(
        "cannot-quantize",
        f"{role} cannot be quantized: {why}",
        "leave the model unquantized, or choose another scheme",
    )
