"""Comparisons: damages of steps add up, what was made from what is known, and charts hold all points."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import onnx
import pytest

import onnx_gpt
from onnx_gpt.cli import app
from onnx_gpt.lineage import lineage_of
from onnx_gpt.planning.chart import Point, svg

CHAIN = {"allocate": "uniform", "tokens": 256}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A dense model, pruned, pruned again, and quantized."""
    folder = tmp_path_factory.mktemp("family")
    names = ["sample:tiny", *(str(folder / name) for name in ("pruned", "sparse", "bundle"))]
    onnx_gpt.prune(names[0], names[1], structured="ffn=0.25", windows=4, **CHAIN)
    onnx_gpt.prune(names[1], names[2], method="magnitude", sparsity=0.2, **CHAIN)
    onnx_gpt.optimize(names[2], names[3], quantize="int4", verify=False, parity=False)
    return names


def test_damages_of_steps_add_up(family: list[str], tmp_path: Path) -> None:
    found = onnx_gpt.compare(*family, tokens=256)
    first, pruned, sparse, bundle = found.variants
    assert [one.parent for one in found.variants] == [None, *family[:3]]
    assert sum(one.step for one in found.variants) == pytest.approx(
        bundle.log_perplexity - first.log_perplexity
    )
    assert first.kl == first.step == 0
    assert 0 < pruned.kl < bundle.kl
    assert first.multiplications > pruned.multiplications == sparse.multiplications == bundle.multiplications
    assert first.bytes > pruned.bytes > bundle.bytes
    assert first.front
    assert bundle.front
    assert json.loads(json.dumps(found.json()))["variants"][3]["parent"] == family[2]


def test_a_graph_of_others_counts_with_its_weights_whatever_their_file_is_called(
    family: list[str], tmp_path: Path
) -> None:
    model = onnx.load(Path(family[3]) / "model.onnx")
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_param = "vocabulary"
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin")
    (tmp_path / "m.onnx.bak").write_bytes(b"another file")
    own, other = onnx_gpt.compare(family[3], str(tmp_path / "m.onnx"), tokens=256).variants
    assert other.bytes == sum((tmp_path / name).stat().st_size for name in ("m.onnx", "weights.bin"))
    assert own.bytes == sum(
        (Path(family[3]) / name).stat().st_size for name in ("model.onnx", "model.onnx.data")
    )
    assert other.kl == 0


def test_the_report_tells_the_steps_before_it(family: list[str]) -> None:
    report = json.loads((Path(family[3]) / "report.json").read_text("utf-8"))
    one, two = report["lineage"]
    assert [one["step"], two["step"]] == ["prune", "prune"]
    assert [one["source"], two["source"]] == family[:2]
    assert one["log_perplexity_after"] == two["log_perplexity_before"]
    assert one["parameters_after"] < one["parameters_before"]
    assert one["text"] == two["text"]
    assert lineage_of("sample:tiny") == ()
    assert lineage_of(family[3]) == ()  # a bundle is no step


@pytest.mark.parametrize("report", ["[]", "{", '{"schema": "onnx-gpt/prune/1"}', '{"schema": "theirs"}'])
def test_a_report_of_others_is_no_lineage(report: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(report, "utf-8")
    assert lineage_of(str(tmp_path)) == ()


def test_a_report_that_names_itself_ends(family: list[str], tmp_path: Path) -> None:
    report = json.loads((Path(family[1]) / "report.json").read_text("utf-8"))
    (tmp_path / "report.json").write_text(json.dumps(report | {"source": str(tmp_path)}), "utf-8")
    assert len(lineage_of(str(tmp_path))) == 1


def test_the_command_line_draws_a_chart(
    family: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chart = tmp_path / "chart.svg"
    flags = ["compare", family[0], family[3], "--tokens", "128", "--time", "-o", str(chart)]
    app()(flags, exit_on_error=False, result_action="return_value")
    assert "KL from the first" in capsys.readouterr().out
    circles = ET.parse(chart).getroot().findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 2


def test_a_chart_takes_any_names_and_numbers() -> None:
    text = svg([Point("<a&b>", 1.0, 0.0, True), Point("c", 1.0, 0.0, False)], x="MB", y="KL")
    assert "&lt;a&amp;b&gt;" in text
    ET.fromstring(text)


def test_one_model_is_compared_with_nothing() -> None:
    with pytest.raises(onnx_gpt.OnnxGptError) as caught:
        onnx_gpt.compare("sample:tiny", "sample:tiny")
    assert caught.value.code == "compare-usage"
