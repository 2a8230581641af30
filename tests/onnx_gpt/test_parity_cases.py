"""Every case on a decoder that is right, and on one that is wrong in the way that the case is there for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tiny_decoders import CONTEXT, VOCAB, save_bundle

from exporter.errors import rejected
from graph_passes.lowering.lengths import LEFT_PADDING
from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.parity.cases import Trial, cases
from onnx_gpt.parity.checks import run_checks
from onnx_gpt.report import Check, Deviation, Noise

NOISE = Noise(worst=1e-5, rms=1e-5, positions=1, ways={"assumed": Deviation(worst=1e-5, rms=1e-5)})
SMALL_VOCAB, WIDTH = 17, 8


@dataclasses.dataclass(frozen=True)
class Toy:
    """A decoder in numpy whose attention is a mean: each token sees itself and all real tokens before it.

    ``fault`` names what is wrong with it.
    """

    fault: str = ""
    cached: bool = True
    remembers: bool = True
    pads: bool = True
    batches: bool = True
    refuses: bool = False
    cache_axis: int = 1
    name: str = "toy"

    def run(
        self,
        tokens: np.ndarray,
        mask: np.ndarray | None = None,
        past: Mapping[str, np.ndarray] | None = None,
        *,
        keep: int = 0,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        rng = np.random.default_rng(0)
        table, turns, head = (
            rng.standard_normal(shape) for shape in ((SMALL_VOCAB, WIDTH), (64, WIDTH), (WIDTH, SMALL_VOCAB))
        )
        before = past["cache"] if past else np.zeros((len(tokens), 0, WIDTH))
        seen, total = before.shape[1], before.shape[1] + tokens.shape[1]
        valid = np.ones((len(tokens), total), np.int64) if mask is None else mask
        if self.refuses and (valid[:, 0] == 0).any():
            raise rejected("model-run-failed", f"node {LEFT_PADDING} failed", "pad on the right")
        if self.fault == "fails on pieces" and seen and tokens.shape[1] > 1:
            raise rejected("model-run-failed", "shapes do not fit", "export it again")
        if self.fault == "needs two tokens" and total == 1:
            raise rejected("model-run-failed", "one token is too few", "export it again")
        places = np.maximum(np.cumsum(valid, axis=1) - 1, 0)[:, seen:]
        if self.fault == "positions forget the past":
            places = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        if self.fault == "positions count padding":
            places = np.broadcast_to(np.arange(seen, total), tokens.shape)
        keys = np.concatenate([before, table[tokens] * turns[places]], axis=1)
        visible = np.tril(np.ones((total, total)))[seen:][None] * valid[:, None, :]
        if self.fault == "padding is seen":
            visible = np.tril(np.ones((total, total)))[seen:][None] + 0 * valid[:, None, :]
        if self.fault == "no causal mask":
            visible = np.broadcast_to(valid[:, None, :], (len(tokens), tokens.shape[1], total)).copy()
        if self.fault == "one row's mask for all":
            visible = np.broadcast_to(visible[:1], visible.shape)
        if self.fault == "rows see each other":
            keys = keys + 0.1 * keys.mean(axis=0, keepdims=True)
        if self.fault == "the first row is special":
            keys = keys * np.where(np.arange(len(tokens)) == 0, 1.0, 1.01)[:, None, None]
        if self.fault == "a step sees itself alone" and seen and tokens.shape[1] == 1:
            visible[:, :, :seen] = 0
        weights = visible / np.maximum(visible.sum(-1, keepdims=True), 1)
        logits = ((weights @ keys + table[tokens]) @ head).astype(np.float32)
        return logits[:, -keep:] if keep else logits, {"cache": keys}

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return self.run(tokens)[0]


def checked(model: Toy | Candidate, vocab: int = SMALL_VOCAB, **facts: int) -> dict[str, Check]:
    tokens = np.random.default_rng(1).integers(0, vocab, 24)
    trial = Trial(model, model, tokens, vocab, **facts)  # type: ignore[arg-type]
    return run_checks(trial, noise=NOISE, limit=0.0, far_limit=0.0)


def failing(model: Toy | Candidate, vocab: int = SMALL_VOCAB, **facts: int) -> set[str]:
    return {name for name, check in checked(model, vocab, **facts).items() if check.verdict == "fail"}


def test_a_right_decoder_passes_every_case_that_applies() -> None:
    found = checked(Toy())
    assert {check.verdict for check in found.values()} == {"pass", "not run"}
    assert found.keys() == cases().keys()
    reasons = {name: check.detail for name, check in found.items() if check.verdict == "not run"}
    assert reasons.keys() == {"context", "keep", "shared_cache", "window"} and all(reasons.values())


@pytest.mark.parametrize(
    ("fault", "case"),
    [
        ("no causal mask", "causal"),
        ("positions forget the past", "decode"),
        ("positions forget the past", "empty_past"),
        ("a step sees itself alone", "decode"),
        ("fails on pieces", "chunked"),
        ("needs two tokens", "empty_past"),
        ("rows see each other", "batch"),
        ("the first row is special", "batch_order"),
        ("one row's mask for all", "right_padding"),
        ("padding is seen", "left_padding"),
        ("positions count padding", "left_padding"),
    ],
)
def test_a_case_catches_what_it_is_there_for(fault: str, case: str) -> None:
    assert case in failing(Toy(fault, refuses=case == "right_padding"))


def test_left_padding_may_be_refused_by_the_node_that_says_so() -> None:
    found = checked(Toy(refuses=True))["left_padding"]
    assert found.verdict == "pass" and LEFT_PADDING in found.detail
    assert found.value is None and not failing(Toy(refuses=True))


def test_a_step_after_padding_on_the_right_is_asked_of_graphs_that_are_fed_so() -> None:
    """One that takes padding on the left may count places, as ``attention{padding=any}`` does."""
    assert "step" not in checked(Toy())["right_padding"].detail
    assert "step" in checked(Toy(refuses=True))["right_padding"].detail


def test_a_case_that_does_not_apply_says_why() -> None:
    found = checked(Toy(cached=False, remembers=False, pads=False, batches=False))
    reasons = {name: check.detail for name, check in found.items() if check.verdict == "not run"}
    assert reasons.keys() == cases().keys() - {"causal"}
    assert "attention_mask" in reasons["left_padding"] and "one row" in reasons["batch"]


def test_logits_of_another_number_of_tokens_fail() -> None:
    class Short(Toy):
        def run(self, tokens, mask=None, past=None, *, keep=0):  # type: ignore[no-untyped-def]
            logits, cache = super().run(tokens, mask, past)
            return logits[:, -1:], cache

    assert {"decode", "chunked", "empty_past"} & failing(Short())


@pytest.mark.parametrize("kind", ["shared", "growing", "none"])
def test_real_graphs_of_every_kind_pass(kind: str, tmp_path: Path) -> None:
    """Of one row: these graphs look at no padding, and two of them take one row alone."""
    candidate = Candidate(save_bundle(tmp_path, kind, keep=kind != "none") / "model.onnx", threads=1)
    found = checked(candidate, VOCAB, context=CONTEXT if kind == "shared" else 128, window=20)
    rows = {name for name in found if "padding" in name or ("batch" in name and kind != "shared")}
    assert all(check.verdict != "fail" for name, check in found.items() if name not in rows), found
    assert (found["shared_cache"].verdict == "pass") is (kind == "shared")
    assert found["context"].verdict == "pass" and found["window"].verdict == "pass"
    assert (found["keep"].verdict == "pass") is (kind != "none")


def test_a_graph_that_reads_padding_without_a_word_fails(tmp_path: Path) -> None:
    """GroupQueryAttention without our guard: left-padded rows are nonsense."""
    candidate = Candidate(save_bundle(tmp_path, "shared") / "model.onnx", threads=1)
    assert checked(candidate, VOCAB)["left_padding"].verdict == "fail"


def test_a_long_cache_that_does_not_fit_is_not_run(tmp_path: Path) -> None:
    candidate = Candidate(save_bundle(tmp_path, "shared") / "model.onnx", threads=1)
    found = checked(candidate, VOCAB, context=CONTEXT, memory=1000)["context"]
    assert found.verdict == "not run" and "MB" in found.detail


def test_a_context_whose_cache_does_not_fit_is_tried_as_far_as_it_does(tmp_path: Path) -> None:
    candidate = Candidate(save_bundle(tmp_path, "shared") / "model.onnx", threads=1)
    whole = checked(candidate, VOCAB, context=CONTEXT)["context"]
    assert f"{CONTEXT - 8} to {CONTEXT - 1}" in whole.detail
    _, cache = candidate.run(np.ones((1, 1), np.int64))
    room = 40 * sum(array.nbytes for array in cache.values())
    nearer = checked(candidate, VOCAB, context=CONTEXT, memory=room)["context"]
    assert nearer.verdict == "pass" and "40 to 47" in nearer.detail


def test_the_end_of_the_context_is_really_reached(tmp_path: Path) -> None:
    """A table of positions that is one row too short: nothing but the last tokens shows it."""
    candidate = Candidate(save_bundle(tmp_path, "shared") / "model.onnx", threads=1)
    assert checked(candidate, VOCAB, context=CONTEXT)["context"].verdict == "pass"
    assert checked(candidate, VOCAB, context=CONTEXT + 1)["context"].verdict == "fail"
