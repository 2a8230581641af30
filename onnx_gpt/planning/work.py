"""What a model costs, counted on its graph before any weight is read: bytes of its files, and what a token takes.

Dims: H heads, K kv heads, D head dim, C tokens before this one, S tokens of a prompt.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from calibration.dynamic.products import quantize_dynamically
from calibration.quantization.constant_scales import fold_lookup_scales
from calibration.quantization.sites import Site, site_of
from calibration.quantization.weight_only import quantize_weights
from calibration.scheme import TABLE, Keep, Scheme, Static, WeightOnly
from calibration.static.qdq import is_static, quantize_products, static_sites
from calibration.transforms.rotation import rotated
from exporter.checkpoint import Opened
from exporter.weights import Weight
from graph_passes import run_pipeline
from onnx_gpt.bundle.decoder_facts import decoder_facts
from onnx_gpt.bundle.plan import Build
from onnx_gpt.bundle.writing import written_bytes
from onnx_gpt.exporting import Exported, export, pipeline_of, require_contract
from onnx_gpt.generation.decoder_session import PIECE
from onnx_gpt.planning.device import Cost, Measured
from onnx_gpt.planning.prediction import CONTEXT

FLOAT, STATIC, DYNAMIC = "float32", "w8a8", "dynamic8"
"""Formats of weights that have no grid of their own; the others are called ``bits/block``."""
LAST = ("attention.o", "ffn.gate", "ffn.up", "ffn.down")
"""Products of the last layer that a prompt's last token alone takes, where passes have moved the slice up."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one model in one format.

    Attributes:
        size: bytes of its files.
        main: the format that most weights have.
        weights: that a decode step multiplies by, by format, padding of blocks included.
        once: of these, what a prompt multiplies by for its last token alone.
        layers: number of layers.
        attention: H · D of each layer, and its window; None for all tokens.
        cache: bytes of keys and values of one token.
        copies: whether its runtime copies the cache at each step and runs prompts at once, as transformers.js does;
            `onnx_gpt.Generator` keeps one buffer and runs them in pieces.
    """

    size: int
    main: str
    weights: Mapping[str, int]
    once: Mapping[str, int]
    layers: int
    attention: tuple[tuple[int, int | None], ...]
    cache: int
    copies: bool = False

    def of_model(self, name: str) -> Work:
        """The same as a model of the target ``web`` in a browser: its mixture of formats is one, ``web:q8`` say."""
        weights, once = ({name: sum(some.values())} for some in (self.weights, self.once))
        return dataclasses.replace(self, main=name, weights=weights, once=once, copies=True)

    def multiplications(self, context: int) -> float:
        """Of one decode step after ``context`` tokens."""
        return sum(self.weights.values()) + 2 * self.attended(context)

    def attended(self, context: float) -> float:
        """Σ over layers of H · D · the tokens that are seen."""
        return sum(width * min(context, window or context) for width, window in self.attention)

    def step_row(self, context: int) -> dict[str, float]:
        """What a decode step is made of: numbers of weights by format, of layers, of what is attended to."""
        attended = self.cache * context if self.copies else self.attended(context)
        return {**self.weights, "layer": self.layers, "attended": attended}

    def prompt_row(self, tokens: int) -> dict[str, float]:
        """The same of a token of a prompt, its last token's products spread over all of them."""
        own = {f: n - (1 - 1 / tokens) * self.once.get(f, 0) for f, n in self.weights.items()}
        keys = tokens if self.copies else keys_of_prompt(tokens)
        return {**own, "layer": self.layers, "attended": self.attended(keys)}

    def step_seconds(self, measured: Measured, context: int) -> float | None:
        """Of a decode step; None where one of the formats was not measured."""
        return self._seconds(self.step_row(context), {n: t.step for n, t in measured.formats.items()})

    def prompt_seconds(self, measured: Measured, tokens: int) -> float | None:
        """Of a whole prompt; likewise."""
        one = self._seconds(self.prompt_row(tokens), {n: t.prompt for n, t in measured.formats.items()})
        return None if one is None else one * tokens

    def memory(self, measured: Measured) -> float | None:
        """Bytes of the process at its peak; likewise."""
        timing = measured.formats.get(self.main)
        if timing is None or timing.memory is None or measured.base is None:
            return None
        return measured.base + timing.memory * self.size + self.cache * CONTEXT

    def _seconds(self, row: Mapping[str, float], costs: Mapping[str, Cost]) -> float | None:
        if not self.weights.keys() <= costs.keys():
            return None
        main = costs[self.main]
        fixed = main.layer * row["layer"] + main.attended * row["attended"]
        return 1e-9 * (fixed + sum(costs[name].weight * row[name] for name in self.weights))


def keys_of_prompt(tokens: int) -> float:
    """Keys that a query of a prompt is multiplied by, on average: all up to the end of the piece that it is in."""
    ends = [min(start + PIECE, tokens) for start in range(0, tokens, PIECE)]
    return sum(end * (end - start) for start, end in itertools.pairwise([0, *ends])) / tokens


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A decoder's float graph as the passes of a build leave it."""

    exported: Exported
    pipeline: str


