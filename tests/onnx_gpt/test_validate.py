"""`validate`: parity of any two, its limits, its exit statuses and its document."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny import tiny

import onnx_gpt
from exporter.errors import Exit, OnnxGptError
from exporter.writing import write_checkpoint
from onnx_gpt.cli import main
from onnx_gpt.parity.cases import cases
from onnx_gpt.parity.limits import BUDGETS, SIZES, limits_of, scheme_of
from onnx_gpt.validation import plan_comparison

FOREIGN = Path(__file__).parent.parent / "graph_passes" / "foreign"
FEW = 128


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One function of many forms: a checkpoint, bundles of it, and one bundle of another model."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("checkpoint", 0), ("other", 1)):
        (folder / name).mkdir()
        write_checkpoint(folder / name, tiny("llama", seed))
    for name, scheme in (("bundle", "none"), ("int8", "int8")):
        source = str(folder / "checkpoint")
        onnx_gpt.optimize(source, folder / name, quantize=scheme, parity=False, verify=False)
    sys.path.insert(0, str(Path(__file__).parent))
    return {
        "checkpoint": str(folder / "checkpoint"),
        "other": str(folder / "other"),
        "bundle": str(folder / "bundle"),
        "graph": str(folder / "bundle" / "model.onnx"),
        "int8": str(folder / "int8"),
        "module": "module:my_decoder:fused",
        "foreign": str(FOREIGN / "optimum-llama.onnx"),
        "uncached": str(FOREIGN / "optimum-llama-nocache.onnx"),
        "genai": str(FOREIGN / "genai-llama.onnx"),
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("bundle", "checkpoint"),
        ("checkpoint", "bundle"),
        ("graph", "bundle"),
        ("int8", "checkpoint"),
        ("int8", "bundle"),
        ("bundle", "int8"),
        ("checkpoint", "checkpoint"),
        ("module", "module"),
        ("foreign", "uncached"),
        ("uncached", "genai"),
    ],
)
def test_any_two_that_are_one_agree(models: dict[str, str], one: str, other: str) -> None:
    parity = onnx_gpt.validate(models[one], models[other], tokens=FEW)
    assert parity.verdict == "pass", parity.failures
    assert parity.checks.keys() >= cases().keys() | {"tokenizer"}
    exact = "int8" not in (one, other)
    assert (parity.noise is not None) is exact and parity.scheme == ("none" if exact else "int8")


def test_a_graph_that_cannot_pad_fails_unless_that_is_left_out(models: dict[str, str]) -> None:
    """onnxruntime-genai's builder: left-padded rows are nonsense, and the graph does not say so."""
    found = onnx_gpt.validate(models["genai"], models["foreign"], tokens=FEW)
    assert {name for name, check in found.checks.items() if check.verdict == "fail"} == {"left_padding"}
    rest = onnx_gpt.validate(models["genai"], models["foreign"], tokens=FEW, skip=["left_padding"])
    assert rest.verdict == "pass" and "asked" in rest.not_run["left_padding"]
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.validate(models["genai"], models["foreign"], skip=["no_such_case"])
    assert (caught.value.code, caught.value.exit) == ("case-unknown", Exit.USAGE)


def test_two_that_are_not_one_do_not(models: dict[str, str]) -> None:
    for candidate in ("bundle", "int8", "checkpoint"):
        parity = onnx_gpt.validate(models[candidate], models["other"], tokens=FEW)
        assert parity.verdict == "fail" and any("KL" in failure for failure in parity.failures)


def test_models_of_other_vocabularies_are_no_pair(models: dict[str, str]) -> None:
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.validate(models["bundle"], models["foreign"], tokens=FEW)
    assert (caught.value.code, caught.value.exit) == ("vocabulary-differs", Exit.REJECTED)


def test_a_folder_that_is_two_things_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(models["checkpoint"], tmp_path / "both")
    shutil.copyfile(models["foreign"], tmp_path / "both" / "model.onnx")
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.validate(tmp_path / "both", models["checkpoint"], tokens=FEW)
    assert caught.value.code == "source-ambiguous" and "model.onnx" in caught.value.cause


def test_a_report_that_is_none_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(models["int8"], tmp_path / "bundle")
    (tmp_path / "bundle" / "report.json").write_text("[]", "utf-8")
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.validate(tmp_path / "bundle", models["checkpoint"], tokens=FEW)
    assert caught.value.code == "bundle-invalid"


