"""Every family, in every shape that its configuration can take, is the model that transformers runs.

The canonical graph is run as it is written (ORT's optimizer off) and compared with transformers on random
weights.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from safetensors import safe_open
from tiny import GENERIC, tiny, variants
from transformers.models.gemma3 import modeling_gemma3

from exporter.build import build
from exporter.checkpoint import Checkpoint, ModuleSource
from exporter.decoder import Decoder, Layer
from exporter.errors import Exit, OnnxGptError
from exporter.families import describe, families
from exporter.match import matched
from exporter.reference import Reference
from exporter.sources.hf_directory import with_base_prefix
from exporter.weights import Array, Unread, Weight

TOLERANCE = 1e-5
"""Of the largest |logit|. Float32 orders of summation differ by a few 1e-7."""
LENGTH = 17
EVERY = pytest.mark.parametrize(("family", "variant"), list(variants()))


class Graph:
    """A canonical graph in onnxruntime, run step by step with its growing cache."""

    def __init__(self, decoder: Decoder, weights: Mapping[str, Weight]) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        model = ir.to_proto(build(decoder, weights)).SerializeToString()
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.layers = [layer.attention for layer in decoder.layers]

    def logits(
        self,
        tokens: np.ndarray,
        mask: np.ndarray | None = None,
        steps: tuple[int, ...] = (),
        keep: int | None = None,
    ) -> np.ndarray:
        """Logits ``[B, S, V]`` of tokens ``[B, S]``, fed in runs of ``steps`` tokens (or all at once)."""
        mask = np.ones_like(tokens) if mask is None else mask
        cache = {
            f"past_key_values.{i}.{which}": np.zeros((len(tokens), a.kv_heads, 0, a.head_dim), np.float32)
            for i, a in enumerate(self.layers)
            for which in ("key", "value")
        }
        out, start = [], 0
        for step in steps or (tokens.shape[1],):
            feeds = {"input_ids": tokens[:, start : start + step], "attention_mask": mask[:, : start + step]}
            if keep is not None:
                feeds["num_logits_to_keep"] = np.array(keep, np.int64)
            logits, *present = self.session.run(None, feeds | cache)
            cache = dict(zip(cache, present, strict=True))
            out.append(logits)
            start += step
        return np.concatenate(out, axis=1)


@functools.cache
def graph_and_reference(family: str, variant: str) -> tuple[Graph, Reference]:
    checkpoint = tiny(family, variant=variant)
    return Graph(*matched(checkpoint)), Reference(checkpoint)


def random_tokens(batch: int, length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(length).integers(3, 131, (batch, length))


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference, as a share of the largest |logit|."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@EVERY
@pytest.mark.parametrize("length", [1, 2, 7, LENGTH])
def test_prefill(family: str, variant: str, length: int) -> None:
    graph, reference = graph_and_reference(family, variant)
    tokens = random_tokens(2, length)
    assert error(graph.logits(tokens), reference.logits(tokens)) < TOLERANCE


@EVERY
@pytest.mark.parametrize("steps", [(1,) * LENGTH, (7, 9, 1)], ids=["decode", "chunks"])
def test_steps_with_a_cache(family: str, variant: str, steps: tuple[int, ...]) -> None:
    graph, reference = graph_and_reference(family, variant)
    tokens = random_tokens(2)
    assert error(graph.logits(tokens, steps=steps), reference.logits(tokens)) < TOLERANCE


@EVERY
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_then_decode(family: str, variant: str, side: str) -> None:
    """Prompts of 13, 8 and 1 tokens, continued by 4 tokens: right padding leaves holes in the mask."""
    graph, reference = graph_and_reference(family, variant)
    tokens, mask = random_tokens(3), np.ones((3, LENGTH), np.int64)
    for row, real in enumerate((13, 8, 1)):
        mask[row, slice(0, 13 - real) if side == "left" else slice(real, 13)] = 0
    theirs = reference.logits(tokens, mask)
    for steps in ((13, 1, 3), (LENGTH,)):
        ours = graph.logits(tokens, mask, steps)
        assert error(ours[mask == 1], theirs[mask == 1]) < TOLERANCE


@EVERY
@pytest.mark.parametrize("keep", [0, 1, 3])
def test_logits_to_keep(family: str, variant: str, keep: int) -> None:
    graph, _ = graph_and_reference(family, variant)
    tokens = random_tokens(2, 7)
    np.testing.assert_allclose(
        graph.logits(tokens, keep=keep), graph.logits(tokens)[:, -keep:], rtol=0, atol=TOLERANCE
    )


def test_every_kind_of_variant_is_met() -> None:
    """A key that transformers renames would take its variants away unseen."""
    met = set(variants())
    assert {variant for _, variant in met} >= GENERIC.keys()
    assert {(family, variant) for family in families() for variant in ("default", "tied", "untied")} <= met


# The proof bites --------------------------------------------------------------------------------------------

FAMILIES = pytest.mark.parametrize("family", list(families()))


@FAMILIES
def test_every_tensor_is_proven(family: str) -> None:
    """A tensor that is dropped, or whose rows are in the wrong order, shows in the logits."""
    checkpoint = tiny(family, num_hidden_layers=1)
    decoder, weights = matched(checkpoint)
    tokens = random_tokens(1)
    theirs = Reference(checkpoint).logits(tokens)
    assert error(Graph(decoder, weights).logits(tokens), theirs) < TOLERANCE
    for role, weight in weights.items():
        if role.endswith("attention.k.bias") and decoder.layers[0].attention.rope is None:
            continue  # moves all scores of a query alike, which softmax does not see
        array = weight.read()
        wrong = Array(np.roll(array, 1, axis=0) if array.ndim == 2 else np.ones_like(array))
        assert error(Graph(decoder, weights | {role: wrong}).logits(tokens), theirs) > 100 * TOLERANCE, role


def of_layers(change: Callable[[Layer], Layer]) -> Callable[[Decoder], Decoder]:
    return lambda decoder: dataclasses.replace(
        decoder, layers=tuple(change(layer) for layer in decoder.layers)
    )


def of_attention(change: Callable[[Any], dict[str, Any]]) -> Callable[[Decoder], Decoder]:
    return of_layers(
        lambda layer: dataclasses.replace(
            layer, attention=dataclasses.replace(layer.attention, **change(layer.attention))
        )
    )


def other_epsilon(decoder: Decoder) -> Decoder:
    return dataclasses.replace(
        decoder, norm=dataclasses.replace(decoder.norm, epsilon=decoder.norm.epsilon + 0.01)
    )


def swapped_gate(layer: Layer) -> Layer:
    ffn = layer.ffn
    if ffn.gate is None:
        return layer
    return dataclasses.replace(layer, ffn=dataclasses.replace(ffn, gate=ffn.up, up=ffn.gate))


def other_activation(layer: Layer) -> Layer:
    others = {"gelu": "gelu_tanh", "gelu_tanh": "gelu", "relu2": "relu"}
    other = others.get(layer.ffn.activation, "gelu")
    return dataclasses.replace(layer, ffn=dataclasses.replace(layer.ffn, activation=other))


def slower_rotation(attention: Any) -> dict[str, Any]:
    if attention.rope is None:
        return {}
    frequencies = tuple(0.9 * f for f in attention.rope.frequencies)
    return {"rope": dataclasses.replace(attention.rope, frequencies=frequencies)}


def louder_rotation(attention: Any) -> dict[str, Any]:
    if attention.rope is None:
        return {}
    return {"rope": dataclasses.replace(attention.rope, factor=1.1 * attention.rope.factor)}


def wider_window(attention: Any) -> dict[str, Any]:
    return {"window": attention.window and attention.window + 1}


def rotated_elsewhere(attention: Any) -> dict[str, Any]:
    """Before the norms of q and k instead of behind them, or the other way; a norm without a gain does not see it."""
    if attention.rope is None or attention.q_norm is None or attention.q_norm.weight is None:
        return {}
    return {"rotates_first": not attention.rotates_first}


def steeper(attention: Any) -> dict[str, Any]:
    if attention.alibi is None:
        return {}
    slopes = tuple(1.1 * slope for slope in attention.alibi.slopes)
    return {"alibi": dataclasses.replace(attention.alibi, slopes=slopes)}


MUTATIONS: Mapping[str, Callable[[Decoder], Decoder]] = {
    "epsilon": other_epsilon,
    "gate_and_up_swapped": of_layers(swapped_gate),
    "activation": of_layers(other_activation),
    "parallel": of_layers(lambda layer: dataclasses.replace(layer, parallel=not layer.parallel)),
    "scale": of_attention(lambda attention: {"scale": 1.1 * attention.scale}),
    "rotation": of_attention(slower_rotation),
    "rotation_factor": of_attention(louder_rotation),
    "rotated_elsewhere": of_attention(rotated_elsewhere),
    "bias_by_position": of_attention(steeper),
    "window": of_attention(wider_window),
    "no_window": of_attention(lambda attention: {"window": None}),
    "no_embedding_scale": lambda decoder: dataclasses.replace(decoder, embedding_scale=1.0),
    "no_softcap": lambda decoder: dataclasses.replace(decoder, logit_softcap=0.0),
}
BITING = {
    "gemma3": "softcap",
    "qwen2": "upper_windows",
    "qwen3": "layer_types",
    "mistral": "window",
    "phi3": "window",
    "starcoder2": "window",
    "cohere2": "layer_types",
    "olmo3": "layer_types",
    "exaone4": "window",
    "ministral": "window",
    "vaultgemma": "layer_types",
    "cwm": "layer_types",
    "ministral3": "window",
}


@FAMILIES
def test_every_choice_is_proven(family: str) -> None:
    """Each thing that a description says, said otherwise, shows in the logits."""
    overrides = {"sliding_window": 5} if family in ("gemma2", "gemma3") else {}
    checkpoint = tiny(family, variant=BITING.get(family, "default"), **overrides)
    decoder, weights = matched(checkpoint)
    tokens = random_tokens(1)
    theirs = Reference(checkpoint).logits(tokens)
    seen = 0
    for name, mutate in MUTATIONS.items():
        mutant = mutate(decoder)
        if mutant == decoder:
            continue
        roles = {role: weights[role_of(decoder, part)] for role, part in mutant.parts()}
        assert error(Graph(mutant, roles).logits(tokens), theirs) > 3 * TOLERANCE, name
        seen += 1
    assert seen >= 4


def role_of(decoder: Decoder, part: Any) -> str:
    return next(role for role, candidate in decoder.parts() if candidate == part)


def test_attention_softcap(monkeypatch: pytest.MonkeyPatch) -> None:
    """No family asks for it, since transformers' Gemma 3 never applies its own. Its eager attention can."""
    eager = modeling_gemma3.eager_attention_forward
    monkeypatch.setattr(modeling_gemma3, "eager_attention_forward", functools.partial(eager, softcap=0.5))
    checkpoint = tiny("gemma3", sliding_window=5)
    decoder, weights = matched(checkpoint)
    capped = of_attention(lambda _: {"softcap": 0.5})(decoder)
    reference, tokens = Reference(checkpoint), random_tokens(2)
    reference.model.set_attn_implementation("eager")
    theirs = reference.logits(tokens)
    assert error(Graph(capped, weights).logits(tokens), theirs) < TOLERANCE
    assert error(Graph(decoder, weights).logits(tokens), theirs) > 100 * TOLERANCE


