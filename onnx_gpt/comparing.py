"""Several models of one family tree on one text: what each has lost and gained, step by step and beside all others.

The first is what the others are compared with. Log perplexities are of the same tokens, so that the damages of the
steps of a chain (pruned, healed, quantized) add up to that of the whole; KL, which does not add up, is from the first.
Checkpoints are run as their own float graph, bundles as they are; PyTorch is not needed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from exporter.checkpoint import Checkpoint, GraphSource
from exporter.errors import Exit, OnnxGptError, rejected, unsupported
from exporter.onnx_format.reader import read_file
from exporter.writing import dtype_of, nbytes
from graph_passes import ORT_PIPELINE, run_pipeline
from graph_passes.structure.products import weights_multiplied
from onnx_gpt.bundle.writing import REPORT
from onnx_gpt.certificate.source import model_files
from onnx_gpt.exporting import export
from onnx_gpt.optimizing.calibrating import runnable
from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.metrics import Agreement
from onnx_gpt.parity.sides import Side, open_side, require_same_vocabulary
from onnx_gpt.parity.text import EvaluationTokens, evaluation_tokens, require_some
from onnx_gpt.planning.pareto import front
from onnx_gpt.progress import Progress, Silent
from onnx_gpt.searching.kernel_times import step_seconds

SCHEMA = "onnx-gpt/comparison/1"
WINDOW = 512
"""Tokens of a window of text, where the first model's context holds as many."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One model.

    Attributes:
        name: as it was given.
        parent: the one of the others that it was made from, as its report says; the first where that says nothing.
        bytes: of its weights as they are stored, a bundle's graph included.
        multiplications: by weights, for one token of a decode step.
        kl, kl_error: mean KL from the first and its standard error, nats a token.
        log_perplexity: nats a token.
        step: log perplexity more than the parent's.
        decode: tokens a second after 512 tokens, or what its context holds; None where it was not timed.
        front: whether no other is both as small and as near to the first.
    """

    name: str
    parent: str | None
    bytes: int
    multiplications: int
    kl: float
    kl_error: float
    log_perplexity: float
    step: float
    decode: float | None = None
    front: bool = False


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was measured, on so many predicted tokens of a text."""

    text: str
    tokens: int
    variants: tuple[Variant, ...]

    def json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "schema": SCHEMA,
            "text": self.text,
            "tokens": self.tokens,
            "variants": [dataclasses.asdict(one) for one in self.variants],
        }


