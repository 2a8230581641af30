"""A decoder together with its weights, which pruning cuts pieces of and puts pieces into; and its parts as runnable
pieces."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibration import collecting
from calibration.collecting import Piece, Stream
from calibration.quantization.sites import site_of
from calibration.segments import Segment, extract
from exporter.build import build
from exporter.decoder import Decoder, Layer
from exporter.weights import Weight
from graph_passes import run_pipeline
from graph_passes.matching import role_of

PIPELINE = "fold, attention"
"""From the canonical graph to one whose layers run fast and whose products are still those of the checkpoint."""

OUT, HALFWAY = "residual", "attention_residual"
"""The residual stream after a layer, and between its blocks."""

ATTENTION, FFN = BLOCKS = ("attention.o", "ffn.down")
"""Blocks of a layer by their output maps, in the order in which they are fitted."""


@dataclasses.dataclass(frozen=True)
class Described:
    """A decoder and its weights by role, unread."""

    decoder: Decoder
    weights: Mapping[str, Weight]

    def layer(self, i: int) -> dict[str, Weight]:
        """The weights of a layer by what follows ``layers.{i}.`` in their roles."""
        start = f"layers.{i}."
        return {role.removeprefix(start): w for role, w in self.weights.items() if role.startswith(start)}

    def with_layer(self, i: int, layer: Layer, weights: Mapping[str, Weight]) -> Described:
        """The same with another layer i: its sizes, and the weights that are given; the others stay."""
        layers = list(self.decoder.layers)
        layers[i] = layer
        changed = {f"layers.{i}.{role}": weight for role, weight in weights.items()}
        decoder = dataclasses.replace(self.decoder, layers=tuple(layers))
        return Described(decoder, {**self.weights, **changed})

    def without(self, gone: Sequence[int]) -> Described:
        """The same without some layers; those after them move up."""
        kept = [i for i in range(len(self.decoder.layers)) if i not in gone]
        weights = {role: w for role, w in self.weights.items() if not role.startswith("layers.")}
        for place, i in enumerate(kept):
            weights |= {f"layers.{place}.{role}": weight for role, weight in self.layer(i).items()}
        layers = tuple(self.decoder.layers[i] for i in kept)
        return Described(dataclasses.replace(self.decoder, layers=layers), weights)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A part of a decoder in onnxruntime.

    Attributes:
        names: of its values in the graph, by what they are asked for as.
    """

    piece: Piece
    names: Mapping[str, str]

    def run(self, tokens: np.ndarray, x: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The values asked for, of hidden states ``[B, S, E]`` or of tokens ``[B, S]`` alone."""
        taken = [name for name, (_, dtype) in self.piece.inputs.items() if _is_hidden(name, dtype)]
        fed = {} if x is None else dict.fromkeys(taken, x)
        found = fed | self.piece.run(tokens, fed)
        return {label: found[name] for label, name in self.names.items()}


def _is_hidden(name: str, dtype: str) -> bool:
    return dtype == "tensor(float)" and not name.startswith("past_key_values.")


@dataclasses.dataclass(frozen=True)
class Runner:
    """Loads the parts of a decoder, for tokens with nothing before them.

    Attributes:
        folder: scratch, for files that a part is loaded from.
        window: tokens of a sequence, at most.
    """

    folder: Path
    window: int

    def embedding(self, model: Described) -> Loaded:
        """Tokens in, hidden states out."""
        graph = self._graph(model, 0)
        return self._load(graph, [], {OUT: _input_of_layer(graph.graph)}, "embedding")

    def layer(self, model: Described, i: int, outputs: Sequence[str] = (OUT,)) -> Loaded:
        """Layer i: hidden states in.

        Args:
            outputs: `OUT`, `HALFWAY`, or a linear map's ``ffn.down.input`` and ``ffn.down.output``.
        """
        graph = self._graph(model, i)
        first = _input_of_layer(graph.graph)
        known = _values_of(graph.graph)
        return self._load(graph, [first], {label: known[label] for label in outputs}, f"layers.{i}")

    def head(self, model: Described, output: str = "logits") -> Loaded:
        """The last norm and the head: hidden states in, logits ``[B, S, V]`` out, or what the ``norm`` gives."""
        graph = self._graph(model, 0)
        known = _values_of(graph.graph)
        return self._load(graph, [known[OUT]], {output: known[output]}, "head")

    def _graph(self, model: Described, i: int) -> ir.Model:
        """The decoder with layer i alone."""
        one = model.without([k for k in range(len(model.decoder.layers)) if k != i])
        context = min(self.window, one.decoder.context_length)
        graph = build(one.decoder, one.weights, context_length=context)
        run_pipeline(graph, PIPELINE, verify=False)
        return graph

    def _load(
        self, graph: ir.Model, incoming: Sequence[ir.Value], outputs: Mapping[str, ir.Value], name: str
    ) -> Loaded:
        part = extract(graph, incoming, list(outputs.values()))
        segment = Segment(name, part, tuple(str(value.name) for value in incoming), (), ())
        names = {label: str(value.name) for label, value in outputs.items()}
        self.folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as own:
            # Hidden states are asked for, too, where q, k and v read them without a norm.
            given = [name for name in names.values() if name not in segment.incoming]
            return Loaded(collecting.load(segment, given, Path(own)), names)


def forward(part: Loaded, stream: Stream, *, first: bool = False, passing: Collection[str] = ()) -> None:
    """Run a part on all of a stream, which is then behind it."""
    for batch, tokens in enumerate(stream.batches):
        x = None if first else stream.feeds(batch, [OUT])[OUT]
        stream.put(batch, part.run(tokens, x))
    stream.advance(list(passing))


def _values_of(graph: ir.Graph) -> dict[str, ir.Value]:
    """Values of a graph of one layer by the labels of `Runner.layer`."""
    found = {str(v.name).removeprefix("layers.0."): v for node in graph for v in node.outputs}
    for node in graph:
        site = site_of(node)
        if site is not None and site.kind == "multiply":
            role = site.role.removeprefix("layers.0.")
            found |= {f"{role}.input": site.input, f"{role}.output": site.output}
    return found


def _input_of_layer(graph: ir.Graph) -> ir.Value:
    """The residual stream as the layer finds it."""
    # An attention without a norm before it reads the stream itself.
    roles = ("layers.0.attention_norm", "layers.0.attention.q")
    first = next(node for node in graph if role_of(node) in roles)
    assert first.inputs[0] is not None
    return first.inputs[0]
