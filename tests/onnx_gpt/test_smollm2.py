"""The real model: SmolLM2-135M through the whole corridor, against the floors that the project promises.

Its file is fetched once into the user's cache. Without a network these tests are skipped, and say so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import onnx_gpt
from exporter import sources
from exporter.checkpoint import Checkpoint
from exporter.errors import Exit, OnnxGptError
from onnx_gpt.report import Parity

SAMPLE = "sample:smollm2"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def fetched() -> None:
    try:
        sources.load(SAMPLE)
    except OnnxGptError as error:
        if error.exit != Exit.NETWORK:
            raise
        pytest.skip(f"SmolLM2 is not in the cache and cannot be fetched: {error.cause}")


def proven(out: Path, quantize: str, tokens: int) -> tuple[onnx_gpt.Report, Parity]:
    report = onnx_gpt.optimize(SAMPLE, out, quantize=quantize, tokens=tokens)
    assert isinstance(report.parity, Parity)
    return report, report.parity


def test_float_is_the_model_in_one_fused_graph(tmp_path: Path) -> None:
    report, parity = proven(tmp_path / "out", "none", 512)
    assert report.graph.ops["com.microsoft::GroupQueryAttention"] == 30
    assert report.graph.ops["com.microsoft::SkipSimplifiedLayerNormalization"] == 60
    assert report.graph.nodes <= 300
    assert parity.mean_kl <= 1e-6 and parity.top1 == 1.0
    assert parity.greedy_agreed == 64 or parity.greedy_divergence == "near tie"
    assert report.files["model.onnx.data"] < 545e6, "the tied table is stored once"


def test_memory_follows_the_largest_tensor_and_not_the_model(tmp_path: Path) -> None:
    """In a process of its own: a peak is a process's, and other tests have had theirs."""
    command = [sys.executable, "-m", "onnx_gpt", "optimize", SAMPLE, "-o", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--no-parity", "--json"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout)
    assert report["files"]["model.onnx.data"] > 530e6
    assert report["stages"][-1]["peak_rss_bytes"] < 400e6


def test_int8_keeps_its_promise(tmp_path: Path) -> None:
    _, parity = proven(tmp_path / "out", "int8", 1024)
    assert parity.mean_kl <= 0.01 and parity.top1 >= 0.94


def test_kept_codes_keep_theirs_and_the_model_talks(tmp_path: Path) -> None:
    report, parity = proven(tmp_path / "out", "keep", 1024)
    assert parity.mean_kl <= 0.006
    assert sum(report.files.values()) <= 110e6
    generator = onnx_gpt.Generator(tmp_path / "out")
    assert generator.session.cache == "shared"
    said = generator.generate(
        [{"role": "user", "content": "What is the capital of France?"}], max_new_tokens=40
    )
    assert "Paris" in said.text


def test_the_samples_weights_are_read_in_their_own_blocks() -> None:
    checkpoint = sources.load(SAMPLE)
    assert isinstance(checkpoint, Checkpoint)
    formats = [weight.format for weight in checkpoint.weights.values() if weight.format is not None]
    assert len(formats) == 211