def graph_of(opened: Opened, build: Build, *, turned: bool = True) -> Graph:
    """Export and lower a source; its weights are not read.

    Args:
        turned: rotate its channels where the scheme wants that.
    """
    turns = turned and (build.recipe.is_static or build.recipe.is_dynamic)
    exported = export(opened, build.recipe.context_length, transform=rotated if turns else None)
    pipeline = pipeline_of(exported, build.recipe.passes, build.pipeline)
    require_contract(exported.model, run_pipeline(exported.model, pipeline, verify=False))
    return Graph(exported, pipeline)


def work_of(graph: Graph, build: Build) -> Work:
    """Count a graph in the format of a build. The graph stays as it is.

    Raises:
        OnnxGptError: what the scheme refuses of this graph.
    """
    recipe = build.recipe
    half = " in float16" if recipe.is_half else ""
    counted = _counted(graph.exported.model, build, graph.pipeline)
    weights, once = ({f"{name}{half}": count for name, count in some.items()} for some in counted)
    model = quantized(graph, build)
    halved = _floats(model) // 2 if recipe.is_half else 0
    attention, cache = _attention(graph.exported)
    return Work(
        size=written_bytes(model) - halved,
        main=max(weights, key=weights.__getitem__),
        weights=weights,
        once=once,
        layers=len(attention),
        attention=attention,
        cache=cache // 2 if recipe.is_half else cache // 4 if recipe.kv_cache == "int8" else cache,
    )


def quantized(graph: Graph, build: Build) -> ir.Model:
    """A copy of a graph in the format of a build, every weight rounded to nearest when it is written.

    Static ranges are any: what is right of such a graph is its size and its speed.
    """
    model, recipe = graph.exported.model.clone(), build.recipe
    scheme = _scheme(build)
    if recipe.is_dynamic:
        quantize_dynamically(model)
    if isinstance(scheme, Static):
        others = [s.role for s in map(site_of, model.graph) if s and s.role.endswith(".ffn.down")]
        sites = static_sites(model, others)
        quantize_products(model, sites, {s.input: (-1.0, 1.0) for s in sites if s.role not in others})
    if isinstance(scheme, WeightOnly | Keep):
        quantize_weights(model, scheme)
    if build.constant_scales:
        fold_lookup_scales(model)
    return model


def _scheme(build: Build) -> Scheme | None:
    return None if build.recipe.quantize == "none" else build.recipe.scheme()


def _counted(model: ir.Model, build: Build, pipeline: str) -> tuple[dict[str, int], dict[str, int]]:
    """Weights of products by format, and those of a prompt's last token."""
    scheme, dynamic = _scheme(build), build.recipe.is_dynamic
    sites = [site for site in map(site_of, model.graph) if site is not None and site.kind == "multiply"]
    names = [role for site in sites for role, _ in site.parts() if role.startswith("layers.")]
    last = max((int(name.split(".")[1]) for name in names), default=-1)
    moved = tuple(f"layers.{last}.{name}" for name in LAST) if "keep" in pipeline else ()
    weights: collections.Counter[str] = collections.Counter()
    once: collections.Counter[str] = collections.Counter()
    for site in sites:
        for role, part in site.parts():
            for name, count in _formats(site, role, part, scheme, dynamic):
                weights[name] += count
                once[name] += count if role in moved or not role.startswith("layers.") else 0
    return dict(weights), dict(once)


def _formats(
    site: Site, role: str, weight: Weight, scheme: Scheme | None, dynamic: bool
) -> Iterator[tuple[str, int]]:
    N, K = weight.shape
    if role == "head_input":
        yield FLOAT, N * K
        return
    if dynamic or (isinstance(scheme, Static) and (is_static(site) or role.endswith(".ffn.down"))):
        yield (DYNAMIC if dynamic else STATIC), N * K
        return
    if isinstance(scheme, Keep) and weight.format is not None:
        form = weight.format
        yield f"{form.bits}/{form.block}", N * K
        if form.has_minimum:  # a thin product of the sums of blocks
            yield FLOAT, N * K // form.block
        return
    own = role if role.startswith("layers.") else TABLE
    grid = scheme.grid_of(own) if isinstance(scheme, WeightOnly) else None
    if grid is None:
        yield FLOAT, N * K
    else:
        yield f"{grid.bits}/{grid.block_size}", N * -(-K // grid.block_size) * grid.block_size


def _floats(model: ir.Model) -> int:
    """Bytes of float32 initializers, which become float16 where the graph does."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(t.nbytes for t in tensors if t is not None and t.dtype == ir.DataType.FLOAT)


def _attention(exported: Exported) -> tuple[tuple[tuple[int, int | None], ...], int]:
    """H · D and window of each layer, and bytes of the cache of a token."""
    if exported.decoder is not None:
        layers = [layer.attention for layer in exported.decoder.layers]
        widths = tuple((one.heads * one.head_dim, one.window) for one in layers)
        return widths, sum(2 * 4 * one.kv_heads * one.head_dim for one in layers)
    facts = decoder_facts(exported.model, exported.vocab_size, exported.context_length)
    if facts is None:
        return ((0, None),), 0
    cache = facts.layers * 2 * 4 * facts.kv_heads * facts.head_dim
    return ((facts.heads * facts.head_dim, None),) * facts.layers, cache
