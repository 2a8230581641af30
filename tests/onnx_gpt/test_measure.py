"""Devices are measured: costs are found again by the fit, times of a browser are taken whole or refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from web_runtimes import in_chromium

import onnx_gpt
from onnx_gpt.cli import app
from onnx_gpt.planning import decoders
from onnx_gpt.planning.browser import read_times, write_decoders
from onnx_gpt.planning.decoders import CONTEXTS, LENGTHS
from onnx_gpt.planning.device import device_of, devices, toml_text
from onnx_gpt.planning.fitting import fit

SMALL = {**decoders.SHAPES["thin"], "num_hidden_layers": 2}
TRUE = {"weight": 0.05, "layer": 3000.0, "attended": 0.2}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two decoders of hardly any weights."""
    monkeypatch.setattr(decoders, "SHAPES", {"wide": {**SMALL, "num_hidden_layers": 4}, "thin": SMALL})


def cost(row: Mapping[str, float]) -> float:
    """Seconds of what is done, by `TRUE`."""
    weights = sum(n for name, n in row.items() if name not in TRUE)
    return 1e-9 * (weights * TRUE["weight"] + sum(TRUE[name] * row[name] for name in ("layer", "attended")))


def document(second: float = 1.0) -> dict[str, Any]:
    """times.json of a browser that takes a second for everything."""
    one = {
        "step": {str(tokens): second for tokens in CONTEXTS},
        "prompt": {str(tokens): second for tokens in LENGTHS},
    }
    return {"on": "a browser of a test", "times": {"web:q8": dict.fromkeys(decoders.SHAPES, one)}}


def written(folder: Path, found: Any) -> Path:
    path = folder / "times.json"
    path.write_text(json.dumps(found), "utf-8")
    return path


@pytest.fixture
def times(tmp_path: Path) -> Path:
    """What a browser would find of the decoders if `TRUE` were what things cost there."""
    _, samples = read_times(written(tmp_path, document()))
    found = document()
    for shape, sample in zip(decoders.SHAPES, samples["web:q8"], strict=True):
        found["times"]["web:q8"][shape] = {
            "step": {c: cost(sample.work.step_row(c)) for c in CONTEXTS},
            "prompt": {n: n * cost(sample.work.prompt_row(n)) for n in LENGTHS},
        }
    return written(tmp_path, found)


def error_of(call: Callable[[], object]) -> onnx_gpt.OnnxGptError:
    with pytest.raises(onnx_gpt.OnnxGptError) as caught:
        call()
    return caught.value


def run(*flags: object) -> None:
    app()(["measure", *map(str, flags)], exit_on_error=False, result_action="return_value")


def test_costs_are_found_again_by_a_fit() -> None:
    done = [
        {"4/32": w, "layer": layers, "attended": a}
        for w, layers, a in ((1e8, 6, 4e5), (1e8, 6, 3e6), (7e6, 12, 2e5), (7e6, 12, 1.6e6))
    ]
    found, misfit = fit("4/32", [(row, cost(row)) for row in done])
    assert found.model_dump() == pytest.approx(TRUE, rel=1e-3)
    assert misfit < 1e-3
    flat, _ = fit("4/32", [(row, 1e-3) for row in done])
    assert min(flat.model_dump().values()) >= 0


@pytest.mark.usefixtures("small")
def test_this_machine_is_measured(tmp_path: Path) -> None:
    device = onnx_gpt.measure("mine", formats=("8/32",))
    assert device.measured is not None
    assert device.schemes == ("int8", "keep")
    timing = device.measured.formats["8/32"]
    assert timing.prompt.weight + timing.prompt.layer + timing.prompt.attended > 0
    assert timing.memory is not None
    path = tmp_path / "mine.toml"
    path.write_text(toml_text(device), "utf-8")
    assert device_of(str(path)) == device
    assert onnx_gpt.plan("sample:tiny", device=str(path), budget="decode=0.001").chosen.name == "int8"


