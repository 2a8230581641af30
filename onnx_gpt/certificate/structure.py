"""The second level: every graph is the certified one, keeps the contract, and fits the small files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from exporter.errors import first_line
from exporter.onnx_format.reader import read_file
from onnx_gpt.certificate.configuration import config_violations
from onnx_gpt.certificate.contract import contract_breaches
from onnx_gpt.certificate.issuing import graph_facts_of
from onnx_gpt.certificate.schema import Certificate, GraphFacts
from onnx_gpt.certificate.tensors import merkle_root
from onnx_gpt.certificate.violations import Violation, violation


def violations(folder: Path, certificate: Certificate) -> Iterator[Violation]:
    """Whatever is not as certified. Files that are not there are the business of integrity."""
    for name, facts in certificate.graphs.items():
        if merkle_root(facts.tensors) != facts.root:
            yield violation("weights-root", name, f"they have the root {merkle_root(facts.tensors)}")
        path = folder / name
        if path.is_symlink() or not path.is_file():
            continue
        try:
            model = read_file(path)
            now = graph_facts_of(model)
        except Exception as error:  # whatever a file that anybody may have made brings our reader to
            yield violation("graph-unreadable", name, first_line(error))
            continue
        yield from _graph(name, now, facts)
        yield from (violation("contract", name, breach) for breach in contract_breaches(model))
        yield from config_violations(folder, name, model)


def _graph(name: str, now: GraphFacts, certified: GraphFacts) -> Iterator[Violation]:
    different = list(_tensors(name, now.tensors, certified.tensors))
    yield from different
    if now.digest != certified.digest:
        yield violation("graph-digest", name, f"its digest is {now.digest}, {certified.digest} was certified")
    elif now.bound != certified.bound and not different:
        yield violation("weights-bound", name, "nodes read each other's weights")
    for code in sorted(set(now.cliffs) - set(certified.cliffs)):
        yield violation("cliff", name, f"lint finds {code}")


def _tensors(name: str, now: Mapping[str, str], certified: Mapping[str, str]) -> Iterator[Violation]:
    owners = {facts: tensor for tensor, facts in certified.items()}
    for tensor, facts in sorted(certified.items()):
        subject = f"{name}: {tensor}"
        if tensor not in now:
            yield violation("weights-missing", subject, f"there is no such tensor; {facts} was certified")
        elif now[tensor] != facts:
            owner = owners.get(now[tensor])
            if owner is not None:
                yield violation("weights-swapped", subject, f"it has the contents of {owner}")
            else:
                yield violation("weights-differ", subject, f"it is {now[tensor]}, {facts} was certified")
    for tensor in sorted(now.keys() - certified.keys()):
        yield violation("weights-extra", f"{name}: {tensor}", "nobody certified it")
