"""Which fusions the passes found in a model, layer by layer, and for each that they did not, the one reason why."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from exporter import sources
from exporter.errors import unsupported
from graph_passes.explaining.fusions import Part
from graph_passes.explaining.fusions import explain as explain_graph
from onnx_gpt.bundle.targets import chosen
from onnx_gpt.exporting import export, pipeline_of

SCHEMA = "onnx-gpt/explanation/1"


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a graph holds after its passes.

    Attributes:
        source: as given.
        family: of a source that we know; what config.json says of a foreign graph, or ``graph``.
        known: whether the graph is our own, of a known family.
        pipeline: the passes that were run.
        nodes: that are left.
        layers: parts of every layer, counted by attentions, whether these are fused or not.
        others: parts of no layer: embedding, last norm, head.
    """

    source: str
    family: str
    known: bool
    pipeline: str
    nodes: int
    layers: tuple[tuple[Part, ...], ...]
    others: tuple[Part, ...]

    @property
    def missing(self) -> tuple[tuple[int | None, Part], ...]:
        """Fusions that are not there, with their layer."""
        numbered = [*enumerate(self.layers), (None, self.others)]
        return tuple((layer, part) for layer, parts in numbered for part in parts if part.reason is not None)

    @property
    def expected(self) -> bool:
        """Whether every fusion should be there: in a known family, and wherever there is an attention at all."""
        return self.known or bool(self.layers)

    def json(self) -> dict[str, Any]:
        """Plain values, schema ``onnx-gpt/explanation/1``."""
        return {
            "schema": SCHEMA,
            "source": self.source,
            "family": self.family,
            "pipeline": self.pipeline,
            "nodes": self.nodes,
            "missing": len(self.missing),
            "layers": [
                {"layer": i, "parts": [_plain(part) for part in parts]} for i, parts in enumerate(self.layers)
            ],
            "others": [_plain(part) for part in self.others],
        }


def explain(
    source: str, *, target: str = "ort", context_length: int | None = None, passes: str | None = None
) -> Explanation:
    """Run the passes that `optimize` would run and say what they made of a model.

    Nothing is written and no weight is read.

    Args:
        source: what `exporter.sources.load` takes.
        target, context_length, passes: as of `optimize`; of a target with several models the first that is named.

    Raises:
        OnnxGptError: what loading, exporting and the passes raise. A missing fusion is none here (`require_fused`).
    """
    exported = export(sources.load(source), context_length)
    pipeline = pipeline_of(exported, passes, chosen(target).models[0].pipeline)
    found = explain_graph(exported.model, pipeline)
    nodes, known = exported.model.graph.num_nodes(), exported.decoder is not None
    return Explanation(source, exported.family, known, pipeline, nodes, found.layers, found.others)


def require_fused(explanation: Explanation, *, told: bool = False) -> None:
    """Refuse a graph with a fusion missing, or with no attention in it.

    Args:
        told: the user has read `reasons` already.

    Raises:
        OnnxGptError: ``fusion-missing`` (exit 3), with every place and its reason.
    """
    if not explanation.layers:
        raise unsupported(
            "fusion-missing", "no attention is found in the graph", "check that it is a decoder"
        )
    if not explanation.missing:
        return
    raise unsupported(
        "fusion-missing",
        f"{len(explanation.missing)} fusions are missing from a graph of {len(explanation.layers)} layers",
        "export the model with what is named here spelled as the rule wants it, or add a rule "
        "(docs/writing-a-rule.md); --no-expect only looks",
        () if told else tuple(reasons(explanation)),
    )


def reasons(explanation: Explanation) -> Iterator[str]:
    """A line for every reason why fusions are missing: the layers, what is left in the first of them, and why."""
    alike: dict[tuple[str, ...], dict[int | None, dict[Part, None]]] = {}
    for layer, part in explanation.missing:
        assert part.reason is not None
        key = (part.reason.by, part.reason.rule, part.reason.why)
        alike.setdefault(key, {}).setdefault(layer, {})[part] = None
    for places in alike.values():
        layers = [layer for layer in places if layer is not None]
        where = ", ".join([*([span(layers)] if layers else []), *(["of no layer"] if None in places else [])])
        parts = list(next(iter(places.values())))
        left = " and ".join(
            f"{part.part.replace('_', ' ')} is left as {part.form} ({part.node})" for part in parts
        )
        yield f"{where}: {left}: {parts[0].reason}"


def span(layers: Sequence[int]) -> str:
    """``layers 0–3, 7`` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for layer in dict.fromkeys(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    return f"layer{'s' if len(set(layers)) > 1 else ''} {', '.join(texts)}"


def _plain(part: Part) -> dict[str, Any]:
    plain = dataclasses.asdict(part)
    return {"part": plain.pop("part"), "fused": part.reason is None, **plain}
