"""The job: a student and a teacher in, a better student out that everything else takes; killed, it goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import transformers
from tiny import tiny

import onnx_gpt
from exporter import sources
from exporter.checkpoint import GraphSource
from exporter.errors import OnnxGptError
from exporter.families import describe
from exporter.writing import write_checkpoint
from onnx_gpt.bundle.staging import only_run
from onnx_gpt.cli import main
from onnx_gpt.distilling.job import states_beside
from onnx_gpt.distilling.recipe import DistillRecipe
from onnx_gpt.distilling.student import HELD_OUT, Task, Trained
from onnx_gpt.exporting import export
from onnx_gpt.optimizing.calibrating import calibration_windows
from onnx_gpt.parity.candidate import Candidate
from onnx_gpt.report import Parity

FAST = {"tokens": 64, "steps": 10, "batch": 2}
FAMILIES = ("gpt2", "gemma3", "llama")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers, students that lack neurons, and token ids to train on, for want of a tokenizer."""
    folder = tmp_path_factory.mktemp("inputs")
    np.save(folder / "tokens.npy", np.random.default_rng(1).integers(0, 131, 4000))
    for family in FAMILIES:
        (folder / family).mkdir()
        write_checkpoint(folder / family, tiny(family))
        onnx_gpt.prune(
            str(folder / family),
            folder / f"{family}-pruned",
            structured="ffn=0.5",
            allocate="uniform",
            method="magnitude",
            tokens=64,
        )
    return folder


def distill(inputs: Path, out: Path, family: str = "llama", **options: object) -> onnx_gpt.DistillReport:
    given = {"data": inputs / "tokens.npy", "work": inputs / "work"} | FAST | options
    student = given.pop("student", str(inputs / f"{family}-pruned"))
    return onnx_gpt.distill(student, out, teacher=str(inputs / family), **given)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_student_comes_back_and_the_result_is_taken_by_all(
    family: str, inputs: Path, tmp_path: Path
) -> None:
    report = distill(inputs, tmp_path / "out", family, rate=1e-3)
    curve = {point.step: point.loss for point in report.training.curve}
    assert curve[report.training.best] == min(curve.values()) < curve[0]
    assert report.before is not None and report.before.size.parameters == report.after.size.parameters
    assert report.perplexity_ratio == pytest.approx(report.after.perplexity / report.before.perplexity)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(report.json_text())
    decoder = describe(sources.load(str(inputs / f"{family}-pruned")))
    assert describe(sources.load(str(tmp_path / "out"))) == decoder  # tied as it was
    _, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    bundle = onnx_gpt.optimize(str(tmp_path / "out"), tmp_path / "bundle", tokens=64)
    assert isinstance(bundle.parity, Parity) and bundle.parity.verdict == "pass"
    assert not states_beside(tmp_path / "out").exists()


def test_a_variant_stays_one(inputs: Path, tmp_path: Path) -> None:
    onnx_gpt.prune(
        str(inputs / "gpt2"),
        tmp_path / "heads",
        structured="heads=0.25",
        calibration=inputs / "tokens.npy",
        tokens=64,
        windows=8,
    )
    report = distill(inputs, tmp_path / "out", "gpt2", student=str(tmp_path / "heads"))
    assert report.variant and report.before is not None
    assert report.after.size.parameters == report.before.size.parameters < report.teacher.parameters