# What building costs ----------------------------------------------------------------------------------------


@FAMILIES
def test_building_reads_no_weight(family: str) -> None:
    """But numbers that nobody learns, which have to be the family's."""
    checkpoint = tiny(family)
    constants = dict(describe(checkpoint).constants)
    unread = {
        name: weight if name in constants else Unread(weight.shape)
        for name, weight in checkpoint.weights.items()
    }
    decoder, weights = matched(dataclasses.replace(checkpoint, weights=unread))
    model = build(decoder, weights)
    assert len(list(model.graph)) > 10


@FAMILIES
def test_graphs_are_valid_and_nodes_linear_in_layers(family: str) -> None:
    counts = []
    for layers in (4, 8, 12):  # families whose layers are of several kinds take turns of at most four here
        checkpoint = tiny(family, num_hidden_layers=layers)
        model = build(*matched(checkpoint))
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        counts.append(len(list(model.graph)))
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0


@FAMILIES
@pytest.mark.parametrize("tied", [False, True])
def test_names_and_keys_are_those_that_transformers_writes(family: str, tied: bool, tmp_path: Path) -> None:
    checkpoint = tiny(family, tie_word_embeddings=tied)
    Reference(checkpoint).model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        written = {name: Array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - no dict
    _, ours = matched(checkpoint)
    _, theirs = matched(Checkpoint("written", config, written))
    for role, weight in ours.items():
        np.testing.assert_array_equal(weight.read(), theirs[role].read(), role)


@pytest.mark.parametrize(
    ("family", "strip", "buffers"),
    [
        ("gpt2", "transformer.", ["h.0.attn.bias", "h.1.attn.masked_bias"]),
        ("gpt2", "", ["transformer.h.0.attn.bias"]),
        (
            "gpt_neox",
            "",
            [f"gpt_neox.layers.0.attention.{n}" for n in ("bias", "masked_bias", "rotary_emb.inv_freq")],
        ),
        ("gptj", "", ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"]),
        (
            "gpt_neo",
            "",
            ["transformer.h.0.attn.attention.bias", "transformer.h.1.attn.attention.masked_bias"],
        ),
        ("codegen", "", ["transformer.h.0.attn.causal_mask", "transformer.h.1.attn.masked_bias"]),
        ("llama", "", ["model.layers.0.self_attn.rotary_emb.inv_freq"]),
        ("falcon", "", ["transformer.h.0.self_attention.rotary_emb.inv_freq"]),
        ("gpt_neox_japanese", "", ["gpt_neox_japanese.layers.0.attention.rotary_emb.inv_freq"]),
        ("xglm", "", ["model.embed_positions.weights"]),
        ("bloom", "transformer.", []),
        ("opt", "model.", []),
    ],
)
def test_files_of_the_hub_that_name_tensors_otherwise(family: str, strip: str, buffers: list[str]) -> None:
    """OpenAI's GPT-2 and Meta's OPT leave a prefix out; old files hold masks and rotary tables."""
    checkpoint = tiny(family)
    named = {name.removeprefix(strip): weight for name, weight in checkpoint.weights.items()}
    stored = named | {name: Array(np.ones(3)) for name in buffers}
    old = with_base_prefix(dataclasses.replace(checkpoint, weights=stored))
    tokens = random_tokens(1, 5)
    theirs = Reference(checkpoint).logits(tokens)
    assert error(Graph(*matched(old)).logits(tokens), theirs) < TOLERANCE
    np.testing.assert_array_equal(Reference(old).logits(tokens), theirs)


@FAMILIES
def test_a_checkpoint_of_the_base_model_has_the_same_tensors(family: str) -> None:
    checkpoint = tiny(family)
    prefix = describe(checkpoint).embedding.name.split(".")[0] + "."
    bare = {name.removeprefix(prefix): weight for name, weight in checkpoint.weights.items()}
    assert bare.keys() != checkpoint.weights.keys()
    assert with_base_prefix(dataclasses.replace(checkpoint, weights=bare)).weights == checkpoint.weights


@FAMILIES
def test_weights_that_do_not_fit_are_all_listed(family: str) -> None:
    """By the description and by the reference alike."""
    checkpoint = tiny(family)
    missing, misshaped = list(checkpoint.weights)[-3:-1]
    weights = {name: weight for name, weight in checkpoint.weights.items() if name != missing}
    weights |= {misshaped: Array(np.ones((3, 5), np.float32)), "left.over": Array(np.ones(2, np.float32))}
    broken = dataclasses.replace(checkpoint, weights=weights)
    for check in (matched, Reference):
        with pytest.raises(OnnxGptError) as caught:
            check(broken)
        assert (caught.value.code, caught.value.exit) == ("weights-mismatch", Exit.REJECTED)
        kinds = [f"missing: {missing} ", f"shape: {misshaped} is [3, 5]", "unused: left.over "]
        assert len(caught.value.details) == 3
        assert all(any(detail.startswith(kind) for detail in caught.value.details) for kind in kinds)


def test_a_constant_of_another_value_is_refused() -> None:
    """Nobody learns it, so the graph has the family's."""
    checkpoint = tiny("apertus")
    name = "model.layers.1.mlp.act_fn.beta"
    other = dataclasses.replace(checkpoint, weights={**checkpoint.weights, name: Array(np.array(0.25))})
    with pytest.raises(OnnxGptError) as caught:
        matched(other)
    assert caught.value.code == "weights-mismatch"
    assert caught.value.details == (f"value: {name} is 0.25, and 0.5 in every such model",)


def test_a_tied_head_that_differs_from_the_embedding_is_no_reference() -> None:
    checkpoint = tiny("llama", tie_word_embeddings=True)
    table = checkpoint.weights["model.embed_tokens.weight"]
    same = dataclasses.replace(checkpoint, weights={**checkpoint.weights, "lm_head.weight": table})
    tokens = random_tokens(1, 5)
    np.testing.assert_array_equal(Reference(same).logits(tokens), Reference(checkpoint).logits(tokens))
    other = Array(table.read() + 1)
    with pytest.raises(OnnxGptError) as caught:
        Reference(dataclasses.replace(checkpoint, weights={**checkpoint.weights, "lm_head.weight": other}))
    assert caught.value.details[0].startswith("tied: lm_head.weight")


def test_without_torch_the_reference_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny("llama")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(OnnxGptError) as caught:
        Reference(checkpoint)
    assert (caught.value.code, caught.value.exit) == ("reference-missing", Exit.ENVIRONMENT)
    assert "onnx-gpt[reference]" in caught.value.remedy


# The reference itself ---------------------------------------------------------------------------------------


@FAMILIES
def test_greedy_is_the_argmax_of_each_step(family: str) -> None:
    reference, tokens = Reference(tiny(family)), list(random_tokens(1, 5)[0])
    continued = reference.greedy(np.array(tokens), 6)
    for token in continued:
        assert token == reference.logits(np.array([tokens]))[0, -1].argmax()
        tokens.append(token)


@FAMILIES
def test_reference_ends_no_continuation_early(family: str) -> None:
    """The end token is one token among others: all of them together would stop at the first."""
    reference = Reference(tiny(family, eos_token_id=list(range(131))))
    assert len(reference.greedy(random_tokens(1, 5)[0], 4)) == 4


def test_a_reference_in_double_precision_is_itself_again() -> None:
    reference, tokens = Reference(tiny("xglm")), random_tokens(1, 5)
    once = reference.logits(tokens)
    (doubled,) = [reference.logits(tokens) for _ in reference.variants()]
    assert 0 < error(doubled, once) < TOLERANCE
    np.testing.assert_array_equal(reference.logits(tokens), once)
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_reference_is_float32_whatever_the_checkpoint_was_saved_as(key: str) -> None:
    checkpoint = tiny("gemma3")
    config = {name: value for name, value in checkpoint.config.items() if name != "dtype"} | {key: "bfloat16"}
    saved, tokens = dataclasses.replace(checkpoint, config=config), random_tokens(1, 5)
    np.testing.assert_array_equal(Reference(saved).logits(tokens), Reference(checkpoint).logits(tokens))


@pytest.mark.parametrize("wrapped", [False, True])
def test_reference_of_a_module(wrapped: bool) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Embedding(131, 8), torch.nn.Linear(8, 131))
    reference = Reference(ModuleSource("module:test:module", lambda: module) if wrapped else module)
    tokens = random_tokens(2, 5)
    np.testing.assert_array_equal(reference.logits(tokens), module(torch.from_numpy(tokens)).detach().numpy())
    assert reference.greedy(tokens[0], 2)[0] == reference.logits(tokens[:1])[0, -1].argmax()
