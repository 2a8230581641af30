"""A model package: onnxruntime opens it and takes the variant for its device; each variant is a genai folder too."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from device_runtimes import genai_greedy, greedy, package_step
from web_runtimes import in_chromium

import onnx_gpt
from onnx_gpt.linting.repairing import repair
from onnx_gpt.parity.candidate import Candidate

PROMPT = "The class statement defines"
COUNT = 32
VARIANTS = ("cpu", "webgpu")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("package") / "tiny"
    onnx_gpt.optimize("sample:tiny", out, target="model-package", quantize="int8", parity=False, verify=False)
    return out


@pytest.fixture(scope="module")
def prompt(package: Path) -> list[int]:
    return list(onnx_gpt.Generator(package / "cpu").encode(PROMPT))


def expected(package: Path, variant: str, prompt: list[int]) -> list[int]:
    """What our own runner says on the graph of a variant."""
    return Candidate(package / variant / "model.onnx").greedy(np.array(prompt), COUNT)


def test_onnxruntime_opens_the_variant_for_its_device(package: Path, prompt: list[int]) -> None:
    opened = ort.ModelPackageContext(str(package))
    assert opened.get_component_names() == ["model"]
    assert tuple(opened.get_variant_names("model")) == VARIANTS
    providers = [opened.get_variant_ep_name("model", variant) for variant in VARIANTS]
    assert providers == ["CPUExecutionProvider", "WebGpuExecutionProvider"]
    assert greedy(*package_step(package), prompt, COUNT) == expected(package, "cpu", prompt)


def test_it_is_valid_by_onnxruntimes_own_strict_reading(package: Path) -> None:
    facts = ort.ModelPackage.open(str(package), strict_unknown_fields=True).get_info()
    assert facts["layout"] == "portable"
    assert [variant["name"] for variant in facts["components"][0]["variants"]] == list(VARIANTS)


def test_a_package_without_a_variant_for_the_device_is_refused_by_onnxruntime(tmp_path: Path) -> None:
    out = tmp_path / "gpu"
    onnx_gpt.optimize("sample:tiny", out, target="model-package:webgpu", parity=False, verify=False)
    assert list(json.loads((out / "manifest.json").read_text())["components"]["model"]["variants"]) == [
        "webgpu"
    ]
    assert not (out / "cpu").exists()
    with pytest.raises(Exception, match="No suitable model variant"):
        package_step(out)


def test_the_cpu_variant_is_a_genai_folder(package: Path, prompt: list[int]) -> None:
    pytest.importorskip("onnxruntime_genai")
    assert genai_greedy(package / "cpu", prompt, COUNT) == expected(package, "cpu", prompt)


@pytest.mark.skipif(
    "ONNX_GPT_WEBGPU_TESTS" not in os.environ,
    reason="a GPU in software compiles its shaders for half a minute: set ONNX_GPT_WEBGPU_TESTS=1",
)
def test_the_webgpu_variant_runs_on_webgpu(package: Path, prompt: list[int], tmp_path: Path) -> None:
    """In Chromium, whose onnxruntime has the same kernels: the linter lays the variant out for it."""
    folder = tmp_path / "web"
    assert repair(package / "webgpu", "web", folder).after.ok
    call = {"dtype": "q4", "device": "webgpu", "prompt": prompt, "max_new_tokens": COUNT}
    # On a CPU MatMulNBits rounds activations to 8 bits, on this GPU it does not: close calls may go the other way.
    assert in_chromium(folder, [call])[0]["ids"][:4] == expected(package, "webgpu", prompt)[:4]
