"""What is written is read back: every family, every type, one file or shards, the same bytes twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny import tiny, variants

from exporter.checkpoint import Checkpoint
from exporter.errors import OnnxGptError
from exporter.families import describe, families
from exporter.match import matched
from exporter.sources import hf_directory
from exporter.stored_weights import NotFloat
from exporter.weights import Array, Weight
from exporter.writing import dtype_of, nbytes, stored_weights, write_checkpoint


def by_role(checkpoint: Checkpoint) -> dict[str, Weight]:
    return matched(checkpoint)[1]


def through_roles(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint, its tensors made anew out of the parts that they hold."""
    read = {role: Array(weight.read()) for role, weight in by_role(checkpoint).items()}
    return dataclasses.replace(checkpoint, weights=stored_weights(describe(checkpoint), read))


@pytest.mark.parametrize(("family", "variant"), list(variants()))
def test_what_is_written_is_read_back_bit_for_bit(family: str, variant: str, tmp_path: Path) -> None:
    checkpoint = tiny(family, 3, variant)
    write_checkpoint(tmp_path, through_roles(checkpoint))
    back = hf_directory.load(str(tmp_path))
    assert describe(back) == describe(checkpoint)
    assert back.weights.keys() == checkpoint.weights.keys()
    # γ + 1 − 1 may round in the last place, and so may 0.4·W/0.4: what is used, γ + 1, is what must come back
    rounded = {part.name for _, part in describe(checkpoint).parts() if part.plus or part.times != 1.0}
    for name, weight in checkpoint.weights.items():
        unused = 2 if name.endswith("embed_positions.weight") else 0  # rows of no token
        written, read = (np.atleast_1d(of.read())[unused:] for of in (back.weights[name], weight))
        same = np.array_equal(written, read)
        assert same or name in rounded, name
    ours, theirs = by_role(back), by_role(checkpoint)
    for role in theirs:
        np.testing.assert_allclose(ours[role].read(), theirs[role].read(), rtol=2e-7, err_msg=role)


@pytest.mark.parametrize("family", sorted(families()))
def test_transformers_loads_it_with_nothing_missing(family: str, tmp_path: Path) -> None:
    checkpoint = tiny(family, 1)
    write_checkpoint(tmp_path, checkpoint, shard_bytes=40_000)
    assert (tmp_path / "model.safetensors.index.json").exists()
    _, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_half_type_is_kept_and_its_values_come_back(dtype: str, tmp_path: Path) -> None:
    checkpoint = tiny("qwen2", 2)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_checkpoint(tmp_path / "a", checkpoint, dtype=dtype)
    once = hf_directory.load(str(tmp_path / "a"))
    assert dtype_of(once.weights.values()) == dtype
    write_checkpoint(tmp_path / "b", once, dtype=dtype_of(once.weights.values()))
    torch_dtype = {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    for name, weight in checkpoint.weights.items():
        rounded = torch.from_numpy(weight.read()).to(torch_dtype).float().numpy()
        assert np.array_equal(once.weights[name].read(), rounded), name
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "model.safetensors").stat().st_size - nbytes(once, dtype) < 1 << 13


def test_a_mixture_of_types_is_written_as_float32(tmp_path: Path) -> None:
    assert dtype_of(tiny("llama").weights.values()) == "F32"
    assert dtype_of([]) == "F32"


def test_a_value_beyond_the_type_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint = tiny("llama")
    large = {**checkpoint.weights, "model.norm.weight": Array(np.full(64, 1e5, np.float32))}
    with pytest.raises(OnnxGptError, match=r"model\.norm\.weight") as caught:
        write_checkpoint(tmp_path, dataclasses.replace(checkpoint, weights=large), dtype="F16")
    assert caught.value.code == "weights-overflow"


def test_masks_are_left_out_and_files_go_along(tmp_path: Path) -> None:
    checkpoint = tiny("gpt2")
    mask = NotFloat("transformer.h.0.attn.bias", "BOOL", (1, 1, 8, 8))
    weights = {**checkpoint.weights, mask.name: mask}
    files = {"tokenizer.json": b"\xff any bytes"}
    write_checkpoint(tmp_path, dataclasses.replace(checkpoint, weights=weights, files=files))
    back = hf_directory.load(str(tmp_path))
    assert back.weights.keys() == checkpoint.weights.keys()
    assert back.files == files


def test_weights_that_do_not_fit_are_our_own_mistake() -> None:
    checkpoint = tiny("llama")
    weights = by_role(checkpoint)
    del weights["layers.0.ffn.up.weight"]
    with pytest.raises(ValueError, match=r"layers\.0\.ffn\.up\.weight: missing"):
        stored_weights(describe(checkpoint), weights)
