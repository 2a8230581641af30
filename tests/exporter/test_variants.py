"""Layers with sizes of their own: every family, filled up with zeros they are an ordinary model of the same
function."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import transformers
from tiny import loses_heads, tiny

from exporter.checkpoint import Checkpoint
from exporter.errors import OnnxGptError
from exporter.families import describe, families
from exporter.match import matched
from exporter.resizing import derives_head_size, key_of, resized_config
from exporter.sources import hf_directory
from exporter.variants import KEY, LayerSizes, sizes_of, variant_of, with_sizes
from exporter.weights import Array
from exporter.writing import ordinary, stored_weights, write_checkpoint


def pruned(family: str, sizes: list[LayerSizes], **options: object) -> Checkpoint:
    """A random checkpoint of these sizes; the source has two layers of 4 heads and 96 neurons."""
    source = tiny(family, 1, **options)
    shaped = dataclasses.replace(source, config=resized_config(source, sizes), weights={})
    rng = np.random.default_rng(2)
    drawn = {
        role: Array((rng.standard_normal(part.shape) / part.shape[-1] ** 0.5).astype(np.float32))
        for role, part in describe(shaped).parts()
    }
    return dataclasses.replace(shaped, weights=stored_weights(describe(shaped), drawn))


def sizes_for(family: str, ffn: tuple[int, int], lost: tuple[int, int]) -> list[LayerSizes]:
    """Sizes of two layers; ``lost`` counts KV groups, or heads where all of them are one group."""
    found = []
    for layer, inner, groups in zip(describe(tiny(family)).layers, ffn, lost, strict=True):
        whole = sizes_of(layer)
        alone = whole.kv_heads == 1
        kv_heads = whole.kv_heads - groups * (loses_heads(family) and not alone)
        heads = whole.heads - groups if alone else whole.heads * kv_heads // whole.kv_heads
        found.append(LayerSizes(ffn=inner, heads=heads, kv_heads=kv_heads))
    return found


@pytest.mark.parametrize("lost", [(0, 0), (1, 1), (1, 0)], ids=["ffn", "ffn and heads", "uneven heads"])
@pytest.mark.parametrize("family", sorted(families()))
def test_a_variant_is_written_read_and_the_same_function_as_an_ordinary_model(
    family: str, lost: tuple[int, int], tmp_path: Path
) -> None:
    sizes = sizes_for(family, (64, 48), lost)
    variant = pruned(family, sizes)
    assert [sizes_of(layer) for layer in describe(variant).layers] == sizes
    write_checkpoint(tmp_path, variant)
    with pytest.raises(ValueError, match=KEY):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    back = hf_directory.load(str(tmp_path))
    assert describe(back) == describe(variant)
    whole = ordinary(back)
    assert variant_of(whole.config) is None
    ours, theirs = matched(back)[1], matched(whole)[1]
    for role, weight in theirs.items():
        filled, own = weight.read(), ours[role].read()
        corner = filled[tuple(slice(size) for size in own.shape)]
        np.testing.assert_allclose(corner, own, atol=1e-6)
        assert np.abs(filled).sum() == pytest.approx(np.abs(own).sum(), rel=1e-4), role


@pytest.mark.parametrize("family", sorted(families()))
def test_equal_feed_forwards_are_said_by_the_familys_own_key(family: str, tmp_path: Path) -> None:
    sizes = sizes_for(family, (64, 64), (0, 0))
    checkpoint = pruned(family, sizes)
    assert (KEY in checkpoint.config) == (key_of(checkpoint, "ffn") is None)
    if KEY in checkpoint.config:
        return
    assert ordinary(checkpoint) is checkpoint
    write_checkpoint(tmp_path, checkpoint)
    _, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("family", sorted(families()))
def test_equal_heads_are_said_by_the_familys_own_keys_where_it_has_them(family: str) -> None:
    inner = describe(tiny(family)).layers[0].ffn.up.weight.shape[0]
    checkpoint = pruned(family, sizes_for(family, (inner, inner), (1, 1)))
    assert (KEY in checkpoint.config) == (derives_head_size(checkpoint) and loses_heads(family))


@pytest.mark.parametrize("family", sorted(families()))
def test_a_layer_less_is_an_ordinary_checkpoint_of_what_the_others_were(family: str) -> None:
    variant = {"qwen3": "layer_types", "gemma3": "layer_types", "qwen2": "upper_windows"}.get(
        family, "default"
    )
    source = tiny(family, variant=variant)
    config = resized_config(source, [sizes_of(describe(source).layers[1])], kept=[1])
    (left,) = describe(dataclasses.replace(source, config=config)).layers
    assert left.attention.window == describe(source).layers[1].attention.window
    assert left.attention.rope == describe(source).layers[1].attention.rope
    assert KEY not in config


def test_a_size_is_said_once_whatever_it_was_called() -> None:
    source = tiny("exaone")
    config = {key: value for key, value in source.config.items() if key != "num_hidden_layers"}
    spelled = dataclasses.replace(source, config=config | {"num_layers": 2})
    assert describe(spelled) == describe(source)
    left = resized_config(spelled, [sizes_of(describe(source).layers[1])], kept=[1])
    assert "num_layers" not in left
    assert left["num_hidden_layers"] == len(describe(dataclasses.replace(source, config=left)).layers) == 1


def test_heads_that_a_norm_reads_together_stay() -> None:
    (layer, _) = describe(tiny("olmo2")).layers
    with pytest.raises(OnnxGptError, match="cannot lose heads") as caught:
        with_sizes(layer, LayerSizes(ffn=96, heads=2, kv_heads=1))
    assert caught.value.code == "variant-impossible"


def test_layers_that_depend_on_their_place_are_not_moved() -> None:
    source = tiny("gpt2", variant="scores_by_layer")
    with pytest.raises(OnnxGptError, match="depends on its place") as caught:
        resized_config(source, [sizes_of(describe(source).layers[1])], kept=[1])
    assert caught.value.code == "variant-impossible"


@pytest.mark.parametrize(
    "section",
    [
        None,
        {"model_type": "llama"},
        {"model_type": "llama", "layers": []},
        {"model_type": "llama", "layers": [{"ffn": 96, "heads": 4, "kv_heads": 2}]},
        {"model_type": "llama", "layers": [{"ffn": 97, "heads": 4, "kv_heads": 2}] * 2},
        {"model_type": "llama", "layers": [{"ffn": 96, "heads": 3, "kv_heads": 2}] * 2},
        {"model_type": "llama", "layers": [{"ffn": 0, "heads": 4, "kv_heads": 2}] * 2},
        {"model_type": "llama", "layers": [{"ffn": 96, "heads": 4, "kv_heads": 2, "x": 1}] * 2},
    ],
)
def test_a_section_that_cannot_be_is_refused(section: object) -> None:
    source = tiny("llama")
    with pytest.raises(OnnxGptError) as caught:
        describe(dataclasses.replace(source, config={**source.config, KEY: section}))
    assert caught.value.code == "config-invalid"
