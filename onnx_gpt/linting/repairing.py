"""``--fix``: a new folder in which what is mechanical is repaired. The old one stays as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import onnx_ir as ir

from exporter.discovery import modules_of
from exporter.errors import rejected, unsupported
from exporter.sources._files import read_bytes
from exporter.sources.hf_directory import FILE_LIMIT
from onnx_gpt.bundle.staging import require_absent, require_space, staged
from onnx_gpt.bundle.targets import json_bytes
from onnx_gpt.linting import relaying
from onnx_gpt.linting.draft import Draft
from onnx_gpt.linting.finding import Verdict
from onnx_gpt.linting.graph_file import GraphFile
from onnx_gpt.linting.linter import judge, lint
from onnx_gpt.linting.subject import Subject, read_subject

STALE = ("report.json", "certificate.json", "SHA256SUMS")
"""Documents that speak of files as they were."""


@dataclasses.dataclass(frozen=True)
class Repair:
    """What a repair did.

    Attributes:
        before: findings of the old folder.
        after: findings of the new one.
        changes: what was done, one line each.
    """

    before: Verdict
    after: Verdict
    changes: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.after.json(), "repaired": self.before.json(), "changes": list(self.changes)}


def repair(source: str | Path, target: str, out: str | Path) -> Repair:
    """Write a folder in which every mechanical finding of a source is repaired.

    Weights are copied as they are, a piece at a time: names, shapes, types of inputs, places and documents change, and
    nothing that is computed.

    Args:
        source: see `onnx_gpt.linting.linter.lint`.
        target: whose runtime the new folder is for.
        out: the new folder.

    Raises:
        OnnxGptError: what `lint` raises; ``model-absent`` (exit 4) and what is said of weights that cannot be had;
            ``repair-ambiguous`` (exit 3) for two models that would get one name; ``tensor-too-large`` (exit 3);
            ``output-exists`` (exit 10), ``disk-full`` (exit 7).
    """
    out = Path(out)
    require_absent(out)
    subject = read_subject(source, target)
    before = judge(subject, str(source))
    if not subject.graphs:
        raise rejected("model-absent", f"{str(source)!r} holds no .onnx file to repair", "give one that does")
    for graph in subject.graphs:
        if graph.problem is not None and graph.problem.code != "onnx-feature":
            raise graph.problem
    draft = Draft(
        subject, frozenset(f.code for f in before.findings), _places(subject), {}, dict(subject.documents)
    )
    draft = _apply(draft, "graph")
    limit = subject.expected.data_limit
    layouts = {graph.name: relaying.plan(graph, limit) for graph in subject.graphs}
    counts = {draft.place(graph): layouts[graph.name].chunks for graph in subject.graphs}
    draft = _apply(dataclasses.replace(draft, data_files=counts), "document")
    require_space(out, sum(layout.nbytes for layout in layouts.values()))
    with staged(out) as stage:
        draft = _copy(draft, stage)
        for graph in subject.graphs:
            relaying.write(draft, graph, layouts[graph.name], stage)
            draft = draft.note(*_moved(draft, graph, layouts[graph.name].chunks))
        for name, document in draft.documents.items():
            (stage / name).write_bytes(json_bytes(document))
        after = dataclasses.replace(lint(stage, target), source=str(out))
    return Repair(before, after, draft.changes)


def _apply(draft: Draft, of: str) -> Draft:
    """Every repair of graphs, or of documents, that answers one of the findings, in the order of their names.

    A repair may uncover what another answers: names come before symbols. Graphs are judged again before documents.
    """
    for module in _repairs(of):
        if draft.codes & set(module.CODES):
            draft = module.repair(draft)
            codes = {finding.code for finding in judge(draft.subject, "").findings}
            draft = dataclasses.replace(draft, codes=draft.codes | codes)
    return draft


def _repairs(of: str) -> Iterator[ModuleType]:
    yield from (m for m in modules_of("onnx_gpt.linting.repairs").values() if of == m.OF)


def _places(subject: Subject) -> dict[str, str]:
    """New paths: where the runtime looks, by the name that it has for such a model."""
    found: dict[str, str] = {}
    for graph in subject.graphs:
        name, known = PurePosixPath(graph.name).name, subject.expected.model_names
        if known and (name not in known or graph.name != subject.expected.place(name)):
            name = _name_of(graph, known)
        place = subject.expected.place(name)
        if place in found.values():
            raise unsupported(
                "repair-ambiguous",
                f"{graph.name} and another model would both be {place}",
                "repair one model at a time: give the path of its .onnx file",
            )
        found[graph.name] = place
    return found


def _name_of(graph: GraphFile, known: tuple[str, ...]) -> str:
    """The runtime's name for such a model: by the width of its weights and the type of its caches."""
    bits = {
        node.attributes["bits"].value if "bits" in node.attributes else 4
        for node in graph.graph
        if node.op_type == "MatMulNBits"
    }
    integer = any(
        node.op_type in ("DynamicQuantizeLinear", "MatMulInteger", "MatMulIntegerToFloat", "DequantizeLinear")
        for node in graph.graph
    )
    half = any(past.dtype == ir.DataType.FLOAT16 for past in graph.pasts.values())
    suffix = f"_q{min(bits)}" if bits and min(bits) < 8 else "_quantized" if bits or integer else ""
    if half:
        suffix = f"{suffix}f16" if suffix.startswith("_q") and suffix != "_quantized" else "_fp16"
    name = f"model{suffix}.onnx"
    return name if name in known else known[0]


def _moved(draft: Draft, graph: GraphFile, chunks: int) -> Iterator[str]:
    place = draft.place(graph)
    names = [draft.data_name(graph, i) for i in range(chunks)]
    laid = any(code.startswith("external-data") for code in draft.codes)
    if laid or place != graph.name or sorted(names) != sorted(graph.data):
        yield f"{graph.name} is {place}" + (f", its weights are in {', '.join(names)}" if names else "")


def _copy(draft: Draft, stage: Path) -> Draft:
    """The other files, as they are; those that speak of what has changed are left out, and that is said."""
    subject = draft.subject
    data = {
        (PurePosixPath(graph.name).parent / name).as_posix()
        for graph in subject.graphs
        for name in (*graph.data, PurePosixPath(graph.name).name)
    }
    for name in sorted(subject.files - data - draft.documents.keys()):
        if name in STALE or "/" in name or name.startswith(".") or name.endswith((".onnx", ".ort")):
            draft = draft.note(f"{name} is left out")
            continue
        if (subject.folder / name).stat().st_size > FILE_LIMIT:
            draft = draft.note(f"{name} is left out: it is no document, and no model names it")
            continue
        (stage / name).write_bytes(read_bytes(subject.folder, name, FILE_LIMIT))
    known = {str(PurePosixPath(name).parent) for name in data}
    inside = stage.name if stage.parent.samefile(subject.folder) else None
    others = sorted(path.name for path in subject.folder.iterdir() if path.is_dir() and path.name != inside)
    return draft.note(*(f"{name}/ is left out" for name in others if name not in known))