def test_the_same_input_gives_the_same_bytes(inputs: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        distill(inputs, tmp_path / name, mix=0.2, temperature=2.0, hidden=0.1)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_student_without_weights_is_trained_from_nothing(inputs: Path, tmp_path: Path) -> None:
    student = tmp_path / "student"
    student.mkdir()
    config = json.loads((inputs / "gpt2" / "config.json").read_text())
    (student / "config.json").write_text(json.dumps(config | {"n_embd": 32, "n_layer": 1}))
    report = distill(inputs, tmp_path / "out", "gpt2", student=str(student))
    other = distill(inputs, tmp_path / "other", "gpt2", student=str(student), seed=1, mix=1.0)
    assert report.before is None and report.recovered is None
    assert report.training.curve[-1].loss < report.training.curve[0].loss
    assert report.training.curve[0] != other.training.curve[0]
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_student_whose_weights_are_a_pickle_is_not_taken_for_an_untrained_one(
    inputs: Path, tmp_path: Path
) -> None:
    student = tmp_path / "student"
    student.mkdir()
    shutil.copy(inputs / "gpt2" / "config.json", student)
    (student / "pytorch_model.bin").touch()
    with pytest.raises(OnnxGptError) as caught:
        distill(inputs, tmp_path / "out", "gpt2", student=str(student))
    assert caught.value.code == "weights-pickle"


def test_two_runs_do_not_share_their_states(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with only_run(out, states_beside(out)), pytest.raises(OnnxGptError) as caught:
        distill(inputs, out)
    assert (caught.value.code, caught.value.exit) == ("output-busy", 10)
    distill(inputs, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_scales_of_a_quantized_student_reach_the_bundle(inputs: Path, tmp_path: Path) -> None:
    report = distill(inputs, tmp_path / "out", student=str(inputs / "llama"), quantize="int4", rate=1e-2)
    assert report.quantized == "int4" and report.training.trained < report.training.elements / 10
    assert report.training.curve[-1].loss < report.training.curve[0].loss
    bundles = {
        name: onnx_gpt.optimize(str(tmp_path / "out"), tmp_path / name, quantize=name, parity=False)
        for name in ("int4", "none")
    }
    assert bundles["int4"].quantization.keys() >= {"4 bits, blocks of 32"}
    tokens = np.random.default_rng(2).integers(0, 131, (1, 24))
    rounded, exact = (Candidate(tmp_path / name / "model.onnx").logits(tokens) for name in bundles)
    direct = onnx_gpt.optimize(str(inputs / "llama"), tmp_path / "direct", quantize="int4", parity=False)
    assert direct.files["model.onnx.data"] == bundles["int4"].files["model.onnx.data"]
    float32 = onnx_gpt.optimize(str(inputs / "llama"), tmp_path / "float", quantize="none", parity=False)
    assert float32.quantization == {}
    other = Candidate(tmp_path / "float" / "model.onnx").logits(tokens)
    assert np.abs(rounded - exact).max() < 0.2 * np.abs(rounded - other).max()  # 8-bit activations are left


def test_killed_and_given_again_the_same_command_ends_with_the_same_bytes(
    inputs: Path, tmp_path: Path
) -> None:
    steps = ["--steps", "40", "--batch", "4", "--tokens", "64", "--data", str(inputs / "tokens.npy")]
    command = [sys.executable, "-m", "onnx_gpt", "distill", str(inputs / "llama-pruned")]
    command += ["--teacher", str(inputs / "llama"), *steps, "-o"]
    environment = os.environ | {"ONNX_GPT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    out = tmp_path / "out"
    child = subprocess.Popen([*command, str(out)], **quiet)  # type: ignore[call-overload]
    deadline = time.monotonic() + 100
    while not list(states_beside(out).glob("step-*[0-9]")) and time.monotonic() < deadline:
        assert child.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not out.exists()
    for leftover in tmp_path.glob(".out.*.scratch"):
        shutil.rmtree(leftover)
    with pytest.raises(OnnxGptError) as caught:
        distill(inputs, out, steps=40, batch=4, seed=1)
    assert caught.value.code == "distill-other-run"
    for folder in (out, tmp_path / "whole"):
        subprocess.run([*command, str(folder)], check=True, **quiet)  # type: ignore[call-overload]
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("out", "whole")]
    assert reports[0]["training"]["resumed"] and not reports[1]["training"]["resumed"]
    assert reports[0]["training"]["curve"] == reports[1]["training"]["curve"]
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole"))
    assert one == two and not states_beside(out).exists()


def test_the_command_prints_one_document(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNX_GPT_CACHE", str(tmp_path / "cache"))
    arguments = ["distill", str(inputs / "llama-pruned"), "--teacher", str(inputs / "llama"), "--steps", "2"]
    arguments += ["-o", str(tmp_path / "out"), "--data", str(inputs / "tokens.npy"), "--tokens", "64"]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--json"])
    assert caught.value.code == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "onnx-gpt/distill/1"
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 10


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"batch": 0},
        {"rate": 0.0},
        {"rate": float("nan")},
        {"mix": 1.1},
        {"temperature": 0.0},
        {"hidden": -1.0},
        {"hidden": float("inf")},
        {"seed": -1},
        {"quantize": "int2"},
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OnnxGptError) as caught:
        DistillRecipe(**options)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.exit) == ("distill-invalid", 2)


def test_models_that_do_not_fit_are_refused_and_nothing_is_left_behind(inputs: Path, tmp_path: Path) -> None:
    write = tmp_path / "wide"
    write.mkdir()
    write_checkpoint(write, tiny("llama", vocab_size=200))
    with pytest.raises(OnnxGptError) as caught:
        distill(inputs, tmp_path / "out", student=str(write))
    assert caught.value.code == "vocabulary-differs"
    narrow = tmp_path / "narrow"
    narrow.mkdir()
    write_checkpoint(narrow, tiny("llama", hidden_size=32))
    with pytest.raises(OnnxGptError) as caught:
        distill(inputs, tmp_path / "out", student=str(narrow), hidden=1.0)
    assert caught.value.code == "distill-hidden"
    with pytest.raises(OnnxGptError) as caught:
        distill(inputs, tmp_path / "out", student="sample:tiny", work=tmp_path / "work")
    assert caught.value.code == "vocabulary-differs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["narrow", "wide"]


def test_a_tokenizer_that_reads_otherwise_is_refused(tmp_path: Path) -> None:
    student = tmp_path / "student"
    shutil.copytree(Path(onnx_gpt.__file__).parents[1] / "samples" / "tiny", student)
    tokenizer = json.loads((student / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (student / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.distill(str(student), tmp_path / "out", teacher="sample:tiny", work=tmp_path / "work")
    assert (caught.value.code, caught.value.exit) == ("distill-tokenizers", 3)


def test_windows_that_pruning_fitted_a_student_to_are_not_held_out(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_one = sources.load("sample:tiny")
    fitted = calibration_windows(tiny_one, export(tiny_one), None, 32).tokens
    taken: list[np.ndarray] = []

    def seen(task: Task, *rest: object) -> Trained:
        taken.append(task.windows)
        raise KeyboardInterrupt

    monkeypatch.setattr("onnx_gpt.distilling.job.trained", seen)
    with pytest.raises(KeyboardInterrupt):
        onnx_gpt.distill("sample:tiny", tmp_path / "out", teacher="sample:tiny", **FAST)
    assert taken[0].shape == (HELD_OUT + FAST["steps"] * FAST["batch"], 256)
    rows = {row.tobytes() for row in taken[0]}
    assert len(rows) == len(taken[0]) and not rows & {row.tobytes() for row in fitted}


def test_text_that_is_measured_on_is_refused(inputs: Path, tmp_path: Path) -> None:
    evaluated = np.random.default_rng(0).integers(0, 131, (3, 64))  # as it is drawn without a tokenizer
    np.save(tmp_path / "tokens.npy", np.tile(evaluated.reshape(-1), 12))
    with pytest.raises(OnnxGptError) as caught:
        distill(inputs, tmp_path / "out", data=tmp_path / "tokens.npy", tokens=128)
    assert caught.value.code == "calibration-overlap"
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.npy"]


def test_a_graph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(uri: str) -> GraphSource:
        raise NotImplementedError

    source = GraphSource("a.onnx", tmp_path / "a.onnx", read=opened)  # type: ignore[arg-type]
    monkeypatch.setattr(sources, "load", lambda uri: source)
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.distill("a.onnx", tmp_path / "out", teacher="b.onnx")
    assert (caught.value.code, caught.value.exit) == ("distill-needs-checkpoint", 3)


def test_without_torch_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.distill("sample:tiny", tmp_path / "out", teacher="sample:tiny")
    assert (caught.value.code, caught.value.exit) == ("reference-missing", 8)