def test_a_weight_that_moved_by_a_ten_thousandth_shows(models: dict[str, str], tmp_path: Path) -> None:
    """Far below what KL or a fixed tolerance of 1e-3 would see, and far above the reference's noise."""
    model = onnx.load(models["foreign"])
    gain = next(t for t in model.graph.initializer if t.name == "model.norm.weight")
    moved = np.frombuffer(gain.raw_data, np.float32).copy()
    moved[3] *= np.float32(1 + 1e-4)
    gain.raw_data = moved.tobytes()
    onnx.save(model, tmp_path / "moved.onnx")
    parity = onnx_gpt.validate(tmp_path / "moved.onnx", models["foreign"], tokens=FEW)
    assert parity.mean_kl < 1e-9 and parity.max_abs < 1e-3
    assert parity.verdict == "fail" and "noise" in parity.failures[0]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def test_the_command_line(models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--tokens", FEW)
    assert run("validate", models["int8"], "--against", models["checkpoint"], *few, "--json") == Exit.DONE
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["schema"] == "onnx-gpt/parity/2" and document["verdict"] == "pass"
    assert "mean KL" in captured.err, "the limits are shown before the run"
    assert document["limits"] == limits_of("int8", document["parameters"]).model_dump()
    assert all(check["detail"] for check in document["checks"].values())

    status = run("validate", models["int8"], "--against", models["checkpoint"], *few, "--max-kl", 1e-9)
    captured = capsys.readouterr()
    assert status == Exit.PARITY and "mean KL" in captured.out and "fail" in captured.out


def test_the_schema_is_what_it_was(models: dict[str, str]) -> None:
    """Keys are a promise: one that is renamed or left out is another schema."""
    parity = onnx_gpt.validate(models["bundle"], models["checkpoint"], tokens=FEW)
    document = json.loads(parity.model_dump_json(by_alias=True))
    assert document.keys() == {
        *("schema", "candidate", "reference", "scheme", "parameters", "text", "tokens", "max_abs"),
        *("mean_kl", "mean_kl_error", "p99_kl", "max_kl", "top1", "near_ties"),
        *("perplexity", "reference_perplexity", "perplexity_ratio_error"),
        *("greedy_tokens", "greedy_agreed", "greedy_divergence"),
        *("noise", "deviation", "checks", "limits", "verdict", "failures"),
    }
    assert document["checks"]["causal"].keys() == {"verdict", "detail", "value", "limit", "unit"}
    assert document["noise"].keys() == {"worst", "rms", "positions", "ways"}


def test_other_tokenizers_are_found_out(tmp_path: Path) -> None:
    onnx_gpt.optimize("sample:tiny", tmp_path / "out", parity=False, verify=False)
    path = tmp_path / "out" / "tokenizer.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    (a, i), (b, j) = (pair for pair in vocabulary.items() if pair[0] in ("a", "e"))
    vocabulary |= {a: j, b: i}
    path.write_text(json.dumps(tokenizer), "utf-8")
    parity = onnx_gpt.validate(tmp_path / "out", "sample:tiny", tokens=FEW)
    assert parity.checks["tokenizer"].verdict == "fail" and parity.verdict == "fail"


def test_the_lossier_side_sets_the_budget(models: dict[str, str]) -> None:
    plan = plan_comparison(models["bundle"], models["int8"])
    assert plan.scheme == "int8" and plan.limits == limits_of("int8", plan.facts.parameters)
    given = plan_comparison(models["int8"], models["checkpoint"], onnx_gpt.Limits(max_kl=0.5))
    assert given.limits.max_kl == 0.5 and given.limits.min_top1 == plan.limits.min_top1


def test_a_graph_says_what_it_is(models: dict[str, str]) -> None:
    assert scheme_of(Path(models["graph"])) == "none"
    assert scheme_of(Path(models["int8"]) / "model.onnx") == "int8"
    assert scheme_of(Path(models["genai"])) == "none"


@pytest.mark.parametrize("scheme", sorted(BUDGETS))
def test_larger_models_have_tighter_budgets(scheme: str) -> None:
    columns = [limits_of(scheme, least).numbers() for least in SIZES]
    for (kl, top1, ratio), (smaller_kl, smaller_top1, smaller_ratio) in itertools.pairwise(columns):
        assert kl <= smaller_kl and top1 >= smaller_top1 and ratio <= smaller_ratio
    assert limits_of(scheme, None) == limits_of(scheme, 1)