def test_times_of_a_browser_become_a_table_that_plans_use(
    times: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "phone.toml"
    run("--times", times, "-o", out)
    assert "a browser of a test; what was timed is met within 0 %" in capsys.readouterr().out
    device = device_of(str(out))
    assert (device.name, device.targets, device.schemes) == ("phone", ("web:q8",), ())
    assert device.measured is not None
    timing = device.measured.formats["web:q8"]
    assert timing.step.model_dump() == pytest.approx(TRUE, rel=1e-3)
    assert timing.prompt.model_dump() == pytest.approx(TRUE, rel=1e-3)
    assert timing.memory is None, "a page cannot tell"
    plan = onnx_gpt.plan("sample:tiny", device=str(out), budget="decode=1")
    whole = next(one.predicted for one in plan.candidates if not one.predicted.before)
    assert whole.decode is not None
    assert whole.memory is None
    assert whole.decode.basis == "measured on a browser of a test"


def test_times_may_be_those_of_a_device_of_the_package(times: Path) -> None:
    device = onnx_gpt.measure("wasm", times=times)
    assert device.model_copy(update={"measured": None}) == devices()["wasm"].model_copy(
        update={"measured": None}
    )


def _without(*path: str) -> Callable[[dict[str, Any]], None]:
    def edit(found: dict[str, Any]) -> None:
        for name in path[:-1]:
            found = found[name]
        del found[path[-1]]

    return edit


def _with(value: Any, *path: str) -> Callable[[dict[str, Any]], None]:
    def edit(found: dict[str, Any]) -> None:
        for name in path[:-1]:
            found = found[name]
        found[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        _without("on"),
        _without("times"),
        _with("", "on"),
        _with({}, "times"),
        _with({}, "times", "web:q8"),
        _with({}, "times", "web:q9"),
        _with({}, "times", "web:q4f16"),
        _with({}, "times", "ort"),
        _without("times", "web:q8", "deep"),
        _without("times", "web:q8", "wide", "step"),
        _without("times", "web:q8", "wide", "step", "512"),
        _without("times", "web:q8", "thin", "prompt", "256"),
        _with(1.0, "times", "web:q8", "thin", "prompt", "257"),
        _with(1.0, "times", "web:q8", "thin", "prompt", "long"),
        *(
            _with(bad, "times", "web:q8", "wide", "step", "64")
            for bad in (0, -1.0, float("nan"), float("inf"), "1", None, [1.0])
        ),
    ],
)
def test_bad_times_are_one_clear_error(edit: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    found = json.loads(json.dumps(document()))
    edit(found)
    out = tmp_path / "phone.toml"
    error = error_of(lambda: run("--times", written(tmp_path, found), "-o", out))
    assert (error.code, error.exit) == ("times-invalid", 2)
    assert "measure --target web:q8" in error.remedy
    assert not out.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null"])
def test_a_file_that_holds_no_times_is_the_same_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    assert error_of(lambda: read_times(path)).code == "times-invalid"
    path.write_bytes(content)
    assert error_of(lambda: read_times(path)).code == "times-invalid"


def test_a_name_is_that_of_what_was_timed(times: Path, tmp_path: Path) -> None:
    for call in (
        lambda: onnx_gpt.measure("webgpu", times=times),
        lambda: onnx_gpt.measure("wasm"),
        lambda: run("--target", "web:q8", "--name", "wasm", "-o", tmp_path / "x"),
        lambda: run("--target", "web:q8", "--times", times, "-o", tmp_path / "x"),
    ):
        error = error_of(call)
        assert (error.code, error.exit) == ("measure-usage", 2)
    assert not (tmp_path / "x").exists()


@pytest.mark.usefixtures("small")
def test_decoders_are_bundles_of_the_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "decoders"
    run("--target", "web:q8+q4", "-o", out, "--json")
    asked = json.loads(capsys.readouterr().out)
    assert asked == json.loads((out / "decoders.json").read_text("utf-8"))
    assert (asked["models"], asked["decoders"]) == (["web:q8", "web:q4"], ["wide", "thin"])
    _, samples = read_times(written(tmp_path, document()))
    for shape, sample in zip(asked["decoders"], samples["web:q8"], strict=True):
        config = json.loads((out / shape / "config.json").read_text("utf-8"))
        counted = config["transformers.js_config"]["use_external_data_format"]
        assert counted == {"model_quantized.onnx": 1, "model_q4.onnx": 1}
        size = sum(path.stat().st_size for path in (out / shape / "onnx").glob("model_quantized.onnx*"))
        assert sample.work.size == pytest.approx(size, rel=0.02)
    assert error_of(lambda: write_decoders("web:q8", out)).code == "output-exists"
    for target, code in (
        ("ort", "target-unsupported"),
        ("web", "target-unsupported"),
        ("web:q4f16", "target-unsupported"),
        ("web:q9", "target-unknown"),
    ):
        assert error_of(lambda: write_decoders(target, tmp_path / "other")).code == code  # noqa: B023
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("small")
def test_the_page_times_them_in_chromium(tmp_path: Path) -> None:
    write_decoders("web:q8", tmp_path / "decoders")
    (found,) = in_chromium(tmp_path / "decoders", [{"device": "wasm", "measure": {"threads": 1}}])
    assert found.pop("foreign") == []
    device = onnx_gpt.measure("mine", times=written(tmp_path, found))
    assert device.measured is not None
    assert device.measured.on.endswith("1 threads")
    assert device.measured.formats.keys() == {"web:q8"}


def test_wasm_has_been_measured() -> None:
    plan = onnx_gpt.plan("sample:tiny", device="wasm", budget="decode=1")
    predicted = plan.chosen.predicted
    assert predicted.decode is not None
    assert predicted.decode.low < predicted.decode.value < predicted.decode.high
