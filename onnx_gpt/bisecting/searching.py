"""Which stage of a pipeline is the first after which a decoder gives something else, and where in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from graph_passes.matching import listening, role_of
from graph_passes.proof.evaluate import CannotEvaluate
from graph_passes.proof.samples import Scenario
from onnx_gpt.bisecting import codes
from onnx_gpt.bisecting.cases import Case, Feeding
from onnx_gpt.bisecting.judging import Deviation, Truth, deviations, largest_error
from onnx_gpt.bisecting.locating import Piece, Wrong, judge, pieces
from onnx_gpt.bisecting.running import as_written, run


@dataclasses.dataclass(frozen=True)
class Stage:
    """A step from graph to graph.

    Attributes:
        name: of the pass.
        apply: changes the model in place.
        lossy: it changes values on purpose; what it does is judged piece by piece (`onnx_gpt.bisecting.codes`).
    """

    name: str
    apply: Callable[[ir.Model], object]
    lossy: bool = False


@dataclasses.dataclass(frozen=True)
class Firing:
    """One replacement that a pass made.

    Attributes:
        number: counted from 1.
        place: role of the node at which it was.
        nodes: names of the new nodes.
    """

    number: int
    place: str
    nodes: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Judged:
    """What came of one stage.

    Attributes:
        worst: the case in which the graph after it is furthest from the truth; None of a lossy stage, and of one that
            the search did not have to run.
        firings: replacements that it made.
        wrong: whether the graph after it is.
        judged: whether that is known by itself.
    """

    name: str
    worst: Deviation | None
    firings: tuple[Firing, ...]
    wrong: bool
    judged: bool = True


@dataclasses.dataclass(frozen=True)
class Culprit:
    """The piece that makes a stage's result wrong.

    Attributes:
        wrong: the piece, and how its sides differ.
        case: the case in which it shows.
        firing: that left it; None where the pass changed it by other means than replacing.
        explains: whether the outputs of that call are right again with the values that the graph before has there:
            of this piece ``alone``, of all that differ ``together``, or ``no``.
        others: places of further pieces that differ.
    """

    wrong: Wrong
    case: str
    firing: Firing | None
    explains: str
    others: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        stages: judged ones, up to the first that is wrong.
        culprit: None where no stage is wrong, or no single piece of it is.
    """

    truth: Truth
    stages: tuple[Judged, ...]
    culprit: Culprit | None

    @property
    def wrong(self) -> Judged | None:
        """The first stage that is wrong."""
        return next((stage for stage in self.stages if stage.wrong), None)


Report = Callable[[str], None]


def search(model: ir.Model, stages: Sequence[Stage], truth: Truth, report: Report = lambda _: None) -> Search:
    """Apply stages one after the other, and find the first after which the graph is wrong, by halving.

    Stages that are not lossy come first. Where the graph after all of these is right, none of them is looked at again.

    Args:
        model: the graph that stages start from, changed in place. It is itself the first that is judged, since what
            follows a cache has to agree with a whole prompt in it too.
        truth: of that graph, or of one that it has to agree with, on two rows of text.
        report: told of each stage before it is applied or judged.

    Raises:
        OnnxGptError: ``interface-unknown`` (exit 3), and what the stages raise.
    """
    tried = truth.cases

    def judged(index: int) -> Judged:
        report(f"{names[index]}: run")
        found = deviations(graphs[index], truth, tried)
        worst = max(found, key=lambda deviation: deviation.error)
        return Judged(names[index], worst, fired[index], not worst.error <= truth.tolerance)

    names, graphs, fired = ["source"], [model.clone()], [tuple[Firing, ...]()]
    results = {0: judged(0)}
    exact = next((i for i, stage in enumerate(stages) if stage.lossy), len(stages))
    if not results[0].wrong:
        for stage in stages[:exact]:
            names.append(stage.name)
            fired.append(_apply(stage, model, report))
            graphs.append(model.clone())
    low, high = 0, len(graphs) - 1
    if high and not results.setdefault(high, judged(high)).wrong:
        low = high
    while high - low > 1:
        middle = (low + high) // 2
        results[middle] = judged(middle)
        low, high = (low, middle) if results[middle].wrong else (middle, high)
    done = [results.get(i, Judged(names[i], None, fired[i], False, judged=False)) for i in range(len(graphs))]
    if results[high].wrong:
        culprit = _culprit(graphs[high - 1], graphs[high], truth, tried, done[high]) if high else None
        return Search(truth, tuple(done[: high + 1]), culprit)
    graphs.clear()
    for stage in stages[exact:]:
        before = model.clone()
        firings = _apply(stage, model, report)
        report(f"{stage.name}: compare")
        found = next(_wrong_codes(before, model.clone(), truth.text, tried), None)
        done.append(Judged(stage.name, None, firings, found is not None))
        if found is not None:
            return Search(truth, tuple(done), Culprit(found[1], found[0], None, "no", ()))
    return Search(truth, tuple(done), None)


