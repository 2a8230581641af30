"""Where the error of a lossy graph enters and where it grows: point by point, in the runtime's own arithmetic.

Four runs tell it. The reference as it is; the candidate as it is, whose distance has *grown* to what it is; the
candidate with every point given what the reference has there, so that what it is off by at the next one is what
*enters* between the two; and the reference with the error of one block put in alone, whose logits say what that block
*costs*.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnx_gpt.bisecting.aligning import STREAM, aligned
from onnx_gpt.bisecting.cases import Case, Feeding
from onnx_gpt.bundle.writing import MODEL, save
from onnx_gpt.parity.metrics import divergence, log_softmax
from onnx_gpt.progress import Progress

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far one point is from the reference.

    Attributes:
        point: ``layers.3.heads``.
        enters: relative error, in root mean square, with all earlier points as the reference has them.
        grown: the same of the candidate as it is.
        cosine: of all values of the point, the candidate as it is and the reference.
        kl: mean KL divergence, nats a token, of the reference with this block's error alone; None for a point that no
            block ends at, and where it was not asked for.
    """

    point: str
    enters: float
    grown: float
    cosine: float
    kl: float | None = None


def distances(
    candidate: ir.Model, reference: ir.Model, tokens: np.ndarray, progress: Progress, *, costs: bool = True
) -> list[Distance]:
    """Compare two graphs of one model on a prompt; neither is changed.

    Args:
        tokens: int64 ``[1, S]``.
        costs: measure what each block costs too: a run of the reference for each.

    Raises:
        OnnxGptError: ``roles-missing``, ``interface-unknown`` (exit 3).
    """
    places = aligned(candidate, reference)
    our_feeds, their_feeds = _feeds(candidate, tokens), _feeds(reference, tokens)
    names = {point: (str(a.name), str(b.name)) for point, (a, b) in places.items()}
    ends = [point for point in names if _kind(point) in (*STREAM, "norm")]
    watched = _watched(reference, [b for _, b in names.values()])
    with _running(_shifted(watched, [names[p][1] for p in ends if costs]), their_feeds, progress) as run:
        theirs = run({}, [b for _, b in names.values()])
        truth = {point: theirs[b] for point, (_, b) in names.items()}
        with _running(_watched(candidate, [a for a, _ in names.values()]), our_feeds, progress) as other:
            ours = other({}, [a for a, _ in names.values()])
        entering = _forced(candidate, names, truth, our_feeds, progress)
        wanted = log_softmax(truth["logits"])
        costing: dict[str, float] = {}
        if costs:
            between = {point: own for point, own in names.items() if _kind(point) in BETWEEN}
            block = _forced(candidate, between, truth, our_feeds, progress)
            for i, point in enumerate(ends):
                delta = block[point] - truth[point]
                logits = run({f"shift.{names[point][1]}": delta}, ["logits"])["logits"]
                costing[point] = float(divergence(log_softmax(logits)[0], wanted[0]).mean())
                progress.advance(i + 1, len(ends), "blocks")
    return [
        Distance(
            point,
            rms_error(entering[point], truth[point]),
            rms_error(ours[a], truth[point]),
            cosine(ours[a], truth[point]),
            costing.get(point),
        )
        for point, (a, _) in names.items()
    ]


BETWEEN = ("embedding", "attention_norm", "ffn_norm", "norm", *STREAM)
"""Points between which blocks lie. A norm that makes the sum itself would carry one block's error into the next."""


def _kind(point: str) -> str:
    return point.rpartition(".")[2]


def rms_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Root mean square of the difference, of the wanted values."""
    a, b = found.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    size = np.linalg.norm(b)
    return float(np.linalg.norm(a - b) / size) if size else float(np.linalg.norm(a) > 0)


def cosine(found: np.ndarray, wanted: np.ndarray) -> float:
    """Of the angle between all values of the one and of the other."""
    a, b = found.astype(np.float64).ravel(), wanted.astype(np.float64).ravel()
    sizes = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / sizes) if sizes else 1.0


def _forced(
    candidate: ir.Model,
    names: Mapping[str, tuple[str, str]],
    truth: Arrays,
    feeds: Arrays,
    progress: Progress,
) -> Arrays:
    """What the candidate makes at each point out of what the reference has at the points before."""
    own = {point: a for point, (a, _) in names.items()}
    given = {f"given.{name}": truth[point] for point, name in own.items()}
    with _running(_cut(candidate, list(own.values())), feeds, progress) as run:
        found = run(given, list(own.values()))
    return {point: found[name].reshape(truth[point].shape) for point, name in own.items()}


def _watched(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy that gives out these values."""
    copy = model.clone()
    known = {str(value.name): value for node in copy.graph for value in node.outputs}
    outputs = {str(value.name) for value in copy.graph.outputs}
    copy.graph.outputs.extend(known[name] for name in dict.fromkeys(names) if name not in outputs)
    return copy


def _cut(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy that gives these values out, and goes on with inputs ``given.NAME`` in their place."""
    copy = _watched(model, names)
    for value in list(copy.graph.outputs):
        name = str(value.name)
        if name not in names or not value.uses():
            continue
        new = ir.Value(name=f"given.{name}", type=ir.TensorType(ir.DataType.FLOAT))
        for node, i in list(value.uses()):
            node.replace_input_with(i, new)
        copy.graph.inputs.append(new)
    return copy


def _shifted(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy that goes on with inputs ``shift.NAME`` added to these values, 0 where they are not given."""
    copy = model.clone()
    known = {str(value.name): value for node in copy.graph for value in node.outputs}
    for name in names:
        value = known[name]
        zero = ir.tensor(np.zeros(1, np.float32), name=f"shift.{name}")
        shift = ir.Value(name=f"shift.{name}", type=ir.TensorType(ir.DataType.FLOAT), const_value=zero)
        maker = value.producer()
        assert maker is not None
        if value is not maker.outputs[0]:
            # A sum inside a fused norm: what is added to one summand is in both outputs.
            added = ir.node("Add", [maker.inputs[0], shift], outputs=[ir.Value(name=f"{name}.shifted")])
            copy.graph.insert_before(maker, added)
            maker.replace_input_with(0, added.outputs[0])
        else:
            users = list(value.uses())
            added = ir.node("Add", [value, shift], outputs=[ir.Value(name=f"{name}.shifted")])
            copy.graph.insert_after(maker, added)
            for node, i in users:
                node.replace_input_with(i, added.outputs[0])
        copy.graph.inputs.append(shift)
        copy.graph.register_initializer(shift)
    return copy


def _feeds(model: ir.Model, tokens: np.ndarray) -> Arrays:
    case = Case("prompt", (0,), (tokens.shape[1],), (tokens.shape[1],))
    return Feeding(model).feeds(case, tokens, 0, {})


@contextmanager
def _running(model: ir.Model, feeds: Arrays, progress: Progress) -> Iterator[Runner]:
    with tempfile.TemporaryDirectory(prefix="onnx-gpt-compare-") as folder:
        save(model, Path(folder), progress)
        yield Runner(Path(folder) / MODEL, feeds)


class Runner:
    """A written model on one prompt, by onnxruntime as it runs a bundle."""

    def __init__(self, path: Path, feeds: Arrays) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._inputs |= {value.name for value in self._session.get_overridable_initializers()}
        self._feeds = feeds

    def __call__(self, more: Arrays, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        """Values by name.

        Args:
            more: inputs beside those of the model; what it does not take is left out.
        """
        feeds = {**self._feeds, **{name: array for name, array in more.items() if name in self._inputs}}
        return dict(zip(wanted, self._session.run(list(wanted), feeds), strict=True))