def compare(
    first: str,
    *others: str,
    text: Path | None = None,
    tokens: int = 2048,
    time: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Measure models against the first, and each against the one that it was made from.

    Args:
        first, others: checkpoints, bundles or .onnx files of one vocabulary.
        text: UTF-8 file; the held-out part of Python's documentation by default.
        tokens: predicted tokens, at least.
        time: time decode steps, one model after the other; it means something on an idle machine only.

    Raises:
        OnnxGptError: ``compare-usage`` (exit 2) for one model alone; ``module-compare`` (exit 3);
            ``vocabulary-differs``; what opening, running and reading text raise.
    """
    progress = progress or Silent()
    names = list(dict.fromkeys((first, *others)))
    if len(names) < 2:
        raise OnnxGptError(
            "compare-usage",
            "one model alone is compared with nothing",
            "name another, or use validate",
            exit=Exit.USAGE,
        )
    require_some(tokens)
    sides = [open_side(name) for name in names]
    found: list[Variant] = []
    with tempfile.TemporaryDirectory(prefix="onnx-gpt-compare-") as folder:
        kept = Path(folder) / "reference"
        kept.mkdir()
        windows: EvaluationTokens | None = None
        vocab = 0
        for i, side in enumerate(sides):
            progress.stage(side.uri)
            with _running(side, Path(folder) / str(i), progress) as (model, graph):
                own = int(model.logits(np.zeros((1, 1), np.int64)).shape[-1])
                vocab = vocab or own
                require_same_vocabulary(own, vocab, (side.uri, names[0]))
                windows = windows or _text(sides, vocab, tokens, text)
                agreement = _measured(model, side.uri, windows.windows, kept, progress)
                decode = 1 / step_seconds(model.path, side.facts.context) if time else None
                found.append(_variant(side, names, graph, agreement, decode))
    assert windows is not None
    return Comparison(windows.origin, windows.predicted, _related(found))


def _text(sides: Sequence[Side], vocab: int, tokens: int, path: Path | None) -> EvaluationTokens:
    tokenizer = next((side.tokenizer for side in sides if side.tokenizer is not None), None)
    window = min([WINDOW, *(side.facts.context for side in sides if side.facts.context)])
    return evaluation_tokens(tokenizer, vocab, tokens=tokens, window=window, path=path)


@contextmanager
def _running(side: Side, folder: Path, progress: Progress) -> Iterator[tuple[Candidate, ir.Model]]:
    """A side as it is used, and its graph."""
    if isinstance(side.opened, GraphSource):
        yield Candidate(side.opened.path), read_file(side.opened.path)
    elif isinstance(side.opened, Checkpoint):
        model = export(side.opened).model
        run_pipeline(model, ORT_PIPELINE, verify=False)
        with runnable(model, folder, progress) as candidate:
            yield candidate, model
    else:
        raise unsupported(
            "module-compare", f"{side.uri} is a module, which has no size", "compare bundles made from it"
        )


def _measured(model: Candidate, name: str, windows: np.ndarray, kept: Path, progress: Progress) -> Agreement:
    """A model's agreement with the first, whose logits are kept in a file a window."""
    agreement = Agreement()
    for i, window in enumerate(windows):
        logits = model.logits(window[None])[0, :-1]
        if not np.isfinite(logits).all():
            raise rejected(
                "logits-not-finite",
                f"{name} gives logits that are not finite",
                "check it with `onnx-gpt ranges`",
            )
        reference = kept / f"{i}.npy"
        if not reference.exists():
            np.save(reference, logits)
        agreement.add(logits, np.load(reference), window[1:])
        progress.advance(i + 1, len(windows), "windows of text")
    return agreement


def _variant(
    side: Side, names: Sequence[str], graph: ir.Model, agreement: Agreement, decode: float | None
) -> Variant:
    kl = np.concatenate(agreement.kl)
    return Variant(
        name=side.uri,
        parent=_parent(side.uri, names),
        bytes=_bytes(side, graph),
        multiplications=weights_multiplied(graph.graph),
        kl=float(kl.mean()),
        kl_error=float(kl.std() / math.sqrt(len(kl))),
        log_perplexity=float(np.concatenate(agreement.nll).mean()),
        step=0.0,
        decode=decode,
    )


def _related(found: Sequence[Variant]) -> tuple[Variant, ...]:
    """With what each step has cost, and the front of size and KL."""
    by_name = {one.name: one for one in found}
    edge = front([(one.bytes, one.kl) for one in found])
    return tuple(
        dataclasses.replace(
            one,
            step=0.0 if one.parent is None else one.log_perplexity - by_name[one.parent].log_perplexity,
            front=i in edge,
        )
        for i, one in enumerate(found)
    )


def _parent(name: str, names: Sequence[str]) -> str | None:
    """Which of the models one was made from: what its report names, else the first."""
    if name == names[0]:
        return None
    folder = Path(name) if Path(name).is_dir() else Path(name).parent
    try:
        report = json.loads((folder / REPORT).read_text("utf-8"))
        source = report["source"]
        source = str(source["uri"] if isinstance(source, dict) else source)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # no report, or somebody else's
        return names[0]
    same = [other for other in names if other != name and _place(other) == _place(source)]
    return same[0] if same else names[0]


def _place(uri: str) -> str:
    return str(Path(uri).resolve()) if Path(uri).exists() else uri


def _bytes(side: Side, graph: ir.Model) -> int:
    if isinstance(side.opened, GraphSource):
        return sum(file.stat().st_size for file in model_files(side.opened.path, graph))
    assert isinstance(side.opened, Checkpoint)
    return nbytes(side.opened, dtype_of(side.opened.weights.values()))
