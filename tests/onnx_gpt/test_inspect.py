"""Facts of sources and bundles, from headers: what they say, and that sizes of bundles are those that are made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny

import onnx_gpt
from exporter.families import describe, families
from onnx_gpt.cli import main
from onnx_gpt.inspection import bundle_bytes, inspect

SCHEMES = ("none", "int8", "int4", "w8a8", "fp16", "q4f16")
PADDING = 1 << 16
"""Bytes that alignment of tensors adds to a tiny bundle."""


def test_facts_of_a_checkpoint() -> None:
    facts = inspect("sample:tiny")
    assert (facts["family"], facts["parameters"], facts["tied_embedding"]) == ("gpt2", 1_878_336, True)
    assert (facts["layers"], facts["heads"], facts["head_dim"]) == (4, 6, 32)
    assert facts["bundle_bytes"].keys() >= set(SCHEMES)
    assert "keep" not in facts["bundle_bytes"]


@pytest.mark.parametrize("scheme", ["none", "int8", "int4"])
def test_a_bundle_is_as_large_as_was_said(tmp_path: Path, scheme: str) -> None:
    said = inspect("sample:tiny")["bundle_bytes"][scheme]
    report = onnx_gpt.optimize("sample:tiny", tmp_path / "out", quantize=scheme, parity=False, verify=False)
    assert said <= report.files["model.onnx.data"] <= said * 1.02 + PADDING


@pytest.mark.parametrize("family", families())
def test_sizes_of_every_family_follow_its_parts(family: str) -> None:
    """Floats take 4 bytes and halves 2, and codes lie between 4 bits and their scales' share more."""
    checkpoint = tiny(family)
    decoder = describe(checkpoint)
    sizes = bundle_bytes(decoder, checkpoint.weights)
    stored = sum(
        4 * int(weight.shape[0]) * (weight.shape[1] if len(weight.shape) > 1 else 1)
        for weight in checkpoint.weights.values()
        if weight.shape  # Apertus' constants
    )
    assert sizes["none"] >= stored * 0.99
    assert sizes["fp16"] * 2 == sizes["none"]
    assert sizes["int4"] < sizes["int8"] < sizes["fp16"] < sizes["none"]
    assert sizes["q4f16"] < sizes["int4"]


def test_a_bundle_is_told_wherever_its_model_lies(tmp_path: Path) -> None:
    onnx_gpt.optimize("sample:tiny", tmp_path / "ort", parity=False, verify=False)
    onnx_gpt.repair(tmp_path / "ort", "web", tmp_path / "web")
    plain, moved = inspect(str(tmp_path / "ort")), inspect(str(tmp_path / "web"))
    assert plain["kind"] == moved["kind"] == "graph"
    assert plain["ops"] == moved["ops"]
    assert plain["outputs"] == moved["outputs"]


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["sample:tiny"], ["sample:tiny", "--json"]):
        with pytest.raises(SystemExit) as stopped:
            main(["inspect", *arguments])
        assert stopped.value.code == 0
    text, _, document = capsys.readouterr().out.partition("{\n")
    assert "gpt2" in text
    assert json.loads("{" + document)["family"] == "gpt2"
