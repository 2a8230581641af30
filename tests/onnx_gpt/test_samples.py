"""Every sample runs as its first lines say, on tiny models."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from ort_headers import headers

import onnx_gpt

SAMPLES = Path(__file__).parents[2] / "samples"
FOREIGN = Path(__file__).parents[1] / "graph_passes" / "foreign"
ELSEWHERE = {"train_tiny.py", "openvino_llm.py"}
"""Tested beside what they are about: tests/exporter/test_sample.py, test_device_runtimes.py."""


Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a sample as a script in this process; gives what it printed."""
    monkeypatch.syspath_prepend(str(SAMPLES))

    def script(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(SAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return script


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "tiny"
    onnx_gpt.optimize("sample:tiny", folder, parity=False)
    return folder


def test_own_nanogpt(run: Run, tmp_path: Path) -> None:
    said = run("own_nanogpt.py", tmp_path / "out")
    assert said.startswith("pass (")
    session = ort.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert "past_key_values.0.key" in {value.name for value in session.get_inputs()}


def test_optimise_onnx(run: Run, tmp_path: Path) -> None:
    shutil.copy(FOREIGN / "optimum-llama.onnx", tmp_path / "model.onnx")
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    said = run("optimise_onnx.py", tmp_path / "model.onnx", tmp_path / "out")
    assert "first layer's attention: GroupQueryAttention" in said
    assert said.rstrip().endswith("pass")


def test_quantize_on_your_text(run: Run, tmp_path: Path) -> None:
    rows = [
        {"text": f"On day {i} the compiler moved constant {i * 7} out of the loop. " * 12} for i in range(80)
    ]
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    said = run("quantize_on_your_text.py", "sample:tiny", data, tmp_path / "out")
    found = re.fullmatch(r"(.+) MB of weights, chosen on (\d+) windows of (\d+) tokens\n", said)
    assert found
    assert 1 < float(found[1]) < 2
    assert int(found[2]) * int(found[3]) > 1000


def test_custom_rule(run: Run, tmp_path: Path) -> None:
    header = '<ir_version: 10, opset_import: ["" : 23]> g (float[B, 8] x) => (float[B, 8] y)'
    body = "h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x)  y = Mul (h, x)"
    onnx.save(onnx.parser.parse_model(f"{header} {{ {body} }}"), tmp_path / "in.onnx")
    said = run("custom_rule.py", tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert "fired 1 times" in said
    assert [node.op_type for node in ir.load(tmp_path / "out.onnx").graph] == ["HardSwish"]


def test_custom_pipeline(run: Run, tmp_path: Path) -> None:
    source, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    shutil.copy(FOREIGN / "optimum-llama.onnx", source)
    usage = (SAMPLES / "custom_pipeline.py").read_text("utf-8")
    pipeline = usage.split('"inline')[1].split('"')[0].join(["inline", ""])
    said = run("custom_pipeline.py", source, out, pipeline)
    assert [line.split()[0] for line in said.splitlines()] == re.sub(r"\{.*?\}", "", pipeline).split(", ")
    ops = {node.op_type for node in ir.load(out).graph}
    assert "Attention" in ops
    assert "Softmax" not in ops


def test_stream_text(run: Run, bundle: Path) -> None:
    assert len(run("stream_text.py", bundle, "The import statement")) > 20


def test_decode_in_c(bundle: Path, tmp_path: Path) -> None:
    """The program gives the Python runner's tokens."""
    compiler = shutil.which("cc")
    library = next((Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
    if compiler is None or library is None:
        pytest.skip("no C compiler, or onnxruntime's wheel here has no library of that name")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / name).symlink_to(library)
    flags = ["-Wall", "-Wextra", "-Werror", "-I", headers(), "-L", tmp_path, f"-Wl,-rpath,{tmp_path}"]
    program = tmp_path / "decode"
    build = [compiler, SAMPLES / "decode.c", *flags, "-lonnxruntime", "-o", program]
    subprocess.run([str(part) for part in build], check=True)
    generator = onnx_gpt.Generator(bundle, threads=1)
    prompt = generator.encode("The with statement")
    facts = onnx_gpt.inspect("sample:tiny")
    sizes = [facts[key] for key in ("layers", "kv_heads", "head_dim", "vocab_size")]
    command = [program, bundle / "model.onnx", *sizes, 32, *prompt]
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    expected = generator.generate(prompt, max_new_tokens=32).tokens
    assert tuple(map(int, done.stdout.split()))[: len(expected)] == expected


def test_every_sample_is_tested_short_and_in_the_readme() -> None:
    readme, tests = (SAMPLES / "README.md").read_text("utf-8"), Path(__file__).read_text("utf-8")
    for path in [*SAMPLES.glob("*.py"), *SAMPLES.glob("*.c")]:
        assert path.name in readme, path.name
        if path.name in ELSEWHERE:
            continue
        assert f"def test_{path.stem}" in tests, path.name
        assert len(path.read_text("utf-8").splitlines()) <= (100 if path.suffix == ".c" else 50), path.name
