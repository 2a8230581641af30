"""The main job on `sample:tiny`, from the command line and from Python."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

import onnx_gpt
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.bundle.reading import CONTEXT_KEYS
from onnx_gpt.cli import main
from onnx_gpt.optimizing import building
from onnx_gpt.report import Limits, Parity

ROOT = Path(__file__).parents[2]
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        streams = capsys.readouterr()
        return int(caught.value.code or 0), streams.out, streams.err

    return call


def digest(folder: Path, *names: str) -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]


@pytest.fixture(scope="module")
def float_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, onnx_gpt.Report]:
    out = tmp_path_factory.mktemp("bundles") / "float"
    return out, onnx_gpt.optimize("sample:tiny", out, tokens=512)


def test_a_float_bundle_is_the_model(float_bundle: tuple[Path, onnx_gpt.Report]) -> None:
    _, report = float_bundle
    assert isinstance(report.parity, Parity)
    assert report.parity.verdict == "pass"
    assert report.parity.mean_kl <= 1e-6
    assert report.parity.top1 == 1.0
    assert report.parity.tokens >= 512
    assert set(report.parity.checks) >= {"causal", "decode", "batch", "chunked", "shared_cache", "context"}
    assert report.parity.not_run.keys() == {"window"}
    assert report.parity.perplexity < 20, "the tiny model has learned its text"


def test_a_shorter_context_is_what_the_configuration_says(tmp_path: Path) -> None:
    onnx_gpt.optimize("sample:tiny", tmp_path / "out", context_length=64, parity=False, verify=False)
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    stated = {config[key] for key in CONTEXT_KEYS if key in config}
    assert stated == {64}


def test_the_graph_keeps_the_contract(float_bundle: tuple[Path, onnx_gpt.Report]) -> None:
    out, report = float_bundle
    model = onnx.load(out / "model.onnx", load_external_data=False)
    onnx.checker.check_model(str(out / "model.onnx"))

    def dims(value: Any) -> list[Any]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    inputs = {value.name: dims(value) for value in model.graph.input}
    outputs = {value.name: dims(value) for value in model.graph.output}
    assert inputs.pop("input_ids") == ["batch_size", "sequence_length"]
    assert inputs.pop("attention_mask") == ["batch_size", "total_sequence_length"]
    assert inputs.pop("num_logits_to_keep") == []
    assert outputs.pop("logits")[:2] == ["batch_size", "kept"]
    for name, shape in inputs.items():
        assert name.startswith("past_key_values.")
        assert shape[0] == "batch_size" and shape[2] == "past_sequence_length"
        assert isinstance(shape[1], int) and isinstance(shape[3], int)
    for name, shape in outputs.items():
        assert name.startswith("present.")
        assert shape[0] == "batch_size" and shape[2] == "total_sequence_length"
        assert isinstance(shape[1], int) and isinstance(shape[3], int)
    assert report.graph.nodes == len(model.graph.node)


def test_the_bundle_has_its_files_and_its_report(float_bundle: tuple[Path, onnx_gpt.Report]) -> None:
    out, report = float_bundle
    names = {path.name for path in out.iterdir()}
    assert {"model.onnx", "model.onnx.data", "config.json", "tokenizer.json", "report.json"} <= names
    written = json.loads((out / "report.json").read_text())
    assert written["schema"] == "onnx-gpt/report/1"
    assert written["files"]["model.onnx.data"] == (out / "model.onnx.data").stat().st_size
    assert written["parity"]["verdict"] == "pass"
    assert [stage["name"] for stage in written["stages"]] == [
        "load",
        "export",
        "passes",
        "quantize",
        "write",
        "parity",
    ]
    assert all(
        path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1 for path in out.iterdir()
    )
    assert report.source.family == "gpt2"


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_quantized_bundles_pass_their_gate_and_are_smaller(
    scheme: str, tmp_path: Path, float_bundle: tuple[Path, onnx_gpt.Report]
) -> None:
    report = onnx_gpt.optimize("sample:tiny", tmp_path / scheme, quantize=scheme, tokens=512)
    assert isinstance(report.parity, Parity) and report.parity.verdict == "pass"
    size = report.files["model.onnx.data"]
    assert size < {"int8": 0.35, "int4": 0.22}[scheme] * float_bundle[1].files["model.onnx.data"]
    assert report.graph.ops["com.microsoft::MatMulNBits"] >= 4 * 4


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        onnx_gpt.optimize("sample:tiny", tmp_path / name, quantize="int4", parity=False)
    names = ("model.onnx", "model.onnx.data", "tokenizer.json", "config.json")
    assert digest(tmp_path / "a", *names) == digest(tmp_path / "b", *names)


def test_a_failed_gate_publishes_nothing(cli: Cli, tmp_path: Path) -> None:
    status, _, err = cli(
        "optimize",
        "sample:tiny",
        "-o",
        tmp_path / "out",
        "--quantize",
        "int4",
        "--max-kl",
        "1e-9",
        "--tokens",
        256,
    )
    assert status == Exit.PARITY
    assert "parity-failed" in err and "mean KL" in err
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_graph_fails_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate bites: one norm's gain scaled by 5 % is found."""
    honest = building.run_pipeline

    def sabotage(model: Any, text: str, **options: Any) -> Any:
        reports = honest(model, text, **options)
        value = model.graph.initializers["layers.1.ffn_norm.weight"]
        array = value.const_value.numpy() * np.float32(1.05)
        value.const_value = ir.tensor(array, name=value.name)
        return reports

    monkeypatch.setattr(building, "run_pipeline", sabotage)
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.optimize("sample:tiny", tmp_path / "out", tokens=256)
    assert caught.value.exit == Exit.PARITY
    assert list(tmp_path.iterdir()) == []


