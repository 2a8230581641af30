"""Issues a bundle's certificate: called last, when every other file of the folder has its final bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from exporter.onnx_format.reader import read_file
from graph_passes.lint import lint
from onnx_gpt._version import __version__
from onnx_gpt.bundle.writing import REPORT
from onnx_gpt.certificate import canonical
from onnx_gpt.certificate.files import CHECKSUMS, checksums_text, digests_of, names_below, sha256_of
from onnx_gpt.certificate.graph_digest import graph_digest
from onnx_gpt.certificate.probes import LARGEST_UNASKED, Asked, asked_of, probe, probes_of
from onnx_gpt.certificate.schema import (
    CERTIFICATE,
    SCHEMA,
    Certificate,
    FileFacts,
    GraphFacts,
    Probes,
    SourceFacts,
    TraceFacts,
    seal_of,
    text_of,
)
from onnx_gpt.certificate.tensors import merkle_root, tensor_digests
from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.report import ModelFacts, Parity, Report

VERSIONS = ("numpy", "onnxruntime", "onnx_ir", "torch", "transformers")
UNCERTIFIED = (REPORT, CERTIFICATE, CHECKSUMS)
"""Files that a certificate does not list: a report's timings differ from run to run, so that it is certified without
them (`Certificate.report`), and byte by byte in SHA256SUMS."""


@dataclasses.dataclass(frozen=True)
class Model:
    """One model of a bundle.

    Attributes:
        path: of the ``.onnx`` file, or of what the target made of it.
        opened: the file that a runtime opens; None where no onnxruntime on CPU does.
        drift: mean KL by which it may differ between machines, in nats a token.
        facts: how it was made, and what was proven of it.
    """

    path: str
    opened: str | None
    drift: float
    facts: ModelFacts
    trace: TraceFacts | None = None


def source_facts(parts: dict[str, str], report: Report) -> SourceFacts:
    """What a bundle was made from: digests of its parts (`source_digests`), and what the report says of it."""
    facts = report.source
    return SourceFacts(
        uri=facts.uri,
        family=facts.family,
        parameters=facts.parameters,
        parts=parts,
        digest=canonical.digest(parts),
    )


def certified_files(folder: Path) -> dict[str, FileFacts]:
    """What a certificate says of a finished folder's files. Reads them whole."""
    digests = digests_of(folder, [name for name in names_below(folder) if name not in UNCERTIFIED])
    return {
        name: FileFacts(bytes=(folder / name).stat().st_size, sha256=digest)
        for name, digest in digests.items()
    }


def certify(
    folder: Path,
    *,
    target: str,
    models: tuple[Model, ...],
    source: SourceFacts,
    files: Future[dict[str, FileFacts]],
    report: Report,
    asked: Asked | None = None,
    windows: Callable[[], np.ndarray] | None = None,
) -> str:
    """Write ``certificate.json`` and ``SHA256SUMS`` into a finished bundle.

    The certificate of the same source, settings and machine has the same bytes: nothing in it is measured in seconds.

    Args:
        files: `certified_files` of the folder.
        report: as it lies in the folder.
        asked: what the reference said (`probes.ask`); None where there was none.
        windows: gives tokens ``[N, S]`` that the bundle's own models are asked on then.

    Returns:
        The certificate's digest: SHA-256 of the file.
    """
    probes = _probes(folder, models, asked, windows)
    names = [name for name in names_below(folder) if name.endswith(".onnx")]
    graphs = {name: graph_facts_of(read_file(folder / name)) for name in names}
    document = Certificate(
        schema=SCHEMA,
        target=target,
        versions=_versions(),
        source=source,
        recipe=canonical_value(report.recipe),
        pipelines={model.path: model.facts.pipeline for model in models},
        calibration={
            model.path: canonical_value(model.facts.calibration)
            for model in models
            if model.facts.calibration
        },
        graphs=graphs,
        trace={model.path: model.trace or "not run" for model in models},
        parity={model.path: _parity(model) for model in models},
        not_run=_not_run(models, probes),
        probes=probes or "none",
        files=files.result(),
        report=report_digest(json.loads((folder / REPORT).read_bytes())),
        seal="0" * 64,
    ).document()
    document["seal"] = seal_of(document)
    data = text_of(document).encode("utf-8")
    (folder / CERTIFICATE).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    sums = {name: facts.sha256 for name, facts in files.result().items()}
    sums |= {CERTIFICATE: digest, REPORT: sha256_of(folder / REPORT)}
    (folder / CHECKSUMS).write_text(checksums_text(sums), "utf-8", newline="\n")
    return digest