def _apply(stage: Stage, model: ir.Model, report: Report) -> tuple[Firing, ...]:
    report(stage.name)
    firings: list[Firing] = []
    with listening(_recorder(firings)):
        stage.apply(model)
    as_written(model)
    return tuple(firings)


def _recorder(firings: list[Firing]) -> Callable[..., None]:
    def record(at: ir.Node, old: object, new: Sequence[ir.Node], values: object) -> None:
        firings.append(Firing(len(firings) + 1, role_of(at), frozenset(str(node.name) for node in new)))

    return record


def _culprit(
    before: ir.Model, after: ir.Model, truth: Truth, tried: Sequence[Case], stage: Judged
) -> Culprit | None:
    """The first piece that is wrong and whose values explain the outputs; else the first that is wrong."""
    for case in tried:
        for feeds, values, scenario in _calls(before, after, truth.text, case):
            wrong = [
                Wrong(piece, why, scenario, values)
                for piece in pieces(before, after, values)
                if (why := judge(piece, values, scenario))
            ]
            if not wrong:
                continue
            near = 10 * truth.tolerance
            alone = next((w for w in wrong if _explain([w], after, feeds, near)), None)
            chosen = alone or wrong[0]
            others = tuple(w.piece.place for w in wrong if w is not chosen)
            explains = "alone" if alone else "together" if _explain(wrong, after, feeds, near) else "no"
            return Culprit(chosen, case.name, _firing_of(chosen.piece, stage), explains, others)
    return None


def _calls(
    before: ir.Model, after: ir.Model, text: np.ndarray, case: Case
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray], Scenario]]:
    """Feeds of both graphs, all values of the graph before, and lengths, of each call of a case that both take."""
    feeding, theirs = Feeding(before), Feeding(after)
    if not (feeding.takes(case) and theirs.takes(case)):
        return
    past: dict[str, np.ndarray] = {}
    lengths = case.lengths if len(set(case.lengths)) > 1 else ()
    for call, (start, stop) in enumerate(case.places()):
        if past and not set(theirs.pasts.values()) <= set(past):
            return  # a pass that renames the cache is looked at in the first call
        feeds = theirs.feeds(case, text, call, past) | (own := feeding.feeds(case, text, call, past))
        try:
            past = run(before, [own], None)[0]
        except CannotEvaluate:
            return
        yield (
            feeds,
            feeds | past,
            Scenario(len(case.rows), stop - start, case.before(call), lengths, case.keep or stop - start),
        )


def _explain(wrong: Sequence[Wrong], after: ir.Model, feeds: dict[str, np.ndarray], near: float) -> bool:
    """Whether the graph after gives what the one before gave, once it has the pieces' values from there."""
    values = wrong[0].values
    given = {name: values[name] for one in wrong for name in one.piece.names}
    try:
        fixed = run(after, [feeds], given=[given])[0]
    except CannotEvaluate:
        return False
    return all(_close(fixed[name], values[name], near) for name in fixed if name in values)


def _close(found: np.ndarray, wanted: np.ndarray, near: float) -> bool:
    return found.shape == wanted.shape and largest_error(found, wanted) <= near


def _firing_of(piece: Piece, stage: Judged) -> Firing | None:
    """The last firing that made a node of the piece, the node that gives its values first."""
    for snapshot in reversed(piece.after.nodes):
        maker = snapshot.outputs[0].producer()
        name = None if maker is None else maker.name
        for firing in reversed(stage.firings):
            if name in firing.nodes:
                return firing
    return None


def _wrong_codes(
    before: ir.Model, after: ir.Model, text: np.ndarray, tried: Sequence[Case]
) -> Iterator[tuple[str, Wrong]]:
    """Pieces of a quantized graph that are further from the float one than codes of their grid have to be."""
    case = tried[0]
    for _, values, scenario in _calls(before, after, text, case):
        for piece in pieces(before, after, values):
            why = codes.judge(piece) if codes.is_coded(piece) else judge(piece, values, scenario)
            if why:
                yield case.name, Wrong(piece, why, scenario, values)
