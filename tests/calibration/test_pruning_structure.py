"""Structures: what leaves, how what is left is fitted, and that descriptions, weights and graphs shrink alike."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from calibration.pruning.chain import Chain
from calibration.pruning.model import ATTENTION, OUT, Described, Runner
from calibration.pruning.structure import magnitude
from calibration.pruning.structure.channels import fitted, removal
from calibration.pruning.structure.dropping import dropped
from calibration.pruning.structure.narrowing import narrowed, units_of
from calibration.pruning.structure.vocabulary import kept_tokens, remapped, remapped_ids, with_vocabulary
from calibration.statistics.regression import Regression
from exporter.checkpoint import Checkpoint
from exporter.errors import OnnxGptError
from exporter.families import families
from exporter.match import matched
from exporter.variants import LayerSizes, sizes_of
from exporter.weights import Array

TOKENS = np.random.default_rng(0).integers(0, 131, (6, 40))


def described(checkpoint: Checkpoint) -> Described:
    return Described(*matched(checkpoint))


def logits(model: Described, folder: Path) -> np.ndarray:
    """``[N, S, V]``, by the parts of the decoder one after the other."""
    runner = Runner(folder, TOKENS.shape[1])
    x = runner.embedding(model).run(TOKENS)[OUT]
    for i in range(len(model.decoder.layers)):
        x = runner.layer(model, i).run(TOKENS, x)[OUT]
    found: np.ndarray = runner.head(model).run(TOKENS, x)["logits"]
    return found


def nothing(done: int, total: int, what: str) -> None: ...


# Channels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 8])
def test_the_price_of_a_removal_is_the_error_of_the_best_map_without_it(group: int) -> None:
    random = np.random.default_rng(0)
    inputs = random.standard_normal((4000, 64)) @ (np.eye(64) + 0.05 * random.standard_normal((64, 64)))
    hessian, weight = inputs.T @ inputs / 4000, random.standard_normal((24, 64))
    units = 64 // group
    order = removal(weight, hessian, group, units // 2, "a map")

    def error(kept: np.ndarray) -> float:
        columns = (kept[:, None] * group + np.arange(group)).reshape(-1)
        rest = weight.copy()
        rest[:, columns] -= fitted(hessian, weight @ hessian, columns, weight[:, columns], 0.0)
        return float(np.einsum("rk,kl,rl->", rest, hessian, rest))

    for gone in (1, units // 4, units // 2):
        ours = error(order.kept(units, gone))
        drawn = np.mean([error(np.sort(random.permutation(units)[gone:])) for _ in range(20)])
        assert ours == pytest.approx(order.cost[gone], rel=0.1)  # damping is a little of it
        assert ours < drawn
    assert len(set(order.order.tolist())) == units // 2
    assert (np.diff(order.cost) >= 0).all()


@pytest.mark.parametrize("bias", [False, True])
def test_a_regression_is_that_of_everything_at_once(bias: bool) -> None:
    random = np.random.default_rng(1)
    x = random.standard_normal((90, 5)).astype(np.float32) + 2
    t = (x @ random.standard_normal((5, 3)) + 7).astype(np.float32)
    parts = [Regression.empty(3, 5).add(t[a : a + 30], x[a : a + 30]) for a in (0, 30, 60)]
    moments = parts[0].merge(parts[1]).merge(parts[2]).finish(bias=bias)
    whole = Regression.empty(3, 5).add(t, x).finish(bias=bias)
    for one, other in zip(dataclasses.astuple(moments), dataclasses.astuple(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)
    fit = fitted(moments.inputs, moments.cross, np.arange(5), np.zeros((3, 5)), 0.0)
    offset = moments.target_mean - fit @ moments.input_mean if bias else 0
    padded = np.column_stack([x, np.ones(90)]) if bias else x
    expected = np.linalg.lstsq(padded, t, rcond=None)[0]
    np.testing.assert_allclose(fit, expected[:5].T, atol=1e-2)
    if bias:
        np.testing.assert_allclose(offset, expected[5], rtol=1e-2)


# Layers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(families()))
def test_a_chain_of_layers_is_the_whole_model(family: str, tmp_path: Path) -> None:
    model = described(tiny(family))
    runner = Runner(tmp_path, TOKENS.shape[1])
    chain = Chain(model, runner, TOKENS[:2])
    assert chain.damage({}) == pytest.approx(0, abs=1e-9)
    without = logits(model.without([1]), tmp_path)[:2]
    whole = logits(model, tmp_path)[:2]
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (whole, without))
    assert chain.damage({1: None}) == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-3)
    assert len(chain.influence) == 2 and min(chain.influence) > 0


def test_the_layer_that_does_nothing_goes_first(tmp_path: Path) -> None:
    model = described(tiny("llama", num_hidden_layers=4))
    quiet = {
        name: Array(model.layer(2)[name].read() * 1e-3) for name in ("attention.o.weight", "ffn.down.weight")
    }
    model = model.with_layer(2, model.decoder.layers[2], quiet)
    chain = Chain(model, Runner(tmp_path, 40), TOKENS[:2])
    gone = dropped(chain, 2, nothing)
    assert gone[0] == 2 and len(set(gone)) == 2


# Narrowing ------------------------------------------------------------------------------------------------


def with_idle_parts(family: str) -> Described:
    """A decoder of two layers whose last 32 neurons and whose last heads that leave together have no influence."""
    model = described(tiny(family))
    for i, layer in enumerate(model.decoder.layers):
        down, o = (model.layer(i)[f"{name}.weight"].read().copy() for name in ("ffn.down", "attention.o"))
        down[:, -32:] = 0
        o[:, -units_of(layer, ATTENTION)[1] :] = 0
        model = model.with_layer(i, layer, {"ffn.down.weight": Array(down), "attention.o.weight": Array(o)})
    return model


def smaller(model: Described, groups: int) -> list[LayerSizes]:
    """Without 32 neurons, and where heads can leave without some groups of those that leave together."""
    found = []
    for layer in model.decoder.layers:
        size, (count, _) = sizes_of(layer), units_of(layer, ATTENTION)
        left = count - groups * (not layer.attention.keeps_heads)
        kv_heads = max(1, size.kv_heads * left // count)
        found.append(LayerSizes(ffn=size.ffn - 32, heads=size.heads // count * left, kv_heads=kv_heads))
    return found


@pytest.mark.parametrize("family", sorted(families()))
def test_parts_without_influence_leave_without_a_trace(family: str, tmp_path: Path) -> None:
    model = with_idle_parts(family)
    sizes = smaller(model, 1)
    done = narrowed(model, [0, 1], sizes, TOKENS, tmp_path, nothing)
    assert [sizes_of(layer) for layer in done.decoder.layers] == sizes
    for role, part in done.decoder.parts():
        assert done.weights[role].shape == part.shape, role
    np.testing.assert_allclose(logits(done, tmp_path), logits(model, tmp_path), atol=2e-2)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma3"])
def test_what_is_fitted_is_nearer_than_what_has_small_weights(family: str, tmp_path: Path) -> None:
    model = described(tiny(family))
    sizes = smaller(model, 0)
    whole = logits(model, tmp_path)
    ours = logits(narrowed(model, [0, 1], sizes, TOKENS, tmp_path, nothing), tmp_path)
    theirs = logits(magnitude.narrowed(model, sizes), tmp_path)
    assert np.square(ours - whole).mean() < 0.8 * np.square(theirs - whole).mean()


def test_a_layer_is_fitted_to_what_came_after_those_that_are_gone(tmp_path: Path) -> None:
    model = described(tiny("llama", num_hidden_layers=3))
    sizes = [sizes_of(model.decoder.layers[0])] * 2
    whole = logits(model, tmp_path)
    ours = logits(narrowed(model, [0, 2], sizes, TOKENS, tmp_path, nothing), tmp_path)
    theirs = logits(model.without([1]), tmp_path)
    assert np.square(ours - whole).mean() < 0.9 * np.square(theirs - whole).mean()


# Vocabulary -----------------------------------------------------------------------------------------------

CORPUS = [f"the {word} sat on the {other} mat" for word in ("cat", "dog", "crow") for other in ("red", "wet")]


def tokenizer(kind: str) -> Tokenizer:
    """Trained on more than the corpus, so that some of its tokens are of no use to it."""
    text = [*CORPUS, "quantization of unrelated vocabularies", "zebras jump quickly over lazy quizzes"] * 4
    model, trainer = {
        "BPE": (models.BPE(unk_token="<unk>"), trainers.BpeTrainer),
        "Unigram": (models.Unigram(), trainers.UnigramTrainer),
        "WordLevel": (models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer),
        "WordPiece": (models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer),
    }[kind]
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    options = {"unk_token": "<unk>"} if kind == "Unigram" else {}
    made.train_from_iterator(
        text, trainer(vocab_size=120, special_tokens=["<unk>", "<s>"], show_progress=False, **options)
    )
    return made


@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordLevel", "WordPiece"])
def test_a_smaller_tokenizer_cuts_the_corpus_into_the_same_tokens(kind: str) -> None:
    whole = tokenizer(kind)
    document = whole.to_str().encode()
    used = {i for line in CORPUS for i in whole.encode(line).ids}
    size = whole.get_vocab_size()
    kept = kept_tokens(document, {"bos_token_id": 1, "eos_token_id": [1]}, used, size, 1)
    assert len(kept.ids) < size
    small = Tokenizer.from_str(remapped({"tokenizer.json": document}, kept)["tokenizer.json"].decode())
    assert small.get_vocab_size() == len(kept.ids)
    for line in CORPUS:
        assert small.encode(line).tokens == whole.encode(line).tokens
        assert [int(kept.ids[i]) for i in small.encode(line).ids] == whole.encode(line).ids
    assert small.token_to_id("<s>") == kept.new(1)
    assert "<unk>" not in small.encode("quantization").tokens or kind in ("WordLevel", "WordPiece")


def test_the_number_of_tokens_is_made_a_multiple_and_never_more_than_there_are() -> None:
    whole = tokenizer("BPE")
    document, size = whole.to_str().encode(), whole.get_vocab_size()
    for multiple in (1, 8, 64):
        kept = kept_tokens(document, {}, [], size, multiple)
        assert len(kept.ids) % multiple == 0 or len(kept.ids) == size
        assert (np.diff(kept.ids) > 0).all()


@pytest.mark.parametrize("family", sorted(families()))
def test_logits_of_kept_tokens_are_what_they_were(family: str, tmp_path: Path) -> None:
    model = described(tiny(family))
    ids = np.unique(np.concatenate([np.unique(TOKENS), [130]]))
    kept = kept_tokens(plain_tokenizer(131), {}, ids[: len(ids) // 2], 131, 8)
    small = with_vocabulary(model, kept)
    tokens = kept.ids[np.random.default_rng(3).integers(0, len(kept.ids), (2, 12))]
    runner = Runner(tmp_path, 12)

    def run(one: Described, x: np.ndarray) -> np.ndarray:
        y = runner.embedding(one).run(x)[OUT]
        for i in range(2):
            y = runner.layer(one, i).run(x, y)[OUT]
        found: np.ndarray = runner.head(one).run(x, y)["logits"]
        return found

    new = np.searchsorted(kept.ids, tokens)
    np.testing.assert_allclose(run(small, new), run(model, tokens)[..., kept.ids], atol=1e-5)


def plain_tokenizer(size: int) -> bytes:
    """A tokenizer of words without rules."""
    vocab = {f"w{i:03}": i for i in range(size)}
    return json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": vocab}}).encode()


def test_ids_are_renumbered_wherever_they_stand() -> None:
    kept = kept_tokens(plain_tokenizer(20), {"eos_token_id": [7, 9], "pad_token_id": -1}, [3], 20, 1)
    assert kept.ids.tolist() == [3, 7, 9]
    config = {
        "eos_token_id": [7, 9],
        "pad_token_id": -1,
        "bos_token_id": None,
        "suppress_tokens": [3],
        "n": 7,
    }
    assert remapped_ids(config, kept) == config | {"eos_token_id": [1, 2], "suppress_tokens": [0]}
    document = json.loads(plain_tokenizer(20))
    document["added_tokens"] = [{"id": 7, "content": "w007", "special": True}]
    document["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {
                "type": "TemplateProcessing",
                "special_tokens": {"w007": {"id": "w007", "ids": [7], "tokens": ["w007"]}},
            },
            {"type": "RobertaProcessing", "sep": ["w009", 9], "cls": ["w003", 3]},
        ],
    }
    files = {
        "tokenizer.json": json.dumps(document).encode(),
        "tokenizer_config.json": json.dumps({"added_tokens_decoder": {"7": {"content": "w007"}}}).encode(),
        "generation_config.json": json.dumps({"bos_token_id": 3, "top_k": 9}).encode(),
        "chat_template.jinja": b"as it is",
    }
    changed = remapped(files, kept)
    made = json.loads(changed["tokenizer.json"])
    assert made["added_tokens"][0]["id"] == 1
    template, roberta = made["post_processor"]["processors"]
    assert template["special_tokens"]["w007"]["ids"] == [1]
    assert (roberta["sep"], roberta["cls"]) == (["w009", 2], ["w003", 0])
    assert json.loads(changed["tokenizer_config.json"])["added_tokens_decoder"] == {"1": {"content": "w007"}}
    assert json.loads(changed["generation_config.json"]) == {"bos_token_id": 0, "top_k": 9}
    assert changed["chat_template.jinja"] == b"as it is"


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (b"{", "tokenizer-invalid"),
        (b"[]", "tokenizer-invalid"),
        (b'{"model": {"type": "Magic", "vocab": {}}}', "vocabulary-unknown"),
        (b'{"model": {"type": "WordLevel", "vocab": {"a": 99}}}', "tokenizer-invalid"),
    ],
)
def test_tokenizers_that_cannot_be_cut_are_refused(document: bytes, code: str) -> None:
    with pytest.raises(OnnxGptError) as caught:
        kept_tokens(document, {}, [99], 20, 1)
    assert caught.value.code == code