def canonical_value(value: Any) -> Any:
    """Plain JSON values, without what is measured in seconds."""
    return canonical.without(value, canonical.VOLATILE)


def report_digest(report: Mapping[str, Any]) -> str:
    """The digest of what a report says, but for times and memory, and for the digest of its own certificate."""
    return canonical.digest(canonical.without(report, canonical.VOLATILE | {"certificates"}))


def graph_facts_of(model: ir.Model) -> GraphFacts:
    """What a certificate says of a graph as it was read from its file."""
    tensors = tensor_digests(model.graph)
    cliffs = {finding.code for finding in lint(model) if finding.severity == "error"}
    return GraphFacts(
        digest=graph_digest(model),
        bound=graph_digest(model, tensors),
        root=merkle_root(tensors),
        tensors=tensors,
        cliffs=tuple(sorted(cliffs)),
    )


def _probes(
    folder: Path,
    models: tuple[Model, ...],
    asked: Asked | None,
    windows: Callable[[], np.ndarray] | None,
) -> Probes | None:
    """Probes of every model that onnxruntime opens here; without a reference, of small ones."""
    opened = {model.opened: model for model in models if model.opened is not None}
    if asked is None:
        sizes = {name: _bytes_of(folder, model) for name, model in opened.items()}
        opened = {name: model for name, model in opened.items() if sizes[name] <= LARGEST_UNASKED}
        if windows is None or not opened:
            return None
    probed = {}
    for name, model in opened.items():
        candidate = Candidate(folder / name)
        if asked is None:
            assert windows is not None
            asked = asked_of(candidate, windows())
        parity = model.facts.parity
        limit = parity.limits.max_kl if isinstance(parity, Parity) else None
        probed[name] = probe(candidate, asked, drift=model.drift, max_kl=limit)
    return None if asked is None else probes_of(asked, probed)


def _bytes_of(folder: Path, model: Model) -> int:
    """A model with its weights, which lie beside it under names that begin with its ``.onnx`` file's."""
    assert model.opened is not None
    path = folder / model.opened
    files = {path, *path.parent.glob(f"{path.stem}.onnx*")}
    return sum(file.stat().st_size for file in files)


def _parity(model: Model) -> Any:
    parity = model.facts.parity
    return (
        canonical_value(parity.model_dump(mode="json", by_alias=True))
        if isinstance(parity, Parity)
        else parity
    )


def _not_run(models: tuple[Model, ...], probes: Probes | None) -> tuple[str, ...]:
    """What a reader might take for granted and would be wrong to."""
    missing = [
        f"{model.path}: parity with a reference" for model in models if model.facts.parity == "not run"
    ]
    unproven = [
        f"{model.path}: proof of the rewrites of {entry.name}"
        for model in models
        for entry in model.facts.passes
        if entry.fired and entry.proof is None
    ]
    probed = probes.models if probes is not None else {}
    missing += [f"{model.path}: probes" for model in models if model.opened not in probed]
    if probes is not None and not probes.independent:
        missing.append("probes of an independent reference: those here are the bundle's own")
    missing += [
        f"{model.path}: tracing of the weights to the source" for model in models if model.trace is None
    ]
    return (*missing, *unproven)


def _versions() -> dict[str, str]:
    found = {"onnx-gpt": __version__, "python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
