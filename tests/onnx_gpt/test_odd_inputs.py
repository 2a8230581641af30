"""Commands and files that nobody should write: each ends with one error that says what to do, and with nothing made."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file
from tiny_decoders import save_bundle

import onnx_gpt
from calibration.pruning.sensitivity import grid_of
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.bundle.reading import require_readable
from onnx_gpt.bundle.staging import require_absent, write_file
from onnx_gpt.cli import main
from onnx_gpt.commands._show import print_json
from onnx_gpt.linting.repairing import repair
from onnx_gpt.parity.text import evaluation_tokens, even_window
from onnx_gpt.planning.device import device_of

ROOT = Path(__file__).parents[2]


def error_of(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return shutil.copytree(ROOT / "samples" / "tiny", tmp_path / "source")


@pytest.mark.parametrize("tokens", [0, -1])
def test_nothing_to_compare_on_is_a_usage_error(tokens: int) -> None:
    with pytest.raises(OnnxGptError, match="text-too-short") as caught:
        onnx_gpt.compare("sample:tiny", "a", tokens=tokens)
    assert caught.value.exit == Exit.USAGE


def test_a_context_of_one_token_predicts_nothing() -> None:
    for call in (
        lambda: evaluation_tokens(None, 10, tokens=5, window=1),
        lambda: even_window(5, 1),
    ):
        with pytest.raises(OnnxGptError, match="context-too-short"):
            call()


@pytest.mark.parametrize("place", ["file/out", "file/deep/out"])
def test_where_nothing_can_be_made_is_said_first(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OnnxGptError, match="file is no folder") as caught:
        require_absent(tmp_path / place)
    assert (caught.value.code, caught.value.exit) == ("output-unwritable", Exit.ENVIRONMENT)
    if Path("/proc/self").exists():
        with pytest.raises(OnnxGptError, match="output-unwritable"):
            require_absent(Path("/proc/out"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_measurements_that_cannot_be_kept_are_said_before_any_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OnnxGptError, match="--work") as caught:
        onnx_gpt.sensitivity("sample:tiny", work=tmp_path / "file" / "kept")
    assert (caught.value.code, caught.value.exit) == ("output-unwritable", Exit.ENVIRONMENT)


def test_a_file_of_results_appears_whole_and_overwrites_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "new" / "a.svg", "whole")
    assert [path.read_text() for path in (tmp_path / "new").iterdir()] == ["whole"]
    with pytest.raises(OnnxGptError, match="output-exists"):
        write_file(tmp_path / "new" / "a.svg", "other")

    def full(self: Path, text: str, *_: object, **__: object) -> int:
        self.write_bytes(b"ha")
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OnnxGptError, match="disk-full"):
        write_file(tmp_path / "new" / "b.svg", "half")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.svg"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["measure", "-o", "mine"], "measure-usage"),
        (["compare", "sample:tiny", "b", "-o", "chart.png"], "compare-usage"),
    ],
)
def test_a_file_of_another_kind_is_refused_before_minutes_of_work(
    arguments: list[str], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = error_of(*arguments, capsys=capsys)
    assert status == Exit.USAGE and code in said


def test_commands_of_a_plan_can_be_pasted(tmp_path: Path) -> None:
    odd = shutil.copytree(ROOT / "samples" / "tiny", tmp_path / "it's $(my) model")
    out = tmp_path / "a recipe.toml"
    plan = onnx_gpt.plan(str(odd), device="cpu-avx2", out=out)
    assert shlex.split(plan.commands[-1])[-1] == str(out)
    assert str(odd) in shlex.split(plan.commands[0])
    befores = {step for one in plan.candidates for step in one.predicted.before}
    assert befores and all(str(odd) in shlex.split(step) for step in befores)


def test_a_device_may_begin_with_a_mark_of_its_byte_order(tmp_path: Path) -> None:
    file = tmp_path / "d.toml"
    file.write_text('name = "x"\ntitle = "x"\ntargets = []\nschemes = []\nmeasure = ""\n', "utf-8-sig")
    assert device_of(str(file)).name == "x"


def test_a_repair_within_its_own_source_speaks_of_no_folder_of_ours(tmp_path: Path) -> None:
    folder = save_bundle(tmp_path / "bundle")
    (folder / "notes").mkdir()
    changes = repair(folder, "ort", folder / "fixed").changes
    assert "notes/ is left out" in changes
    assert not [change for change in changes if ".partial" in change]


@pytest.mark.parametrize("share", [1e-7, 0.004, 0.014, 0.07, 0.12, 0.5, 0.95, 0.999])
def test_layers_may_have_the_share_that_is_asked_for(share: float) -> None:
    grid, middle = grid_of(share)
    assert grid[middle] == pytest.approx(share)
    assert all(0 < one < 1 for one in grid) and grid == sorted(grid)


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint whose float32 logits are no numbers."""
    folder = shutil.copytree(ROOT / "samples" / "tiny", tmp_path_factory.mktemp("large") / "source")
    weights = {
        name: array.astype(np.float32) * 1e30
        for name, array in load_file(folder / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors")
    return str(folder)


def test_a_model_of_no_numbers_is_said_to_be_one(overflowing: str, tmp_path: Path) -> None:
    for call in (
        lambda: onnx_gpt.optimize(overflowing, tmp_path / "out", parity=False, verify=False),
        lambda: onnx_gpt.prune(overflowing, tmp_path / "out", sparsity=0.5, tokens=64),
        lambda: onnx_gpt.bisect(overflowing, passes="fold"),
        lambda: onnx_gpt.compare("sample:tiny", overflowing, tokens=64),
    ):
        with pytest.raises(OnnxGptError, match="logits-not-finite"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_is_none_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [math.nan, (1.5, -math.inf)], "b": "NaN"})
    assert json.loads(capsys.readouterr().out) == {"a": [None, [1.5, None]], "b": "NaN"}


def test_a_graph_that_gives_nothing_is_no_decoder(tmp_path: Path) -> None:
    model = onnx.load(save_bundle(tmp_path) / "model.onnx")
    del model.graph.output[:]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(OnnxGptError, match="it has no output"):
        onnx_gpt.explain(str(tmp_path / "model.onnx"))


def test_a_format_that_no_unit_takes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError, match="4/64\\+zz=8/64") as caught:
        onnx_gpt.sensitivity("sample:tiny", options="4/64+zz=8/64", work=tmp_path)
    assert (caught.value.code, caught.value.exit) == ("scheme-invalid", Exit.USAGE)


