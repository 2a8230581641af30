"""Plans: sizes are those of the files, limits bind, unmeasured devices say so, recipes carry what is expected."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny

import onnx_gpt
from exporter import sources
from exporter.families import describe
from exporter.sources import hf_directory
from onnx_gpt.bundle.plan import plan as builds_of
from onnx_gpt.bundle.staging import scratch
from onnx_gpt.bundle.writing import save
from onnx_gpt.cli import app
from onnx_gpt.planning import damage
from onnx_gpt.planning.device import Cost, Device, Measured, Timing, device_of, devices, read, toml_text
from onnx_gpt.planning.pareto import front
from onnx_gpt.planning.prediction import Estimate
from onnx_gpt.planning.variants import without
from onnx_gpt.planning.work import graph_of, keys_of_prompt, quantized, work_of
from onnx_gpt.progress import Silent
from onnx_gpt.recipe import Recipe
from onnx_gpt.recipe_file import predicted_of
from onnx_gpt.recipe_file import read as read_recipe


def of(form: float) -> Timing:
    cost = Cost(weight=form, layer=1000.0, attended=0.1)
    return Timing(step=cost, prompt=cost, memory=2.0)


FAST = Device(
    name="fast",
    title="a machine of a test",
    targets=("ort",),
    schemes=("none", "int8", "int4"),
    measure="nothing",
    measured=Measured(
        on="paper",
        by="hand",
        misfit=0.1,
        base=1e7,
        formats={"float32": of(0.4), "8/32": of(0.1), "4/32": of(0.05), "4/64": of(0.04), "8/64": of(0.1)},
    ),
)


@pytest.fixture
def fast(tmp_path: Path) -> str:
    path = tmp_path / "fast.toml"
    path.write_text(toml_text(FAST), "utf-8")
    return str(path)


def found(budget: str, device: str, **options: Any) -> Any:
    return onnx_gpt.plan("sample:tiny", device=device, budget=budget, **options)


def error_of(budget: str, device: str) -> onnx_gpt.OnnxGptError:
    with pytest.raises(onnx_gpt.OnnxGptError) as caught:
        found(budget, device)
    return caught.value


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"quantize": "int8"},
        {"quantize": "int4", "block_size": 16, "table_bits": 8, "mixed": "attention.v=8"},
        {"quantize": "dynamic8"},
        {"targets": ("web:q8",)},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_a_size_is_that_of_the_files(
    family: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "load", lambda uri: tiny(family))
    expected = _work(tiny(family), settings)
    report = onnx_gpt.optimize(family, tmp_path / "out", parity=False, verify=False, **settings)
    size = sum(nbytes for name, nbytes in report.files.items() if "model" in name and ".onnx" in name)
    assert expected.size == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize("settings", [{"quantize": "w8a8"}, {"quantize": "q4f16"}], ids=str)
def test_a_size_is_that_of_the_files_of_schemes_that_read_text(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    expected = _work(sources.load("sample:tiny"), settings)
    limits = {"parity": False, "verify": False, "calibration_windows": 2}
    report = onnx_gpt.optimize("sample:tiny", tmp_path / "out", **settings, **limits)
    size = report.files["model.onnx"] + report.files["model.onnx.data"]
    assert expected.size == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize("structured", ["ffn=0.25", "heads=0.5", "hidden=0.25", "layers=1"])
def test_what_pruning_leaves_is_known_before(
    structured: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sources, "load", lambda uri: tiny("llama") if uri == "llama" else hf_directory.load(uri)
    )
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(0, 131, 4096))
    options = {"allocate": "uniform", "windows": 2, "tokens": 64, "calibration": tmp_path / "tokens.npy"}
    onnx_gpt.prune("llama", tmp_path / "pruned", structured=structured, **options)
    made = hf_directory.load(str(tmp_path / "pruned"))
    expected = without(tiny("llama"), structured)
    assert [p.shape for _, p in describe(made).parts()] == [p.shape for _, p in describe(expected).parts()]
    assert _work(made, {}).size == _work(expected, {}).size
    with pytest.raises(AssertionError):
        next(iter(expected.weights.values())).rows(0, 1)


def _work(opened: Any, settings: dict[str, Any]) -> Any:
    build = builds_of(Recipe(**settings)).builds[0]
    return work_of(graph_of(opened, build), build)


def test_the_way_nearest_to_the_model_within_a_size(fast: str) -> None:
    plan = found("size=2.5MB", fast)
    fitting = [one for one in plan.candidates if one.predicted.size.value <= 2.5e6]
    assert plan.chosen.predicted.kl.value == min(one.predicted.kl.value for one in fitting)
    assert plan.chosen.name == "int8"
    assert all(one.verdict for one in plan.candidates)
    whole = next(one for one in plan.candidates if one.name == "none")
    assert whole.verdict == "7.564 MB > 2.5"


def test_the_smallest_way_within_a_kl_and_a_speed(fast: str) -> None:
    plan = found("kl=0.03", fast)
    fitting = [one for one in plan.candidates if one.predicted.kl.value <= 0.03]
    assert plan.chosen.predicted.size.value == min(one.predicted.size.value for one in fitting)
    assert plan.commands[0].startswith("onnx-gpt prune sample:tiny -o pruned --structured ffn=0.25")
    assert plan.commands[-1] == "onnx-gpt optimize pruned -o bundle --recipe recipe.toml"
    slow, quick = found("size=9MB", fast), found("size=9MB,decode=3000", fast)
    assert slow.chosen.name == "none"
    assert slow.chosen.predicted.decode.value < 3000 <= quick.chosen.predicted.decode.value
    assert quick.chosen.predicted.kl.value > 0


def test_what_cannot_be_kept_is_refused(fast: str) -> None:
    error = error_of("size=1kB", fast)
    assert (error.code, error.exit) == ("budget-unmet", 7)
    assert any("MB > 0.001" in detail for detail in error.details)


@pytest.mark.parametrize("name", ["arm", "cpu-avx2", "webgpu"])
def test_nothing_is_promised_of_a_device_that_nobody_has_measured(name: str) -> None:
    assert device_of(name).measured is None
    error = error_of("decode=1", name)
    assert (error.code, error.exit) == ("device-unmeasured", 2)
    assert "measure" in error.remedy or "time it" in error.remedy
    plan = found("size=9MB", name)
    assert all(one.predicted.decode is None and one.predicted.memory is None for one in plan.candidates)


def test_devices_are_read_back_and_bad_ones_refused(tmp_path: Path, fast: str) -> None:
    assert read(Path(fast)) == FAST
    assert {"arm", "cpu-avx2", "cpu-vnni", "wasm", "webgpu"} <= devices().keys()
    bad = tmp_path / "bad.toml"
    for text in ("name = 1", "[", 'name = "x"', Path(fast).read_text("utf-8").replace("0.4", "-0.4")):
        bad.write_text(text, "utf-8")
        assert error_of("", str(bad)).code == "device-invalid"
    assert error_of("", "toaster").code == "device-unknown"
    assert error_of("", str(tmp_path / "none.toml")).code == "device-invalid"


def test_a_recipe_carries_what_is_expected_and_the_report_what_came_of_it(fast: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    plan = found("size=2.5MB", fast, out=file)
    assert predicted_of(file) == plan.chosen.predicted
    assert "predicted" not in read_recipe(file)
    report = onnx_gpt.optimize("sample:tiny", tmp_path / "one", recipe=file)
    size, kl = report.predicted["size"], report.predicted["own_kl"]
    assert size["measured"] == report.files["model.onnx"] + report.files["model.onnx.data"]
    assert size["held"] is True
    assert (kl["measured"], kl["held"]) == (report.parity.mean_kl, True)
    assert report.predicted["decode"]["measured"] is None
    again = tmp_path / "one" / "recipe.toml"
    assert tomllib.loads(again.read_text("utf-8")) == tomllib.loads(file.read_text("utf-8"))
    other = onnx_gpt.optimize("sample:tiny", tmp_path / "two", recipe=again, parity=False)
    assert other.predicted["own_kl"]["measured"] is None
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    file.write_text(file.read_text("utf-8").replace("[predicted.size]", "[predicted.girth]"), "utf-8")
    with pytest.raises(onnx_gpt.OnnxGptError) as caught:
        onnx_gpt.optimize("sample:tiny", tmp_path / "three", recipe=file)
    assert caught.value.code == "recipe-invalid"


def test_a_probe_goes_before_the_table(fast: str, tmp_path: Path) -> None:
    guess, probed = found("size=2.5MB", fast), found("size=2.5MB", fast, probe=True, work=tmp_path / "work")
    known = {one.name: one.predicted.own_kl for one in probed.candidates}
    assert known["int8"].basis.startswith("measured on this model")
    assert "measured on this model" in known["int4/64 gptq table=8"].basis
    guessed = {one.name: one.predicted.own_kl for one in guess.candidates}
    assert known["int8"].high / known["int8"].low < guessed["int8"].high / guessed["int8"].low


def test_error_bars_grow_with_the_distance_from_what_was_measured() -> None:
    settings = {"quantize": "int8"}
    near, far = damage.scheme_damage(settings, 2_000_000), damage.scheme_damage(settings, 8_000_000_000)
    assert near is not None
    assert far is not None
    assert far.high / far.low > near.high / near.low
    assert "times larger" in far.basis
    assert damage.scheme_damage({"quantize": "int4", "block_size": 256}, 2_000_000) is None
    smol = damage.scheme_damage({"quantize": "int4", "method": "gptq", "table_bits": 8}, 135_000_000)
    assert smol is not None
    assert (
        smol.value > 0.05
    )  # in proportion to what its like has cost there, not what it has cost a model that minds less
    assert (
        damage.pruning_damage("heads=0.34", 135_000_000).value
        > damage.pruning_damage("heads=0.34", 10**6).value
    )
    lost, left = (damage.pruning_damage("ffn=0.25", 135_000_000, healed=healed) for healed in (False, True))
    assert 0 < left.value < lost.value
    assert damage.key({"quantize": "int4", "block_size": 32}) == damage.key({"quantize": "int4"})


def test_the_command_line_says_the_same(fast: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["plan", "sample:tiny", "--device", fast, "--budget", "size=2.5MB"]
    app()(flags, exit_on_error=False, result_action="return_value")
    shown = capsys.readouterr().out
    assert "chosen: int8" in shown
    assert "$ onnx-gpt optimize sample:tiny" in shown
    app()([*flags, "--json"], exit_on_error=False, result_action="return_value")
    assert json.loads(capsys.readouterr().out)["chosen"]["name"] == "int8"


def test_a_prompt_s_queries_meet_every_key_up_to_their_piece_s_end() -> None:
    for tokens, keys in (
        (1, 1),
        (64, 64),
        (256, 256),
        (300, (256 * 256 + 44 * 300) / 300),
        (512, 384),
        (768, 512),
    ):
        assert keys_of_prompt(tokens) == pytest.approx(keys)


def test_what_is_written_for_timing_is_what_a_job_writes(tmp_path: Path) -> None:
    build = builds_of(Recipe("int8")).builds[0]
    graph = graph_of(sources.load("sample:tiny"), build)
    with scratch(tmp_path / "x") as folder:
        folder.mkdir(parents=True)
        save(quantized(graph, build), folder, Silent())
        size = sum(path.stat().st_size for path in folder.iterdir())
    assert work_of(graph, build).size == pytest.approx(size, rel=1e-3)


def test_a_front_holds_what_nothing_beats() -> None:
    assert front([(1, 3), (2, 2), (3, 3), (3, 1), (1, 3)]) == {0, 1, 3, 4}
    assert Estimate.within(10.0, 0.1, "").holds(10.9)
    assert not Estimate.within(10.0, 0.1, "").holds(11.1)
