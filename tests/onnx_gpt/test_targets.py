"""Targets are values: what a job makes for several of them, how models are laid out, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnx_gpt
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.bundle.plan import plan
from onnx_gpt.bundle.runtime import Runtime, require_runs
from onnx_gpt.bundle.targets import ModelFile, Target, chosen, targets
from onnx_gpt.bundle.writing import DATA, MODEL, place
from onnx_gpt.linting.linter import lint
from onnx_gpt.recipe import Recipe

RUNTIME = Runtime("a runtime")


@pytest.mark.parametrize("name", sorted(targets()))
def test_a_target_is_a_frozen_description(name: str) -> None:
    target = targets()[name]
    assert isinstance(target, Target) and target.name == name
    assert target.models and len({model.path for model in target.models}) == len(target.models)
    assert len({model.name for model in target.models}) == len(target.models)
    with pytest.raises(dataclasses.FrozenInstanceError):
        target.name = "other"  # type: ignore[misc]


def test_what_targets_want_alike_is_built_once() -> None:
    made = plan(Recipe(quantize="int8", targets=("ort", "genai", "web:q8")))
    assert [build.recipe.quantize for build in made.builds] == ["int8", "dynamic8"]
    assert made.uses == ((0,), (0,), (1,))
    assert {runtime.name for runtime in made.builds[0].runtimes} == {
        model.runtime.name for name in ("ort", "genai") for model in targets()[name].models
    }


def test_some_of_a_targets_models_can_be_chosen() -> None:
    assert [model.name for model in chosen("web:q4+q8").models] == ["q8", "q4"]
    for asked in ("web:q3", "abacus"):
        with pytest.raises(OnnxGptError) as caught:
            chosen(asked)
        assert caught.value.code == "target-unknown" and caught.value.exit == Exit.USAGE


def test_a_quantization_that_no_model_takes_is_an_error() -> None:
    with pytest.raises(OnnxGptError) as caught:
        Recipe(quantize="int4", targets=("web",))
    assert caught.value.code == "setting-unread" and "web:" in caught.value.remedy
    Recipe(quantize="int4", targets=("web", "ort"))


def test_calibration_text_reaches_the_models_that_can_use_it() -> None:
    recipe = Recipe(targets=("web:fp32+q4",), calibration=Path("text.txt"))
    methods = {model.name: recipe.of(model).resolved_method for model in recipe.models()}
    assert methods["q4"] == "gptq"
    with pytest.raises(OnnxGptError):
        Recipe(targets=("web:fp32",), calibration=Path("text.txt"))


def test_a_cache_that_a_runtime_does_not_feed_is_refused() -> None:
    with pytest.raises(OnnxGptError) as caught:
        plan(Recipe(targets=("web",), kv_cache="int8"))
    assert caught.value.code == "target-unsupported"


def written(folder: Path, sizes: tuple[int, ...]) -> tuple[Path, list[np.ndarray]]:
    """A model whose weights lie one behind the other in ``model.onnx.data``, on multiples of 4096."""
    folder.mkdir()
    arrays = [np.arange(size, dtype=np.float32) + i for i, size in enumerate(sizes)]
    tensors, data = [], bytearray()
    for i, array in enumerate(arrays):
        data.extend(bytes(-len(data) % 4096))
        tensor = numpy_helper.from_array(array, f"w{i}")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", DATA), ("offset", len(data)), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
        data.extend(array.tobytes())
    graph = helper.make_graph([], "weights", [], [], tensors)
    onnx.save(helper.make_model(graph), str(folder / MODEL))
    (folder / DATA).write_bytes(data)
    return folder, arrays


@pytest.mark.parametrize("move", [False, True])
def test_weights_are_cut_into_files_under_the_limit(tmp_path: Path, move: bool) -> None:
    folder, arrays = written(tmp_path / "written", (1000, 2000, 500, 3000, 10))
    wanted = ModelFile("m", "onnx/model_q4.onnx", "", RUNTIME, data_suffix="_data", data_limit=14_000)
    assert place(folder, wanted, tmp_path / "bundle", move=move) == 3
    names = [f"model_q4.onnx_data{end}" for end in ("", "_1", "_2")]
    files = [tmp_path / "bundle" / "onnx" / name for name in names]
    assert all(0 < file.stat().st_size <= 14_000 for file in files)
    model = onnx.load(str(tmp_path / "bundle" / "onnx" / "model_q4.onnx"))
    for array, tensor in zip(arrays, model.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), array)
    placed = onnx.load(str(tmp_path / "bundle" / "onnx" / "model_q4.onnx"), load_external_data=False)
    offsets = [int(e.value) for t in placed.graph.initializer for e in t.external_data if e.key == "offset"]
    assert all(offset % 4096 == 0 for offset in offsets)


def test_a_model_without_a_limit_is_left_as_it_was_written(tmp_path: Path) -> None:
    folder, _ = written(tmp_path / "written", (1000, 2000))
    before = [(folder / name).read_bytes() for name in (MODEL, DATA)]
    assert place(folder, ModelFile("m", MODEL, "", RUNTIME), tmp_path / "bundle", move=True) == 1
    assert [(tmp_path / "bundle" / name).read_bytes() for name in (MODEL, DATA)] == before
    assert list(folder.iterdir()) == []


def test_a_tensor_that_no_file_may_hold_is_refused(tmp_path: Path) -> None:
    folder, _ = written(tmp_path / "written", (10, 5000))
    wanted = ModelFile("m", MODEL, "", RUNTIME, data_limit=8000)
    with pytest.raises(OnnxGptError) as caught:
        place(folder, wanted, tmp_path / "bundle", move=False)
    assert caught.value.code == "tensor-too-large" and "w1" in caught.value.cause


def test_a_runtime_refuses_what_it_has_no_kernel_for(tmp_path: Path) -> None:
    import onnx_ir as ir

    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    node = ir.node("QuickGelu", [value], domain="com.microsoft")
    graph = ir.Graph([value], node.outputs, nodes=[node], opset_imports={"": 23, "com.microsoft": 1})
    model = ir.Model(graph, ir_version=10)
    require_runs(model, RUNTIME)
    for runtime in (
        Runtime("old", opset=21),
        Runtime("bare", lacks=frozenset(["com.microsoft::QuickGelu"])),
    ):
        with pytest.raises(OnnxGptError) as caught:
            require_runs(model, runtime)
        assert caught.value.code == "target-unsupported"


def test_several_models_have_their_own_facts_in_one_report(tmp_path: Path) -> None:
    loose = onnx_gpt.Limits(max_kl=1.0, min_top1=0.5, max_perplexity_ratio=2.0)
    report = onnx_gpt.optimize(
        "sample:tiny", tmp_path / "web", target="web:fp32+q8", limits=loose, tokens=64, verify=False
    )
    web = json.loads((tmp_path / "web" / "report.json").read_text("utf-8"))
    assert set(web["models"]) == {"onnx/model.onnx", "onnx/model_quantized.onnx"}
    for path, facts in web["models"].items():
        assert facts["parity"]["verdict"] == "pass"
        assert web["files"][path] == (tmp_path / "web" / path).stat().st_size == report.files[path]
    assert web["models"]["onnx/model_quantized.onnx"]["recipe"]["quantize"] == "dynamic8"
    assert web["parity"] == web["models"]["onnx/model.onnx"]["parity"]


@pytest.mark.parametrize("end", [999, [256, -1]], ids=str)
def test_an_end_that_no_token_has_is_refused_where_the_runtime_would_not_load(
    end: int | list[int], tmp_path: Path
) -> None:
    """onnxruntime-genai alone; to the others it never comes, and `inspect` says so as a warning."""
    source = shutil.copytree(Path(__file__).parents[2] / "samples" / "tiny", tmp_path / "source")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    settings = {"quantize": "int4", "method": "gptq", "parity": False}
    for target in ("genai", "ort,model-package"):
        with pytest.raises(OnnxGptError, match=r"eos_token_id is (999|-1), and the model has 257") as caught:
            onnx_gpt.optimize(str(source), tmp_path / "out", target=target, **settings)
        assert (caught.value.code, caught.value.exit) == ("config-invalid", Exit.REJECTED)
        assert [path.name for path in tmp_path.iterdir()] == ["source"]  # no code has been chosen yet
    onnx_gpt.optimize(str(source), tmp_path / "out", parity=False, verify=False)
    verdict = lint(tmp_path / "out", "ort")
    assert verdict.ok and "token-id-range" in {finding.code for finding in verdict.findings}
