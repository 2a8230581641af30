"""The command line at its edges: streams closed, full or of another alphabet, and settings that mean nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_decoders import save_bundle

import onnx_gpt
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.bundle.reading import read_bundle
from onnx_gpt.cli import main
from onnx_gpt.generation.measuring import bench

ROOT = Path(__file__).parents[2]


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A line of shell in which ``$GPT`` is the command line; the exit status is that of the first in a pipe."""
    environment = {**os.environ, "GPT": f"{sys.executable} -m onnx_gpt", **environment}
    line = ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, check=False)


@pytest.mark.parametrize(
    ("redirected", "status"),
    [("| true", 0), (">&-", 0), ("2>&-", 0), ("2>/dev/full", 0), (">/dev/full", Exit.RESOURCES)],
    ids=["reader gone", "stdout closed", "stderr closed", "nothing can be said", "disk full"],
)
def test_streams_that_take_nothing(redirected: str, status: int) -> None:
    if "full" in redirected and not Path("/dev/full").exists():
        pytest.skip("this system has no full device")
    done = shell(f"$GPT inspect sample:tiny --json {redirected}")
    assert done.returncode == status, done.stderr
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr


def test_a_table_that_nobody_reads_to_its_end() -> None:
    done = shell("$GPT --help | head -c 1")
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_error_that_cannot_be_said_keeps_its_status() -> None:
    if Path("/dev/full").exists():
        assert shell("$GPT inspect nothing 2>/dev/full").returncode == Exit.REJECTED


def test_a_closed_stdin_is_an_empty_prompt(tmp_path: Path) -> None:
    done = shell(f"$GPT run {save_bundle(tmp_path)} --prompt - <&-")
    assert done.returncode == Exit.REJECTED and b"prompt-empty" in done.stderr


def test_text_is_utf8_in_every_locale() -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = shell("$GPT inspect ./\u00e4", **ascii_only)
    assert done.returncode == Exit.REJECTED
    assert "→".encode() in done.stderr and b"\\u2192" not in done.stderr


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"block_size": 64}, "setting-unread"),
        ({"method": "gptq"}, "setting-unread"),
        ({"tokens": 0}, "text-too-short"),
        ({"tokens": -5}, "text-too-short"),
        ({"limits": {"max_kl": float("nan")}}, "recipe-invalid"),
        ({"limits": {"max_kl": -1.0}}, "recipe-invalid"),
        ({"limits": {"max_kl": float("inf")}}, "recipe-invalid"),
        ({"limits": {"min_top1": 1.5}}, "recipe-invalid"),
        ({"context_length": 1}, "context-too-short"),
        ({"context_length": 0}, "context-too-short"),
        ({"context_length": 257}, "context-too-long"),
        ({"work": Path("measured")}, "setting-unread"),
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_usage_errors(
    settings: dict[str, object], code: str, tmp_path: Path
) -> None:
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.optimize("sample:tiny", tmp_path / "out", **settings)
    assert (caught.value.code, caught.value.exit) == (code, Exit.USAGE)
    assert list(tmp_path.iterdir()) == []


def test_limits_of_validate_are_checked_alike(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["validate", "sample:tiny", "--against", "sample:tiny", "--max-kl", "nan"])
    assert ended.value.code == Exit.USAGE
    assert "recipe-invalid" in capsys.readouterr().err


def test_nothing_to_compare_on_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.validate("sample:tiny", "sample:tiny", tokens=0)
    assert caught.value.exit == Exit.USAGE


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["run", *arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundle(tmp_path_factory.mktemp("bundle"))


def test_a_bundle_without_a_tokenizer_takes_and_gives_token_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_bundle(tmp_path)
    (folder / "tokenizer.json").unlink()
    expected = onnx_gpt.Generator(folder, threads=1).generate([1, 2, 3], max_new_tokens=4).tokens
    assert run(str(folder), "--prompt", "1 2 3", "--max-new-tokens", "4", "--threads", "1") == 0
    assert capsys.readouterr().out.split() == [str(token) for token in expected]
    assert run(str(folder), "--prompt", "one two") == Exit.REJECTED


@pytest.mark.parametrize(
    "flags", ["--threads 0", "--threads -3", "--threads 100000", "--system Briefly", "--max-new-tokens 0"]
)
def test_flags_of_run_that_mean_nothing(bundle: Path, flags: str) -> None:
    assert run(str(bundle), "--prompt", "a", *flags.split()) == Exit.USAGE


def test_a_prompt_of_stray_bytes_is_refused(bundle: Path) -> None:
    with pytest.raises(OnnxGptError, match="prompt-not-text"):
        onnx_gpt.Generator(bundle, threads=1).encode("\udcff")


def test_the_bench_takes_what_the_context_holds(bundle: Path) -> None:
    limit = onnx_gpt.Generator(bundle, threads=1).max_length
    assert limit == 512
    result = bench(bundle, new_tokens=2, repeats=1, threads=1)
    assert (result.prompt_tokens, result.context) == (limit, limit - 2)


def test_a_template_that_is_no_text_is_a_bad_bundle(tmp_path: Path) -> None:
    folder = save_bundle(tmp_path)
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(OnnxGptError, match="bundle-invalid"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("generation_config.json", {"eos_token_id": "</s>"}, "config-invalid"),
        ("generation_config.json", {"eos_token_id": [1, None]}, "config-invalid"),
        ("tokenizer_config.json", {"chat_template": "{% for m in messages %}"}, "chat-template-invalid"),
        ("tokenizer_config.json", {"chat_template": 5}, "chat-template-invalid"),
    ],
    ids=["words", "no id", "open loop", "number"],
)
def test_no_bundle_is_made_that_its_runner_could_not_read(
    name: str, content: dict[str, object], code: str, tmp_path: Path
) -> None:
    source = shutil.copytree(ROOT / "samples" / "tiny", tmp_path / "source")
    (source / name).write_text(json.dumps(content))
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.optimize(str(source), tmp_path / "out", parity=False)
    assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_an_output_whose_name_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.optimize("sample:tiny", tmp_path / ("x" * 300), parity=False)
    assert caught.value.code == "output-unwritable"
