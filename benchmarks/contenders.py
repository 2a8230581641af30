"""Everything that is compared: how each artifact is made, and how it is run.

An artifact is made once, under .cache/artifacts/, and again when it is deleted (`--remake` deletes ours).
Standard library only, like measure.py.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError

from benchmarks.environment import python_of
from benchmarks.measure import ChildFailedError, Row, file_name, fresh, holding, run, say, size_of
from benchmarks.paths import CACHE, GGUF, PERMUTED, SMOLLM2, TINY

ARTIFACTS = CACHE / "artifacts"

Command = list[str | Path]
REMAKE = "make our own artifacts again"


@dataclass(frozen=True)
class Contender:
    """A model file and the program that runs it.

    Attributes:
        name: as the tables have it.
        path: the artifact.
        make: the command that makes it; None for an input, which is there already.
        runner: a command that takes ``logits MODEL TOKENS OUT`` and ``speed MODEL``; peers/protocol.py.
    """

    name: str
    path: Path
    make: Callable[[], Command] | None
    runner: Callable[[], Command]

    def ready(self) -> Path:
        """The artifact, made where it is missing."""
        if self.make is not None and not self.path.exists():
            say(f"making {self.name}")
            partial = fresh(self.path.with_name(self.path.name + ".partial"))
            run([part if part != self.path else partial for part in self.make()])
            partial.rename(self.path)
        return self.path

    def logits(self, tokens: Path, out: Path) -> None:
        run([*self.runner(), "logits", self.ready(), tokens, out])

    def speed(self) -> Row:
        """Tokens per second of one prefill and of decoding after it."""
        document: Row = run([*self.runner(), "speed", self.ready()]).document()
        return document

    @property
    def size(self) -> int:
        return size_of(self.path)


def selected(contenders: Sequence[Contender], only: Sequence[str] | None, *, remake: bool) -> list[Contender]:
    """Those whose name has one of ``only`` in it; ``remake`` deletes our artifacts among them."""
    wanted = holding(only)
    chosen = [one for one in contenders if wanted(one.name)]
    for contender in chosen:
        if remake and contender.name.startswith("onnx-gpt"):
            shutil.rmtree(contender.path, ignore_errors=True)
    return chosen


def prepared(contenders: Sequence[Contender]) -> tuple[list[Contender], dict[str, str]]:
    """Those whose artifacts are there or can be made, and why the others failed, by name."""
    ready: list[Contender] = []
    failed: dict[str, str] = {}
    for contender in contenders:
        try:
            contender.runner()
            contender.ready()
        except (ChildFailedError, CalledProcessError) as error:
            failed[contender.name] = str(error)
        else:
            ready.append(contender)
    return ready, failed


def peer(module: str, environment: str) -> Callable[[], Command]:
    """A peer's script in the peer's environment."""
    return lambda: [python_of(environment), "-m", f"benchmarks.peers.{module}"]


def on_onnxruntime() -> Command:
    return [sys.executable, "-m", "benchmarks.onnx_model"]


def on_torch() -> Command:
    return [sys.executable, "-m", "benchmarks.reference"]


def our_command(*arguments: str | Path) -> Command:
    """Our own command, as a user types it."""
    return [sys.executable, "-m", "onnx_gpt", *arguments]


def optimize(source: str | Path, out: Path, *options: str) -> Command:
    return our_command("optimize", source, "-o", out, *options)


def ours(name: str, source: Path, *options: str) -> Contender:
    path = _artifact(name)
    return Contender(name, path, lambda: optimize(source, path, "--no-parity", *options), on_onnxruntime)


def made_by(
    name: str,
    source: Path | Callable[[], Path],
    module: str,
    environment: str,
    *,
    verb: str = "make",
    runner: Callable[[], Command] = on_onnxruntime,
) -> Contender:
    """A peer's artifact; ``source`` may be a function where it is another contender's artifact."""
    path = _artifact(name)

    def command() -> Command:
        return [*peer(module, environment)(), verb, source() if callable(source) else source, path]

    return Contender(name, path, command, runner)


def _artifact(name: str) -> Path:
    return ARTIFACTS / file_name(name).strip("-")


TORCH = Contender("PyTorch fp32", SMOLLM2, None, on_torch)
TORCH_PERMUTED = Contender("PyTorch fp32 (permuted)", PERMUTED, None, on_torch)

OURS_FLOAT = ours("onnx-gpt fp32", SMOLLM2)
OURS_INT8 = ours("onnx-gpt int8", SMOLLM2, "--quantize", "int8")
OURS_INT4 = ours("onnx-gpt int4", SMOLLM2, "--quantize", "int4")
OURS_INT8_PERMUTED = ours("onnx-gpt int8 (permuted)", PERMUTED, "--quantize", "int8")
OURS_INT4_PERMUTED = ours("onnx-gpt int4 (permuted)", PERMUTED, "--quantize", "int4")
WIDE_TABLE = ("--quantize", "int4", "--table-bits", "8")
OURS_INT4_WIDE = ours("onnx-gpt int4, 8-bit table", SMOLLM2, *WIDE_TABLE)
OURS_INT4_WIDE_PERMUTED = ours("onnx-gpt int4, 8-bit table (permuted)", PERMUTED, *WIDE_TABLE)
LARGE_BLOCKS = ("--quantize", "int4", "--block-size", "64")
OURS_INT4_LARGE = ours("onnx-gpt int4, blocks of 64", SMOLLM2, *LARGE_BLOCKS)
OURS_INT4_LARGE_PERMUTED = ours("onnx-gpt int4, blocks of 64 (permuted)", PERMUTED, *LARGE_BLOCKS)
CALIBRATED = ("--quantize", "int4", "--method", "gptq", "--block-size", "64", "--table-bits", "8")
WIDE_V = "layers.[1-9].attention.v=8,layers.[12]?.attention.v=8"
"""All but one layer: with it the file would be over 90 MB."""
WIDE_V_AND_DOWN = "attention.v=8,layers.[02].ffn.down=8,layers.11.ffn.down=8,layers.2[1-9].ffn.down=8"
OURS_INT4_CALIBRATED_PERMUTED = ours("onnx-gpt int4 calibrated (permuted)", PERMUTED, *CALIBRATED)
OURS_INT4_90MB_PERMUTED = ours(
    "onnx-gpt int4 calibrated, 8-bit v (permuted)", PERMUTED, *CALIBRATED, "--mixed", WIDE_V
)
SMALL = ("--quantize", "int4", "--method", "gptq", "--block-size", "64")
OURS_INT4_SMALL_PERMUTED = ours("onnx-gpt int4 calibrated, 4-bit table (permuted)", PERMUTED, *SMALL)
FAST = (*SMALL, "--mixed", "ffn.*=4/128")
OURS_INT4_FAST_PERMUTED = ours("onnx-gpt int4 calibrated, fast (permuted)", PERMUTED, *FAST)
OURS_INT4_FAST_CACHE_PERMUTED = ours(
    "onnx-gpt int4 calibrated, fast, int8 cache (permuted)", PERMUTED, *FAST, "--kv-cache", "int8"
)
OURS_INT4_100MB_PERMUTED = ours(
    "onnx-gpt int4 calibrated, blocks of 32, 8-bit v and down (permuted)",
    PERMUTED,
    *("--quantize", "int4", "--method", "gptq", "--table-bits", "8", "--mixed", WIDE_V_AND_DOWN),
)
OURS_W8A8 = ours("onnx-gpt w8a8", SMOLLM2, "--quantize", "w8a8")
OURS_W8A8_PERMUTED = ours("onnx-gpt w8a8 (permuted)", PERMUTED, "--quantize", "w8a8")
BY_TOKEN = ("--quantize", "w8a8", "--block-size", "512")
OURS_W8A8_TOKEN = ours("onnx-gpt w8a8, down by token", SMOLLM2, *BY_TOKEN)
OURS_W8A8_TOKEN_PERMUTED = ours("onnx-gpt w8a8, down by token (permuted)", PERMUTED, *BY_TOKEN)
OURS_KEEP = ours("onnx-gpt GGUF kept", GGUF, "--quantize", "keep")

GPT2_SCHEMES = (
    *("none", "int8", "int4", "int4 --method gptq", "int8 --method gptq", "int4 --method awq"),
    *("int4 --method bias", "int4 --method gptq --mixed attention.v=8,ffn.down=8/128", "w8a8"),
    *("w8a8 --method rtn", "dynamic8", "fp16", "q4f16", "none --kv-cache int8"),
)
"""Every scheme and method, with a GPT-2's layers in mind: LayerNorm, biases, no gate."""
TORCH_TINY = Contender("PyTorch fp32 (tiny)", TINY, None, on_torch)
OURS_TINY = tuple(
    ours(f"onnx-gpt tiny, {options}", TINY, "--quantize", *options.split())
    for options in (
        *GPT2_SCHEMES,
        *("int4 --block-size 64", "int4 --block-size 128", "int4 --table-bits 8", "w8a8 --block-size 512"),
        *("int4 --method gptq --block-size 64", "int4 --method gptq --block-size 128"),
        *("int4 --method gptq --table-bits 8", "int4 --method gptq --mixed ffn.up=2/64"),
        "int4 --method gptq --kv-cache int8",
    )
)

