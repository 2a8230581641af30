"""A narrower residual stream: what is left of it, and that nothing changes where nothing was in what went."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from test_pruning_structure import TOKENS, described, logits, nothing
from tiny import tiny

from calibration.pruning.model import Described
from calibration.pruning.structure.hidden import (
    Turn,
    energy_of,
    require_turnable,
    turn_of,
    turned_ends,
    turned_layer,
)
from calibration.pruning.structure.narrowing import narrowed
from exporter.errors import OnnxGptError
from exporter.families import describe, families
from exporter.resizing import resized_config
from exporter.variants import sizes_of, variant_of
from exporter.weights import Array
from exporter.writing import stored_weights, write_checkpoint
from onnx_gpt.pruning.recipe import Structures
from onnx_gpt.pruning.structures import equal_sizes, hidden_left, resolved

IDLE, WRITERS = 16, ("attention.o", "ffn.down")


def turnable(family: str) -> bool:
    try:
        require_turnable(described(tiny(family)).decoder)
    except OnnxGptError:
        return False
    return True


TURNABLE = [family for family in sorted(families()) if turnable(family)]


def turned(model: Described, turn: Turn) -> Described:
    done = turned_ends(model, turn)
    for i, layer in enumerate(done.decoder.layers):
        done = done.with_layer(i, layer, turned_layer(layer, model.layer(i), turn))
    return done


def with_idle_channels(model: Described) -> Described:
    """The last channels of the stream hold what norms take off: zero, or the mean of the others where that goes."""
    weights = dict(model.weights)
    centres = model.decoder.norm.kind == "layer"

    def idle(name: str, axis: int) -> None:
        value = np.moveaxis(weights[name].read().copy(), axis, 0)
        value[-IDLE:] = value[:-IDLE].mean(0) if centres else 0
        weights[name] = Array(np.moveaxis(value, 0, axis))

    for name in ("embedding.weight", "positions.weight"):
        if name in weights:
            idle(name, 1)
    for i in range(len(model.decoder.layers)):
        for name in (f"layers.{i}.{role}.{kind}" for role in WRITERS for kind in ("weight", "bias")):
            if name in weights:
                idle(name, 0)
    if model.decoder.tied:  # else the gains of what is mixed would change the sizes that norms divide by
        weights["norm.weight"] = Array(np.full(model.decoder.hidden_size, 1.25, np.float32))
    return dataclasses.replace(model, weights=weights)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gptj", "llama", "qwen2"])
def test_channels_that_hold_nothing_leave_without_a_trace(family: str, tmp_path: Path) -> None:
    model = with_idle_channels(described(tiny(family)))
    size = model.decoder.hidden_size - IDLE
    turn = turn_of(model, energy_of(model, TOKENS, tmp_path / "energy", nothing), size)
    done = turned(model, turn)
    assert done.decoder.hidden_size == size
    for role, part in done.decoder.parts():
        assert done.weights[role].shape == part.shape, role
    whole = logits(model, tmp_path)
    np.testing.assert_allclose(logits(done, tmp_path), whole, atol=2e-5 * np.abs(whole).max())


@pytest.mark.parametrize(("family", "variant"), [("llama", "tied"), ("gpt_neox", "untied"), ("gpt2", "tied")])
def test_the_fewer_channels_the_larger_the_error_and_fitting_takes_some_of_it(
    family: str, variant: str, tmp_path: Path
) -> None:
    model = described(tiny(family, variant=variant))
    energy = energy_of(model, TOKENS, tmp_path / "energy", nothing)
    whole = logits(model, tmp_path)

    def error(other: Described) -> float:
        return float(np.square(logits(other, tmp_path) - whole).mean())

    wide, narrow = (turn_of(model, energy, size) for size in (56, 40))
    assert error(turned(model, wide)) < error(turned(model, narrow))
    (tmp_path / "fit").mkdir()
    sizes = [sizes_of(layer) for layer in model.decoder.layers]
    fitted = narrowed(model, [0, 1], sizes, TOKENS, tmp_path / "fit", nothing, narrow)
    assert error(fitted) < error(turned(model, narrow))


def test_a_norms_bias_stays_where_nothing_behind_it_has_one(tmp_path: Path) -> None:
    model = described(tiny("gpt_neox", variant="no_biases"))
    energy = energy_of(model, TOKENS, tmp_path / "energy", nothing)
    done = turned(model, turn_of(model, energy, model.decoder.hidden_size))
    whole = logits(model, tmp_path)
    np.testing.assert_allclose(logits(done, tmp_path), whole, atol=2e-5 * np.abs(whole).max())


@pytest.mark.parametrize("family", TURNABLE)
def test_a_family_can_say_its_width_and_transformers_computes_the_same(family: str, tmp_path: Path) -> None:
    source = tiny(family)
    model, wanted = described(source), resolved(source, Structures(hidden=0.5))
    sizes = equal_sizes(model.decoder.layers, wanted)
    width = hidden_left(source, wanted, sizes[0])
    turn = turn_of(model, energy_of(model, TOKENS, tmp_path / "energy", nothing), width)
    (tmp_path / "fit").mkdir()
    done = narrowed(model, [0, 1], sizes, TOKENS, tmp_path / "fit", nothing, turn)
    shaped = dataclasses.replace(source, config=resized_config(source, sizes, hidden=width))
    assert variant_of(shaped.config) is None and describe(shaped).hidden_size == width == 32
    stored = stored_weights(describe(shaped), done.weights)
    (tmp_path / "out").mkdir()
    write_checkpoint(tmp_path / "out", dataclasses.replace(shaped, weights=stored))
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS)).logits.numpy()
    np.testing.assert_allclose(logits(done, tmp_path), expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("family", sorted(set(families()) - set(TURNABLE)))
def test_a_stream_that_cannot_be_turned_is_refused_by_name(family: str) -> None:
    with pytest.raises(OnnxGptError, match=family) as caught:
        require_turnable(described(tiny(family)).decoder)
    assert (caught.value.code, caught.value.exit) == ("variant-impossible", 3)
