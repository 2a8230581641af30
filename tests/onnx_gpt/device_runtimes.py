"""Greedy decoding by hand in runtimes that have no `generate` of their own, and in onnxruntime-genai.

Tests and `benchmarks.targets` open bundles with it. Nothing of our own runner is used here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Step = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""One run of a model: inputs by name to outputs by name."""
Pasts = Mapping[str, tuple[int, int]]
"""Heads and head dim of the cache, by input."""

EXACT: Mapping[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""OpenVINO's settings for float32 throughout: it may compute in bfloat16 and round activations otherwise."""


def unrounded(path: Path) -> Path:
    """A copy beside a graph whose products of codes leave their activations in float, as OpenVINO does; slow."""
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            kept = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend(kept)
    out = path.with_stem(f"{path.stem}-unrounded")
    onnx.save(model, out)
    return out


def greedy(step: Step, pasts: Pasts, prompt: Sequence[int], count: int) -> list[int]:
    """The ``count`` likeliest next tokens, one at a time with a growing cache."""
    cache = {name: np.zeros((1, heads, 0, width), np.float32) for name, (heads, width) in pasts.items()}
    given, chosen, seen = list(prompt), list[int](), 0
    while len(chosen) < count:
        seen += len(given)
        mask = np.ones((1, seen), np.int64)
        outputs = step({"input_ids": np.array([given], np.int64), "attention_mask": mask, **cache})
        chosen.append(int(outputs["logits"][0, -1].argmax()))
        given = chosen[-1:]
        cache = {name: outputs[name.replace("past_key_values", "present", 1)] for name in cache}
    return chosen


def ort_step(path: Path) -> tuple[Step, Pasts]:
    """A ``.onnx`` or ``.ort`` file in plain onnxruntime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors: it warns of every input that has a default
    return _session_step(ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]))


def package_step(folder: Path) -> tuple[Step, Pasts]:
    """A model package in plain onnxruntime: of its variants, the one for a CPU."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    package = ort.ModelPackageContext(str(folder))
    (component,) = package.get_component_names()
    selected = package.select_component(component, ort.ModelPackageOptions(options))
    return _session_step(selected.create_session(options))


def _session_step(session: Any) -> tuple[Step, Pasts]:
    names = [value.name for value in session.get_outputs()]
    pasts = {v.name: (v.shape[1], v.shape[3]) for v in session.get_inputs() if v.name.startswith("past")}
    return lambda feeds: dict(zip(names, session.run(None, feeds), strict=True)), pasts


def openvino_step(path: Path) -> tuple[Step, Pasts]:
    """A ``.onnx`` file in OpenVINO on CPU."""
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", dict(EXACT))
    request = compiled.create_infer_request()
    names = [value.any_name for value in compiled.outputs]

    def step(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        request.infer(feeds)
        return {name: request.get_tensor(name).data.copy() for name in names}

    shapes = {value.any_name: value.partial_shape for value in compiled.inputs}
    pasts = {
        name: (shape[1].get_length(), shape[3].get_length())
        for name, shape in shapes.items()
        if name.startswith("past")
    }
    return step, pasts


def genai_greedy(
    bundle: Path, prompt: Sequence[int], count: int, after: Callable[[], None] = lambda: None
) -> list[int]:
    """What onnxruntime-genai generates, up to the end of text; ``after`` is called at first and after each token."""
    import onnxruntime_genai as og

    model = og.Model(str(bundle))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + count, do_sample=False)
    generator = og.Generator(model, parameters)
    after()
    generator.append_tokens(list(prompt))
    while not generator.is_done():
        generator.generate_next_token()
        after()
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]
