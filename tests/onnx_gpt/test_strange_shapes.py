"""Decoders as small as they can be: a head, a few neurons, a context of a few tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny

import onnx_gpt
from exporter.errors import OnnxGptError
from exporter.families import describe
from exporter.writing import write_checkpoint
from onnx_gpt.pruning.recipe import Structures
from onnx_gpt.pruning.structures import equal_sizes
from onnx_gpt.report import Parity


@pytest.mark.parametrize(
    ("have", "share", "left"), [(96, 0.25, 72), (96, 0.01, 88), (9, 0.5, 8), (12, 0.9, 8)]
)
def test_some_neurons_go_and_some_are_left(have: int, share: float, left: int) -> None:
    layers = describe(tiny("llama", intermediate_size=have)).layers
    assert [size.ffn for size in equal_sizes(layers, Structures(ffn=share))] == [left] * len(layers)


@pytest.mark.parametrize(
    ("shape", "wanted", "word"),
    [
        ({"intermediate_size": 3}, Structures(ffn=0.5), "of 3 neurons"),
        ({"num_attention_heads": 1, "num_key_value_heads": 1}, Structures(heads=0.5), "there is one"),
    ],
)
def test_what_cannot_be_smaller_is_said_to_be(shape: dict[str, int], wanted: Structures, word: str) -> None:
    with pytest.raises(OnnxGptError, match=f"(?s)prune-invalid.*{word}"):
        equal_sizes(describe(tiny("llama", **shape)).layers, wanted)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_context_of_a_few_tokens_is_enough_for_every_target(family: str, tmp_path: Path) -> None:
    checkpoint = tiny(family, **{"n_positions" if family == "gpt2" else "max_position_embeddings": 8})
    (tmp_path / "source").mkdir()
    write_checkpoint(tmp_path / "source", checkpoint)
    onnx_gpt.optimize(str(tmp_path / "source"), tmp_path / "out", target="ort,mobile", parity=False)
    assert (tmp_path / "out" / "mobile" / "model.ort").is_file()


@pytest.mark.parametrize(
    "few", [{"tokens": 1}, {"tokens": 16, "context_length": 3}], ids=["tokens", "context"]
)
def test_little_text_is_no_false_alarm(few: dict[str, int], tmp_path: Path) -> None:
    report = onnx_gpt.optimize("sample:tiny", tmp_path / "out", **few)
    assert isinstance(report.parity, Parity) and report.parity.verdict == "pass"