GENAI_INT4 = made_by("genai builder int4", SMOLLM2, "genai_builder", "genai")
GENAI_INT4_PRUNED = made_by(
    "genai builder int4, last logits", SMOLLM2, "genai_builder", "genai", verb="make_pruned"
)
GENAI_INT4_PERMUTED = made_by("genai builder int4 (permuted)", PERMUTED, "genai_builder", "genai")
MOBIUS_FLOAT = made_by("mobius fp32", SMOLLM2, "mobius", "mobius")
MOBIUS_KEEP = made_by("mobius GGUF kept", GGUF, "mobius", "mobius", verb="make_gguf")
OPTIMUM_FLOAT = made_by("Optimum fp32", SMOLLM2, "optimum", "optimum")
ORT_DYNAMIC = made_by("ORT quantize_dynamic int8", lambda: OPTIMUM_FLOAT.ready(), "ort_quantize", "optimum")
ORT_STATIC = made_by(
    "ORT quantize_static int8",
    lambda: OPTIMUM_FLOAT.ready(),
    "ort_quantize",
    "optimum",
    verb="make_static",
)
ON_OPENVINO = peer("openvino_int8", "openvino")
OPENVINO_INT8 = made_by("OpenVINO int8", SMOLLM2, "openvino_int8", "openvino", runner=ON_OPENVINO)
OPENVINO_INT8_PERMUTED = made_by(
    "OpenVINO int8 (permuted)", PERMUTED, "openvino_int8", "openvino", runner=ON_OPENVINO
)
LLAMA_CPP = Contender("llama.cpp Q4_1", GGUF, None, peer("llama_cpp", "llama_cpp"))
