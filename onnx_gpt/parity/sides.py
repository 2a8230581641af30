"""The two sides of a comparison: whatever holds a decoder, opened to be run and to be judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from exporter import sources
from exporter.checkpoint import GraphSource, ModuleSource, Opened
from exporter.errors import OnnxGptError, rejected
from exporter.onnx_format.reader import read_file
from exporter.sources.hf_directory import INDEX, WEIGHTS
from onnx_gpt.bundle.reading import CONTEXT_KEYS, read_bundle
from onnx_gpt.bundle.writing import REPORT
from onnx_gpt.exporting import export
from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.gate import Facts, Greedily
from onnx_gpt.parity.limits import BLOCKED, gate_of, scheme_of
from onnx_gpt.parity.prove import judged_as
from onnx_gpt.parity.standard import facts_of, reference_model
from onnx_gpt.parity.told import told_beside
from onnx_gpt.progress import Progress


@dataclasses.dataclass(frozen=True)
class Side:
    """One model of a comparison, not yet run.

    Attributes:
        uri: as the user named it.
        opened: its files; a bundle is its graph.
        facts: what they say of the model.
        scheme: a key of `BUDGETS`.
    """

    uri: str
    opened: Opened
    facts: Facts
    scheme: str

    @property
    def tokenizer(self) -> bytes | None:
        """Its tokenizer.json."""
        return self.opened.files.get("tokenizer.json")


def open_side(uri: str) -> Side:
    """Open a source or a bundle. Reads headers, not weights.

    Raises:
        OnnxGptError: ``source-ambiguous`` for a folder that is a checkpoint and a bundle; what opening raises.
    """
    opened = sources.load(_graph_of_folder(uri) or uri)
    if isinstance(opened, GraphSource):
        return Side(uri, opened, _graph_facts(opened), judged_as(scheme_of(opened.path), _asked(opened.path)))
    if isinstance(opened, ModuleSource):
        return Side(uri, opened, Facts(), "none")
    return Side(uri, opened, facts_of(export(opened)), "none")


@contextmanager
def as_candidate(side: Side, threads: int, progress: Progress) -> Iterator[Greedily]:
    """Run a side as it is used: a graph with onnxruntime's optimizations, in the precision that it has."""
    if isinstance(side.opened, GraphSource):
        yield Candidate(side.opened.path, threads, name=side.uri)
        return
    with reference_model(side.opened, progress, threads=threads) as model:
        yield model


def _graph_of_folder(uri: str) -> str | None:
    """The graph of a bundle's folder; None for what is no folder, or a checkpoint's."""
    folder = Path(uri)
    if not folder.is_dir():
        return None
    weights = [name for name in (WEIGHTS, INDEX) if (folder / name).exists()]
    graphs = sorted(path.name for path in folder.glob("*.onnx"))
    if weights and graphs:
        raise rejected(
            "source-ambiguous",
            f"{uri!r} holds {weights[0]} and {graphs[0]}: a checkpoint, and a graph",
            f"name the graph itself, {uri}/{graphs[0]}, or give the checkpoint a folder of its own",
        )
    if weights or not (graphs or (folder / REPORT).exists() or (folder / "genai_config.json").exists()):
        return None
    return str(read_bundle(folder).model)


def _asked(model: Path) -> str:
    """What the report beside a graph says of its scheme beyond what the graph shows: ``keep``, or chosen on text."""
    told = told_beside(model)
    return "" if told is None else gate_of(told.quantize, "float", told.method)


def _graph_facts(opened: GraphSource) -> Facts:
    graph = read_file(opened.path).graph
    context = next((opened.config[key] for key in CONTEXT_KEYS if key in opened.config), None)
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    windows = [
        node.attributes["local_window_size"].as_int()
        for node in nodes
        if "local_window_size" in node.attributes
    ]
    return Facts(
        _parameters(graph, nodes),
        context if isinstance(context, int) and context > 0 else None,
        max((window for window in windows if window > 0), default=None),
    )


def _parameters(graph: ir.Graph, nodes: list[ir.Node]) -> int:
    """Numbers that the graph's weights stand for; packed codes are counted one by one."""
    packed: dict[str, int] = {}
    for node in nodes:
        slot = {"GatherBlockQuantized": 0}.get(node.op_type, 1)
        codes = node.inputs[slot] if node.op_type in BLOCKED and len(node.inputs) > slot else None
        if codes is not None and codes.shape is not None and all(isinstance(d, int) for d in codes.shape):
            bits: Any = node.attributes["bits"].as_int() if "bits" in node.attributes else 4
            packed[str(codes.name)] = int(np.prod(codes.shape.numpy(), dtype=np.int64)) * 8 // bits
    tensors = {name: value.const_value for name, value in graph.initializers.items()}
    return sum(packed.get(name, tensor.size) for name, tensor in tensors.items() if tensor is not None)


def require_same_vocabulary(ours: int, theirs: int, names: tuple[str, str]) -> None:
    """Raise ``vocabulary-differs`` (exit 4) where two models do not choose among as many tokens."""
    if ours != theirs:
        raise OnnxGptError(
            "vocabulary-differs",
            f"{names[0]} has logits of {ours} tokens, {names[1]} of {theirs}",
            "compare models of one vocabulary; a table that was padded has to be cut",
        )
