"""`optimize` with calibration text: what the report says of it, the same bytes twice, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny

import onnx_gpt
from calibration.collecting import Stream
from calibration.quantization import gptq
from exporter import sources
from exporter.errors import Exit
from onnx_gpt.bundle.staging import unfinished
from onnx_gpt.parity.text import evaluation_tokens, even_window
from onnx_gpt.recipe import GPTQ_WINDOWS, Recipe


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Token ids for tiny decoders, which have no tokenizer."""
    monkeypatch.setattr(sources, "load", lambda uri: tiny(uri, 0))
    np.save(tmp_path / "tokens.npy", np.random.default_rng(1).integers(0, 131, 9000))
    return tmp_path / "tokens.npy"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_codes_are_chosen_on_the_text_and_the_report_names_it(
    family: str, corpus: Path, tmp_path: Path
) -> None:
    limits = onnx_gpt.Limits(max_kl=0.2, min_top1=0.5, max_perplexity_ratio=1.5)
    options = {"quantize": "int4", "calibration": corpus, "limits": limits, "tokens": 128, "table_bits": 8}
    one, again = (onnx_gpt.optimize(family, tmp_path / name, **options) for name in ("one", "again"))
    assert one.recipe["method"] == "gptq"
    assert one.calibration["window"] == 64
    assert one.calibration["windows"] == GPTQ_WINDOWS
    assert list(one.calibration["files"]) == ["tokens.npy"]
    assert one.calibration == again.calibration
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    rounded = onnx_gpt.optimize(family, tmp_path / "rtn", **(options | {"calibration": None}))
    assert not rounded.calibration
    assert one.parity.mean_kl < 0.8 * rounded.parity.mean_kl
    assert one.files["model.onnx.data"] == rounded.files["model.onnx.data"]
    assert {path.name for path in tmp_path.iterdir()} == {"one", "again", "rtn", "tokens.npy"}


class _Calls:
    """Counts the calls of a function, and is killed in one of them."""

    def __init__(self, function: Callable[..., Any], fatal: int | None = None) -> None:
        self.function, self.fatal, self.count = function, fatal, 0

    def __call__(self, *arguments: Any) -> Any:
        self.count += 1
        result = self.function(*arguments)
        if self.count == self.fatal:
            raise KeyboardInterrupt
        return result


@pytest.mark.parametrize(("scheme", "place"), [("int4", "codes"), ("w8a8", "stream")])
def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_bytes(
    scheme: str, place: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when codes of three quarters of the products were chosen, or while what a piece gave is written."""
    holder, name = {"codes": (gptq, "quantize"), "stream": (Stream, "put")}[place]
    function = getattr(holder, name)

    def job(out: str, fatal: int | None = None) -> int:
        calls = _Calls(function, fatal)
        options = {"quantize": scheme, "method": "gptq", "parity": False, "calibration_windows": 8}
        with monkeypatch.context() as patch:
            patch.setattr(holder, name, lambda *arguments: calls(*arguments))
            onnx_gpt.optimize("llama", tmp_path / out, calibration=corpus, **options)
        return calls.count

    total = job("whole")
    with pytest.raises(KeyboardInterrupt):
        job("out", total * 3 // 4)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", ".out.unfinished", "tokens.npy"}
    assert job("out") <= 0.75 * total + 2  # w8a8 looks for scales of channels anew
    for file in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "out" / file).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "out", "tokens.npy"}


def test_two_runs_do_not_share_what_is_unfinished(corpus: Path, tmp_path: Path) -> None:
    with unfinished(tmp_path / "out"), pytest.raises(onnx_gpt.OnnxGptError) as caught:
        onnx_gpt.optimize("llama", tmp_path / "out", quantize="int4", calibration=corpus, parity=False)
    assert (caught.value.code, caught.value.exit) == ("output-busy", Exit.EXISTS)
    assert {path.name for path in tmp_path.iterdir()} == {"tokens.npy"}


@pytest.mark.parametrize(
    ("family", "settings", "left"),
    [
        ("gpt2", {"quantize": "int4", "method": "awq"}, ["ffn.up"]),  # its activation lets no scale through
        ("gpt_neox", {"quantize": "w8a8"}, ["ffn.up"]),
        ("llama", {"quantize": "w8a8"}, []),
    ],
)
def test_the_report_says_which_channels_cannot_be_scaled(
    family: str, settings: dict[str, str], left: list[str], corpus: Path, tmp_path: Path
) -> None:
    options = {**settings, "calibration": corpus, "calibration_windows": 8, "parity": False}
    report = onnx_gpt.optimize(family, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert report.calibration["channels_not_scalable"] == left
    assert all(0 <= count <= 2 for count in report.calibration["channels_scaled"].values())


def test_text_that_parity_reads_is_refused(corpus: Path, tmp_path: Path) -> None:
    evaluated = evaluation_tokens(None, 131, tokens=128, window=even_window(128, 64)).windows
    np.save(corpus, np.tile(evaluated.reshape(-1), 80))
    with pytest.raises(onnx_gpt.OnnxGptError) as caught:
        onnx_gpt.optimize("llama", tmp_path / "out", quantize="int4", calibration=corpus, tokens=128)
    assert caught.value.code == "calibration-overlap"
    assert {path.name for path in tmp_path.iterdir()} == {"tokens.npy"}


def test_default_text_without_a_tokenizer_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(onnx_gpt.OnnxGptError) as caught:
        onnx_gpt.optimize("llama", tmp_path / "out", quantize="int4", method="gptq")
    assert caught.value.code == "tokenizer-missing"


@pytest.mark.parametrize(
    "options",
    [
        {"quantize": "none", "calibration": Path("a.txt")},
        {"quantize": "keep", "calibration": Path("a.txt")},
        {"quantize": "int4", "calibration": Path("a.txt"), "method": "rtn"},
        {"quantize": "none", "method": "gptq"},
        {"quantize": "keep", "mixed": "ffn.down=8"},
        {"quantize": "int4", "method": "magic"},
    ],
)
def test_settings_that_nothing_reads_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(onnx_gpt.OnnxGptError) as caught:
        Recipe(**options)  # type: ignore[arg-type]
    assert caught.value.code in ("scheme-invalid", "setting-unread")


def test_the_echo_says_loudly_that_no_text_was_given() -> None:
    assert "give text of your own" in Recipe(quantize="int4", method="gptq").echo()["calibration"]
    assert Recipe(quantize="int4", calibration=Path("a.txt")).echo()["calibration"] == "a.txt"
    assert "calibration" not in Recipe(quantize="int4").echo()