def test_several_targets_get_a_folder_each(cli: Cli, tmp_path: Path) -> None:
    status, out, _ = cli(
        "optimize", "sample:tiny", "-o", tmp_path / "out", "--target", "ort,genai", "--no-parity", "--json"
    )
    assert status == 0
    assert json.loads(out)["parity"] == "not run"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["genai", "ort"]
    assert (tmp_path / "out" / "genai" / "genai_config.json").is_file()
    assert not (tmp_path / "out" / "ort" / "genai_config.json").exists()


def test_an_existing_output_is_kept(cli: Cli, tmp_path: Path) -> None:
    status, out, err = cli("optimize", "sample:tiny", "-o", tmp_path, "--no-parity")
    assert (status, out) == (Exit.EXISTS, "")
    assert "output-exists" in err


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (("optimize", "sample:tiny", "-o", "x", "--quantise", "int8"), Exit.USAGE, "quantise"),
        (("optimize", "sample:tiny", "-o", "x", "--quantize", "int3"), Exit.USAGE, "int3"),
        (("optimize", "sample:tiny", "-o", "x", "--target", "abacus"), Exit.USAGE, "abacus"),
        (
            ("optimize", "sample:tiny", "-o", "x", "--quantize", "int4", "--block-size", "48"),
            Exit.USAGE,
            "48",
        ),
        (
            ("optimize", "sample:tiny", "-o", "x", "--quantize", "int4", "--mixed", "ffn.donw=8"),
            Exit.USAGE,
            "ffn.donw",
        ),
        (
            (
                "optimize",
                "sample:tiny",
                "-o",
                "x",
                "--quantize",
                "int4",
                "--mixed",
                "layers.0-9999.ffn.down=8",
            ),
            Exit.USAGE,
            "has layers 0 to",
        ),
        (
            ("optimize", "sample:tiny", "-o", "x", "--quantize", "int4", "--mixed", "layers.0+1-0.ffn.up=8"),
            Exit.USAGE,
            "has layers 0 to",
        ),
        (("optimize", "sample:tiny", "-o", "x", "--context-length", "100000"), Exit.USAGE, "100000"),
        (("optimize", "nowhere", "-o", "x"), Exit.REJECTED, "nowhere"),
        (("optimize", "sample:tiny", "-o", "x", "--quantize", "keep"), Exit.REJECTED, "keep"),
        (("run", "nowhere", "--prompt", "x"), Exit.REJECTED, "nowhere"),
        (("frobnicate",), Exit.USAGE, "frobnicate"),
    ],
)
def test_bad_usage_is_one_clear_error(
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    status: Exit,
    word: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    got, out, err = cli(*arguments)
    assert (got, out) == (status, "")
    assert word in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "onnx_gpt", "optimize", "sample:tiny", "-o", str(tmp_path / "out")]
    heard = functools.partial(
        signal.signal, number, signal.SIG_DFL
    )  # a shell's background jobs ignore SIGINT
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_limits_are_the_users_to_state(tmp_path: Path) -> None:
    limits = Limits(max_kl=10.0, min_top1=0.0, max_perplexity_ratio=1e9)
    report = onnx_gpt.optimize("sample:tiny", tmp_path / "out", quantize="int4", limits=limits, tokens=256)
    assert isinstance(report.parity, Parity) and report.parity.limits == limits


