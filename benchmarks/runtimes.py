"""The runtimes that targets are for, each opening a bundle and generating greedily: `benchmarks.targets` asks them.

A runtime raises what it raises where it cannot load a bundle or run it; `NotHereError` means that it is not installed.
"""

from __future__ import annotations

import functools
import itertools
import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import transformers_js
from benchmarks.environment import NotHereError, python_of
from benchmarks.measure import ROOT, environment, median


@dataclass(frozen=True)
class Answer:
    """What a runtime generated.

    Attributes:
        tokens: greedy, up to the end of text where the runtime knows of one.
        step: seconds of a decode step; None where the runtime does not let us see it.
        first: seconds of the prompt, the first thing that the runtime does with the bundle.
    """

    tokens: list[int]
    step: float | None
    first: float | None = None


Generate = Callable[[Path, Sequence[int], int], Answer]
"""Bundle, prompt and number of tokens to what was generated."""


@dataclass(frozen=True)
class Runtime:
    """How one target's bundle is made and opened.

    Attributes:
        model: what ``--target`` takes, by weights: ``float`` and ``int8``.
        path: the graph in the bundle, by weights.
        generate: opens the bundle; the second argument of `by_hand` is that path.
        quantized: whether ``--quantize`` says what int8 is; else the target's model does.
        graph: the target whose ``.onnx`` file our own runner is given, where this one's bundle has none.
        rounds: whether it rounds activations where onnxruntime does; else our runner leaves them in float too.
    """

    model: Mapping[str, str]
    path: Mapping[str, str]
    generate: Callable[[str], Generate]
    quantized: bool = True
    graph: str | None = None
    rounds: bool = True


def by_hand(open_step: Callable[[Path], Any]) -> Callable[[str], Generate]:
    """A runtime that has no `generate`: a step is called with a growing cache."""

    def of(path: str) -> Generate:
        def generate(bundle: Path, prompt: Sequence[int], count: int) -> Answer:
            from tests.onnx_gpt.device_runtimes import greedy

            step, pasts = open_step(bundle / path)
            taken: list[float] = []

            def timed(feeds: Any) -> Any:
                start = time.perf_counter()
                outputs = step(feeds)
                taken.append(time.perf_counter() - start)
                return outputs

            tokens = greedy(timed, pasts, prompt, count)
            return Answer(tokens, median(taken[1:]), taken[0])

        return generate

    return of


def onnxruntime(path: Path) -> Any:
    from tests.onnx_gpt.device_runtimes import ort_step

    return ort_step(path)


def model_package(path: Path) -> Any:
    """The package whose CPU variant has its graph at ``path``."""
    from tests.onnx_gpt.device_runtimes import package_step

    return package_step(path.parent.parent)


def openvino(path: Path) -> Any:
    from tests.onnx_gpt.device_runtimes import openvino_step

    try:
        import openvino as _  # noqa: F401
    except ImportError as error:
        raise NotHereError("openvino is not installed") from error
    return openvino_step(path)


def genai(_: str) -> Generate:
    """onnxruntime-genai, with its own loop."""

    def generate(bundle: Path, prompt: Sequence[int], count: int) -> Answer:
        from tests.onnx_gpt.device_runtimes import genai_greedy

        try:
            import onnxruntime_genai as _  # noqa: F401
        except ImportError as error:
            raise NotHereError("onnxruntime-genai is not installed") from error
        ticks: list[float] = []
        tokens = genai_greedy(bundle, prompt, count, lambda: ticks.append(time.perf_counter()))
        first, *steps = [after - before for before, after in itertools.pairwise(ticks)]
        return Answer(tokens, median(steps) if steps else None, first)

    return generate


def node(dtype: str) -> Generate:
    """transformers.js in Node; its steps are not timed."""

    def generate(bundle: Path, prompt: Sequence[int], count: int) -> Answer:
        call = {"dtype": dtype, "prompt": list(prompt), "max_new_tokens": count}
        return Answer(transformers_js.in_node(bundle, [call])[0]["ids"], None)

    return generate


def optimum(_: str) -> Generate:
    """ORTModelForCausalLM in its own environment, one process for all bundles: importing it takes long."""

    def generate(bundle: Path, prompt: Sequence[int], count: int) -> Answer:
        server = _optimum_server()
        assert server.stdin is not None and server.stdout is not None
        job = {"folder": str(bundle), "prompt": list(prompt), "count": count}
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        line = server.stdout.readline()
        if not line:
            raise RuntimeError(f"Optimum's process ended with status {server.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return Answer(answer["tokens"], answer["seconds"], answer["first"])

    return generate


@functools.cache
def _optimum_server() -> subprocess.Popen[str]:
    """It ends with this process, which closes its stdin."""
    try:
        python = python_of("optimum")
    except subprocess.CalledProcessError as error:
        raise NotHereError("Optimum's environment cannot be made") from error
    return subprocess.Popen(
        [python, "-m", "benchmarks.peers.optimum", "serve"],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _one(name: str, generate: Callable[[str], Generate], **more: Any) -> Runtime:
    weights = ("float", "int8")
    path = more.pop("path", "model.onnx")
    return Runtime(dict.fromkeys(weights, name), dict.fromkeys(weights, path), generate, **more)


RUNTIMES: Mapping[str, Runtime] = {
    "ort": _one("ort", by_hand(onnxruntime)),
    "genai": _one("genai", genai),
    "web": Runtime(
        {"float": "web:fp32", "int8": "web:q8"},
        {"float": "onnx/model.onnx", "int8": "onnx/model_quantized.onnx"},
        lambda path: node("fp32" if path.endswith("model.onnx") else "q8"),
        quantized=False,
    ),
    "mobile": _one("mobile:model", by_hand(onnxruntime), path="model.ort", graph="ort"),
    "model-package": _one("model-package", by_hand(model_package), path="cpu/model.onnx"),
    "openvino": _one("openvino", by_hand(openvino), rounds=False),
    "optimum": _one("optimum", optimum),
}
"""By target, in the order of the table."""