@pytest.mark.parametrize("version", [1, 99])
def test_an_opset_that_the_graph_cannot_be_in_is_refused(version: int, tmp_path: Path) -> None:
    with pytest.raises(OnnxGptError, match="21 to 23") as caught:
        onnx_gpt.explain("sample:tiny", passes=f"fold, opset{{version={version}}}")
    assert (caught.value.code, caught.value.exit) == ("pipeline-invalid", Exit.USAGE)


@pytest.mark.parametrize("kind", [[], {}, 5])
def test_a_model_type_that_is_no_text_is_refused(kind: object, source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    with pytest.raises(OnnxGptError, match="model_type"):
        onnx_gpt.inspect(str(source))


@pytest.mark.parametrize("key", ["bos_token_id", "pad_token_id"])
def test_special_tokens_are_ids(key: str) -> None:
    with pytest.raises(OnnxGptError, match=key):
        require_readable({key: "<s>"}, {})
    require_readable({key: None}, {"generation_config.json": json.dumps({key: -1}).encode()})


def test_a_tokenizer_that_knows_no_english_makes_a_bundle_all_the_same(source: Path, tmp_path: Path) -> None:
    """Of proteins or of music, say: where parity is not run, nobody is asked for a text."""
    tokenizer = json.loads((source / "tokenizer.json").read_text("utf-8"))
    tokenizer["model"] |= {"vocab": {}, "merges": []}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    onnx_gpt.optimize(str(source), tmp_path / "out", parity=False, verify=False)
    assert onnx_gpt.verify(tmp_path / "out").verdict == "pass"
