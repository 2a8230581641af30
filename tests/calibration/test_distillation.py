"""Training a decoder from its description: the same function as the exported graph, a loss that is what it says, and a
run that can be cut off anywhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny, variants

from calibration.distillation.initial import drawn
from calibration.distillation.objective import Objective, divergence
from calibration.distillation.running import logits, mixed_precision, residual, tensors
from calibration.distillation.scales import Scales, grid_of
from calibration.distillation.state import State
from calibration.distillation.teaching import Said, Told, digest_of
from calibration.distillation.training import Floats, Run, held_out_loss, train
from calibration.quantization import rtn
from calibration.scheme import Grid, RoundToNearest
from exporter.build import build
from exporter.checkpoint import Checkpoint
from exporter.decoder import Decoder
from exporter.errors import OnnxGptError
from exporter.families import describe, families
from exporter.match import match_weights
from exporter.resizing import resized_config
from exporter.variants import sizes_of
from exporter.weights import Array
from exporter.writing import stored_weights
from onnx_gpt.optimizing.calibrating import runnable
from onnx_gpt.progress import Silent

TOKENS = np.random.default_rng(0).integers(0, 131, (2, 24))


def silent(done: int, total: int, what: str) -> None: ...


def arrays(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {role: w.read() for role, w in match_weights(describe(checkpoint), checkpoint.weights).items()}


def run_in_torch(decoder: Decoder, weights: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        own = tensors(weights)
        found: np.ndarray = logits(decoder, own, residual(decoder, own, torch.from_numpy(TOKENS))).numpy()
    return found


def pruned(family: str) -> Checkpoint:
    """Layers of different sizes, which no configuration of the family can say."""
    source = tiny(family)
    sizes = [sizes_of(layer) for layer in describe(source).layers]
    sizes[1] = sizes[1].model_copy(update={"ffn": 48})
    shaped = dataclasses.replace(source, config=resized_config(source, sizes))
    whole = match_weights(describe(source), source.weights)
    cut = {
        role: Array(whole[role].read()[tuple(slice(size) for size in part.shape)])
        for role, part in describe(shaped).parts()
    }
    return dataclasses.replace(shaped, weights=stored_weights(describe(shaped), cut))


CHECKPOINTS = [*variants(), *((family, "pruned") for family in families())]


@pytest.mark.parametrize(("family", "variant"), CHECKPOINTS, ids=["-".join(pair) for pair in CHECKPOINTS])
def test_a_description_runs_as_its_exported_graph_does(family: str, variant: str, tmp_path: Path) -> None:
    checkpoint = pruned(family) if variant == "pruned" else tiny(family, variant=variant)
    decoder = describe(checkpoint)
    graph = build(decoder, match_weights(decoder, checkpoint.weights))
    with runnable(graph, tmp_path / "graph", Silent(), optimized=False) as exported:
        expected = exported.logits(TOKENS)
    found = run_in_torch(decoder, arrays(checkpoint))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


# The loss ---------------------------------------------------------------------------------------------------------


def told_by(scores: torch.Tensor, kept: int) -> Told:
    """What a teacher with such logits says, as its files would have it."""
    log = scores.log_softmax(-1)
    top, tokens = log.topk(kept)
    rest = None if kept == scores.shape[-1] else (1 - top.exp().sum(-1)).clamp(min=1e-30).log()
    return Told(torch.zeros(scores.shape[:2], dtype=torch.int64), tokens, top, rest, None)


def drawn_scores(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (1, 5, 40)))


def test_all_tokens_kept_is_kl_itself() -> None:
    ours, theirs = drawn_scores(1), drawn_scores(2)
    expected = (theirs.softmax(-1) * (theirs.log_softmax(-1) - ours.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(divergence(ours, told_by(theirs, 40)), expected)


@pytest.mark.parametrize("kept", [1, 8, 39])
def test_a_bucket_is_never_more_than_kl_and_nothing_only_for_the_teacher_itself(kept: int) -> None:
    ours, theirs = drawn_scores(1), drawn_scores(2)
    whole = divergence(ours, told_by(theirs, 40))
    assert (divergence(ours, told_by(theirs, kept)) <= whole + 1e-9).all()
    assert divergence(theirs, told_by(theirs, kept)).abs().max() < 1e-6


def test_a_student_that_has_only_the_right_proportions_of_what_is_kept_is_still_wrong() -> None:
    """Renormalising would not see this: half of the student's probability is where the teacher's is not."""
    theirs = torch.log(torch.tensor([[[0.5, 0.3, 0.1, 0.1]]]))
    ours = torch.log(torch.tensor([[[0.25, 0.15, 0.3, 0.3]]]))
    assert float(divergence(ours, told_by(theirs, 2))) > 0.2


@pytest.mark.parametrize("kept", [16, 131])
def test_gradients_of_the_loss_are_right(kept: int) -> None:
    checkpoint = tiny("llama")
    decoder = describe(checkpoint)
    weights = {role: t.double().requires_grad_() for role, t in tensors(arrays(checkpoint)).items()}
    theirs = torch.from_numpy(np.random.default_rng(3).normal(0, 1, (1, 12, 131)))
    told = told_by(theirs, kept)
    told.windows = torch.from_numpy(TOKENS[:1, :12])
    objective = Objective(mix=0.3, temperature=2.0)
    objective.loss(decoder, weights, told).backward()
    for role in ("layers.1.ffn.down.weight", "layers.0.attention_norm.weight", "embedding.weight"):
        weight, step = weights[role], 1e-6
        way = torch.from_numpy(np.random.default_rng(4).normal(0, 1, tuple(weight.shape)))
        with torch.no_grad():
            sides = [
                objective.loss(decoder, {**weights, role: weight + sign * step * way}, told)
                for sign in (1, -1)
            ]
        assert weight.grad is not None
        expected = float((sides[0] - sides[1]) / (2 * step))
        assert float((weight.grad * way).sum()) == pytest.approx(expected, rel=1e-4)


def test_a_student_far_off_has_a_finite_loss() -> None:
    """Nothing is left for the rest in float32, and nothing for a token that the teacher names."""
    theirs = torch.log(torch.tensor([[[0.5, 0.3, 0.1, 0.1]]]))
    ours = torch.tensor([[[0.0, -400.0, -400.0, -400.0]]], requires_grad=True)
    loss = divergence(ours, told_by(theirs, 2)).sum()
    loss.backward()
    assert 20 < float(loss.detach()) < 1000
    assert ours.grad is not None and bool(torch.isfinite(ours.grad).all())


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "llama"])
def test_products_of_bfloat16_leave_logits_what_they_are(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibration.distillation.running.has_bfloat16", lambda: True)
    checkpoint = tiny(family, 1)
    decoder, weights = describe(checkpoint), arrays(checkpoint)
    exact = torch.from_numpy(run_in_torch(decoder, weights))
    with mixed_precision():
        found = torch.from_numpy(run_in_torch(decoder, weights))
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    assert float(divergence(found, told_by(exact, 131)).mean()) < 1e-3


# What a teacher said ------------------------------------------------------------------------------------------------


def filled(folder: Path, checkpoint: Checkpoint, windows: np.ndarray, hidden: int | None = None) -> Said:
    said = Said(folder, windows, 131, hidden)
    said.fill(describe(checkpoint), tensors(arrays(checkpoint)), 1.0, silent)
    return said


def test_what_a_teacher_said_is_its_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.distillation.teaching.KEPT", 32)
    monkeypatch.setattr("calibration.distillation.running.has_bfloat16", lambda: False)
    checkpoint = tiny("qwen3")
    said = filled(tmp_path, checkpoint, TOKENS, 64)
    told = said.of([1])
    expected = run_in_torch(describe(checkpoint), arrays(checkpoint))[1]
    log = torch.from_numpy(expected).log_softmax(-1)
    torch.testing.assert_close(
        told.log_probabilities[0], log.gather(-1, told.tokens[0]), atol=2e-3, rtol=2e-3
    )
    assert told.rest is not None and 0 < said.rest < 0.8
    sums = told.log_probabilities.exp().sum(-1) + told.rest.exp()
    torch.testing.assert_close(sums, torch.ones_like(sums))
    assert told.residual is not None and told.residual.shape == (1, 24, 64)
    assert float(divergence(torch.from_numpy(expected)[None], told).abs().max()) < 1e-5


def test_windows_that_a_killed_teacher_has_read_are_not_read_again(tmp_path: Path) -> None:
    checkpoint = tiny("llama")
    whole = filled(tmp_path / "whole", checkpoint, TOKENS)
    heard: list[int] = []

    def killed(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    cut = Said(tmp_path / "cut", TOKENS, 131, None)
    weights = tensors(arrays(checkpoint))
    with pytest.raises(KeyboardInterrupt):
        cut.fill(describe(checkpoint), weights, 1.0, killed)
    again = Said(tmp_path / "cut", TOKENS, 131, None)
    assert again.filled == 1
    again.fill(describe(checkpoint), weights, 1.0, lambda done, total, what: heard.append(done))
    assert heard == [2]
    for name in ("tokens.npy", "log_probabilities.npy"):
        assert (tmp_path / "cut" / name).read_bytes() == (whole.folder / name).read_bytes()
    (tmp_path / "cut" / "tokens.npy").write_bytes(b"cut off")
    assert Said(tmp_path / "cut", TOKENS, 131, None).filled == 0


def test_another_teacher_text_or_temperature_is_another_digest() -> None:
    checkpoint = tiny("llama")
    decoder, weights = describe(checkpoint), tensors(arrays(checkpoint))
    changed = {role: t + (0.001 if role == "norm.weight" else 0) for role, t in weights.items()}
    digests = {
        digest_of(decoder, weights, TOKENS, 1.0),
        digest_of(decoder, changed, TOKENS, 1.0),
        digest_of(decoder, weights, TOKENS[:1], 1.0),
        digest_of(decoder, weights, TOKENS, 2.0),
    }
    assert len(digests) == 4
    assert digest_of(decoder, weights, TOKENS, 1.0) in digests


# The loop -----------------------------------------------------------------------------------------------------------

WINDOWS = np.random.default_rng(5).integers(0, 131, (12, 16))


def a_run(folder: Path, **settings: object) -> tuple[Run, Floats]:
    teacher, student = tiny("llama", 1), describe(tiny("llama"))
    given = {"objective": Objective(), "steps": 12, "batch": 3, "rate": 3e-3, "seed": 7, "held_out": 2}
    run = Run(decoder=student, said=filled(folder, teacher, WINDOWS), **(given | settings))  # type: ignore[arg-type]
    return run, Floats(tensors(drawn(student, 0)))


def same(one: State, other: State) -> bool:
    groups = ("values", "first", "second", "best")
    pairs = [(getattr(one, name), getattr(other, name)) for name in groups]
    return one.curve == other.curve and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs
    )


def test_training_comes_closer_to_the_teacher_and_gives_back_the_best(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path / "said", steps=40)
    rng = np.random.default_rng(6)
    hurt = {
        role: w * rng.normal(1, 0.3, w.shape).astype(np.float32)
        for role, w in arrays(tiny("llama", 1)).items()
    }
    student = Floats(tensors(hurt))
    done = train(run, student, tmp_path / "states", silent)
    losses = dict(done.curve)
    assert losses[done.best_step] == min(losses.values()) < 0.75 * losses[0]
    best = held_out_loss(run, Floats({role: t.clone() for role, t in done.best.items()}))
    assert best == pytest.approx(losses[done.best_step], rel=1e-6)


@pytest.mark.parametrize("cut_at", [1, 5, 11])
def test_a_run_that_is_cut_off_ends_as_one_that_is_not(cut_at: int, tmp_path: Path) -> None:
    run, student = a_run(tmp_path / "said")
    whole = train(run, student, tmp_path / "whole", silent)

    def killed(done: int, total: int, what: str) -> None:
        if done == cut_at:
            raise KeyboardInterrupt

    run, student = a_run(tmp_path / "said")
    with pytest.raises(KeyboardInterrupt):
        train(run, student, tmp_path / "cut", killed)
    run, student = a_run(tmp_path / "said")
    resumed = train(run, student, tmp_path / "cut", silent)
    assert same(whole, resumed)
    assert resumed.resumed == (() if cut_at == 1 else (cut_at - 1,))


def test_training_ends_when_the_held_out_loss_keeps_rising(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, student = a_run(tmp_path / "said", steps=20)
    losses = iter([0.5, 0.6, 0.4, 0.41, 0.42, 0.43, 0.44])
    monkeypatch.setattr("calibration.distillation.training.LOOKS", 10)
    monkeypatch.setattr("calibration.distillation.training.held_out_loss", lambda run, student: next(losses))
    done = train(run, student, tmp_path / "states", silent)
    assert [loss for _, loss in done.curve] == [0.5, 0.6, 0.4, 0.41, 0.42, 0.43]
    assert (done.step, done.best_step) == (10, 4)


def test_a_rate_that_is_too_large_is_an_error(tmp_path: Path) -> None:
    run, student = a_run(tmp_path / "said", rate=1e30)
    with pytest.raises(OnnxGptError) as caught:
        train(run, student, tmp_path / "states", silent)
    assert caught.value.code == "training-diverged"


def test_every_window_is_read_once_before_any_is_read_again(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path / "said", steps=20)
    read = [row for step in range(20) for row in run.windows_at(step)]
    for turn in range(6):
        assert sorted(read[turn * 10 : (turn + 1) * 10]) == list(range(2, 12))
    assert read[:10] != read[10:20]
    rates = [run.rate_at(step) for step in range(20)]
    assert max(rates) == rates[0] == run.rate and rates[-1] < 0.02 * run.rate


@pytest.mark.parametrize("family", sorted(families()))
def test_an_untrained_student_of_every_family_says_that_all_tokens_are_alike(family: str) -> None:
    decoder = describe(tiny(family))
    scores = torch.from_numpy(run_in_torch(decoder, drawn(decoder, 0)))
    entropy = -(scores.softmax(-1) * scores.log_softmax(-1)).sum(-1).mean()
    assert float(entropy) == pytest.approx(np.log(131), abs=0.1)


# A quantized student ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_stay_and_rounding_finds_them_again(bits: int) -> None:
    grid = Grid(bits, 32)
    given = arrays(tiny("gpt2"))
    student = Scales(given, RoundToNearest(grid, grid))
    before = student.arrays(student.values)
    rng = np.random.default_rng(0)
    moved = {
        role: value.detach() + torch.from_numpy(rng.uniform(-0.2, 0.2, value.shape).astype(np.float32))
        for role, value in student.values.items()
    }
    after = student.arrays(moved)
    blocks = wrong = 0
    for role, array in after.items():
        if grid_of(RoundToNearest(grid, grid), role, array.shape) is None:
            continue
        np.testing.assert_array_equal(before[role], rtn.nearest(given[role], grid))
        codes = [rtn.quantize(side[role], grid).codes for side in (before, after)]
        np.testing.assert_array_equal(*codes)
        assert not np.array_equal(before[role], array)
        wrong += int((rtn.nearest(array, grid) != array).sum())
        blocks += array.size
    assert blocks and wrong <= 1e-4 * blocks
    np.testing.assert_array_equal(after["positions.weight"], given["positions.weight"])


def test_scales_norms_and_biases_are_all_that_is_trained(tmp_path: Path) -> None:
    teacher = tiny("llama", 1)
    run, _ = a_run(tmp_path / "said")
    student = Scales(arrays(teacher), RoundToNearest(Grid(4, 32), Grid(4, 32)))
    done = train(run, student, tmp_path / "states", silent)
    assert min(loss for _, loss in done.curve) < done.curve[0][1]
    trained = sum(value.numel() for value in student.values.values())
    assert trained < sum(array.size for array in arrays(teacher).values()) / 24