def test_without_torch_the_float_bundle_is_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    report = onnx_gpt.optimize("sample:tiny", tmp_path / "out", quantize="int8", tokens=256)
    assert isinstance(report.parity, Parity)
    assert "torch is not installed" in report.parity.reference
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.optimize("sample:tiny", tmp_path / "float", tokens=256)
    assert caught.value.exit == Exit.ENVIRONMENT


def test_validate_finds_a_bundle_of_another_model(
    cli: Cli, tmp_path: Path, float_bundle: tuple[Path, onnx_gpt.Report]
) -> None:
    status, out, _ = cli("validate", float_bundle[0], "--against", "sample:tiny", "--tokens", 256)
    assert status == 0 and "pass" in out
    data = tmp_path / "changed"
    data.mkdir()
    for path in float_bundle[0].iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    raw = bytearray((data / "model.onnx.data").read_bytes())
    middle = len(raw) // 2 // 4096 * 4096
    raw[middle : middle + 4096] = bytes(4096)
    (data / "model.onnx.data").write_bytes(raw)
    status, out, _ = cli("validate", data, "--against", "sample:tiny", "--tokens", 256)
    assert status == Exit.PARITY and "fail" in out


def test_inspect_speaks_of_sources_and_bundles(cli: Cli, float_bundle: tuple[Path, onnx_gpt.Report]) -> None:
    status, out, _ = cli("inspect", "sample:tiny", "--json")
    facts = json.loads(out)
    assert status == 0 and facts["family"] == "gpt2" and facts["tied_embedding"]
    status, out, _ = cli("inspect", float_bundle[0], "--json")
    facts = json.loads(out)
    assert status == 0 and facts["nodes"] == float_bundle[1].graph.nodes and facts["findings"] == []


@pytest.mark.parametrize("where", ["vocabulary", "what it puts before a text"])
def test_a_tokenizer_larger_than_the_vocabulary_is_refused(cli: Cli, tmp_path: Path, where: str) -> None:
    copied = shutil.copytree(ROOT / "samples" / "tiny", tmp_path / "tiny")
    tokenizer = json.loads((copied / "tokenizer.json").read_text("utf-8"))
    if where == "vocabulary":
        tokenizer["model"]["vocab"]["zebra"] = 999
    else:
        one, other = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, one],
            "pair": [one, other],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [999], "tokens": ["<s>"]}},
        }
    (copied / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    status, _, err = cli("optimize", copied, "-o", tmp_path / "out", "--no-parity")
    assert status == Exit.REJECTED and "tokenizer-too-large" in err and "999" in err
    assert not (tmp_path / "out").exists()


def test_a_nan_weight_is_named_and_nothing_is_left(cli: Cli, tmp_path: Path) -> None:
    copied = shutil.copytree(ROOT / "samples" / "tiny", tmp_path / "tiny")
    weights = dict(load_file(copied / "model.safetensors"))
    name = "transformer.h.2.mlp.c_fc.weight"
    weights[name] = weights[name].copy()
    weights[name][3, 5] = np.nan
    save_file(weights, copied / "model.safetensors")
    for scheme in ("none", "int4"):
        status, _, err = cli("optimize", copied, "-o", tmp_path / "out", "--no-parity", "--quantize", scheme)
        assert status == Exit.REJECTED and f"{name}[3, 5]" in err
        assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    "report", ["not json", "{}", "[]", '{"recipe": {"quantize": "int3"}}', '{"recipe": 7}']
)
def test_a_damaged_report_is_refused_by_validate(
    cli: Cli, tmp_path: Path, float_bundle: tuple[Path, onnx_gpt.Report], report: str
) -> None:
    damaged = shutil.copytree(float_bundle[0], tmp_path / "damaged")
    (damaged / "report.json").write_text(report, "utf-8")
    status, _, err = cli("validate", damaged, "--against", "sample:tiny")
    assert status == Exit.REJECTED and "bundle-invalid" in err and "Traceback" not in err
