"""The job: a checkpoint in, a smaller one out that everything else takes, with a report; or one error and
nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from tiny import tiny

import onnx_gpt
from exporter import sources
from exporter.errors import OnnxGptError
from exporter.families import describe, families
from exporter.variants import KEY, sizes_of
from exporter.writing import write_checkpoint
from onnx_gpt.cli import main
from onnx_gpt.pruning.recipe import PruneRecipe, Structures, structures_of
from onnx_gpt.report import Parity

FAST = {"tokens": 128, "windows": 8, "probe": 2}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of every family and token ids to calibrate on, for want of a tokenizer."""
    folder = tmp_path_factory.mktemp("inputs")
    for family in families():
        (folder / family).mkdir()
        write_checkpoint(folder / family, tiny(family))
    np.save(folder / "tokens.npy", np.random.default_rng(1).integers(0, 131, 6000))
    return folder


def prune(inputs: Path, family: str, out: Path, **options: object) -> onnx_gpt.PruneReport:
    given = {"calibration": inputs / "tokens.npy"} | FAST | options
    return onnx_gpt.prune(str(inputs / family), out, **given)


@pytest.mark.parametrize("family", sorted(families()))
def test_zeros_in_every_family(family: str, inputs: Path, tmp_path: Path) -> None:
    report = prune(inputs, family, tmp_path / "out", pattern="2:4", method="wanda")
    kinds = {"attention.q", "attention.k", "attention.v", "attention.o", "ffn.up", "ffn.down"}
    assert kinds <= report.sparsity.keys() <= kinds | {"ffn.gate"}
    assert all(share == pytest.approx(0.5, abs=0.001) for share in report.sparsity.values())
    assert report.after.size.parameters == report.before.size.parameters
    assert report.after.size.compressed < 0.9 * report.before.size.compressed
    assert report.perplexity_ratio == pytest.approx(report.after.perplexity / report.before.perplexity)
    assert "no faster" in report.notes[0] and not report.variant
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(report.json_text())
    _, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_as_much_goes_as_can_where_nearly_all_is_asked_for(inputs: Path, tmp_path: Path) -> None:
    report = prune(inputs, "gpt2", tmp_path / "out", structured="ffn=0.99999")
    assert {layer.ffn for layer in report.layers} == {8}


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma3"])
def test_structures_leave_and_the_result_is_exported_and_proven(
    family: str, inputs: Path, tmp_path: Path
) -> None:
    report = prune(inputs, family, tmp_path / "out", structured="ffn=0.25,heads=0.5")
    left = describe(sources.load(str(tmp_path / "out")))
    whole = describe(sources.load(str(inputs / family)))
    assert [sizes_of(layer) for layer in left.layers] == list(report.layers)
    for now, was in zip(left.layers, whole.layers, strict=True):
        assert now.attention.heads == was.attention.heads // 2
        assert now.ffn.up.weight.shape[0] % 8 == 0
    inner = [layer.ffn.up.weight.shape[0] for layer in whole.layers]
    assert sum(size.ffn for size in report.layers) == pytest.approx(0.75 * sum(inner), abs=4)
    assert report.after.size.parameters < report.before.size.parameters
    assert report.variant == (KEY in sources.load(str(tmp_path / "out")).config)
    bundle = onnx_gpt.optimize(str(tmp_path / "out"), tmp_path / "bundle", tokens=128)
    assert isinstance(bundle.parity, Parity) and bundle.parity.verdict == "pass"
    dense = onnx_gpt.optimize(str(inputs / family), tmp_path / "dense", parity=False)
    assert bundle.files["model.onnx.data"] < dense.files["model.onnx.data"]


def test_uniform_feed_forwards_make_an_ordinary_checkpoint(inputs: Path, tmp_path: Path) -> None:
    report = prune(inputs, "gpt2", tmp_path / "out", structured="ffn=0.25", allocate="uniform")
    assert not report.variant and len({size.ffn for size in report.layers}) == 1
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_channels_leave_and_the_result_is_an_ordinary_checkpoint(
    family: str, inputs: Path, tmp_path: Path
) -> None:
    report = prune(inputs, family, tmp_path / "out", structured="hidden=0.25,ffn=0.25", allocate="uniform")
    left, whole = describe(sources.load(str(tmp_path / "out"))), describe(sources.load(str(inputs / family)))
    assert report.hidden == left.hidden_size == 48 and not report.variant
    now, was = left.layers[0].attention, whole.layers[0].attention
    assert now.head_dim == was.head_dim
    assert now.heads == (
        3 if family in ("gpt2", "gpt_neox") else was.heads
    )  # as many as fit, where none can be said
    _, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    bundle = onnx_gpt.optimize(str(tmp_path / "out"), tmp_path / "bundle", tokens=128)
    assert isinstance(bundle.parity, Parity) and bundle.parity.verdict == "pass"


def test_layers_and_tokens_leave(inputs: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("all good dogs and all bad dogs bark at the gate; " * 300)
    report = onnx_gpt.prune(
        "sample:tiny", tmp_path / "out", structured="layers=0.25,vocab=used", calibration=corpus, **FAST
    )
    left = sources.load(str(tmp_path / "out"))
    assert len(report.dropped) == 1 and len(describe(left).layers) == 3
    assert describe(left).vocab_size == report.vocabulary
    assert "tokenizer.json" in left.files and not report.variant


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_the_same_input_gives_the_same_bytes(family: str, inputs: Path, tmp_path: Path) -> None:
    """Of layers that read the residual stream behind a norm, and of those that read it as it is."""
    for name in ("one", "two"):
        prune(inputs, family, tmp_path / name, sparsity=0.4)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_scores_from_activations_beat_sizes_of_weights_on_a_trained_model(tmp_path: Path) -> None:
    def ratio(name: str, **options: object) -> float:
        text = {} if options.get("method") == "magnitude" else {"windows": 8}
        return onnx_gpt.prune("sample:tiny", tmp_path / name, tokens=512, **text, **options).perplexity_ratio

    magnitude = ratio("a", structured="ffn=0.25", method="magnitude")
    assert ratio("b", structured="ffn=0.25", allocate="uniform") - 1 < 0.4 * (magnitude - 1)
    sparse = ratio("c", pattern="2:4", method="magnitude")
    assert ratio("d", pattern="2:4") < 0.7 * sparse


def test_the_command_prints_one_document(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["prune", str(inputs / "llama"), "-o", str(tmp_path / "out"), "--sparsity", "0.5"]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--method", "magnitude", "--allocate", "uniform", "--tokens", "128", "--json"])
    assert caught.value.code == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "onnx-gpt/prune/1"
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--method", "magnitude", "--allocate", "uniform", "--json"])
    assert caught.value.code == 10


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sparsity": 1.5},
        {"sparsity": 0.5, "method": "magic"},
        {"sparsity": 0.5, "method": "fitted"},
        {"sparsity": 0.5, "allocate": "evenly"},
        {"pattern": "2:4", "allocate": "searched"},
        {"sparsity": 0.5, "structured": "ffn=0.25"},
        {"structured": ""},
        {"structured": "ffn"},
        {"structured": "ffn=1"},
        {"structured": "ffn=nan"},
        {"structured": "ffn=0.2,ffn=0.3"},
        {"structured": "width=0.5"},
        {"structured": "hidden=2"},
        {"structured": "hidden=0.25", "method": "magnitude"},
        {"structured": "layers=1.5"},
        {"structured": "vocab=0.5"},
        {"structured": "vocab=used"},
        {"structured": "ffn=0.25", "method": "wanda"},
        {"structured": "heads=0.25", "method": "magnitude"},
        {"structured": "ffn=0.25", "method": "magnitude", "allocate": "searched"},
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OnnxGptError) as caught:
        PruneRecipe(**options)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.exit) == ("prune-invalid", 2)


def test_structures_are_read() -> None:
    assert structures_of("ffn=0.25, heads=0.5,layers=4") == Structures(0.25, 0.5, 4.0)
    assert structures_of("vocab=used,hidden=0.1") == Structures(vocab=True, hidden=0.1)


@pytest.mark.parametrize("structured", ["layers=2", "heads=0.1", "heads=0.99", "hidden=0.01"])
def test_what_cannot_leave_is_refused_and_nothing_is_left_behind(
    structured: str, inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(OnnxGptError) as caught:
        prune(inputs, "llama", tmp_path / "out", structured=structured)
    assert caught.value.code == "prune-invalid"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("family", "structured", "code"),
    [("gpt2", "hidden=0.25,heads=0.5", "prune-invalid"), ("gemma3", "hidden=0.25", "variant-impossible")],
)
def test_channels_that_a_family_cannot_lose_are_refused(
    family: str, structured: str, code: str, inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(OnnxGptError) as caught:
        prune(inputs, family, tmp_path / "out", structured=structured, allocate="uniform")
    assert caught.value.code == code
    assert not list(tmp_path.iterdir())


def test_text_that_is_measured_on_is_refused(inputs: Path, tmp_path: Path) -> None:
    evaluated = np.random.default_rng(0).integers(0, 131, (3, 64))  # as it is drawn without a tokenizer
    np.save(tmp_path / "tokens.npy", np.tile(evaluated.reshape(-1), 12))
    with pytest.raises(OnnxGptError) as caught:
        prune(inputs, "llama", tmp_path / "out", sparsity=0.5, calibration=tmp_path / "tokens.npy")
    assert caught.value.code == "calibration-overlap"
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.npy"]


def test_a_graph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from exporter.checkpoint import GraphSource

    def opened(uri: str) -> GraphSource:
        raise NotImplementedError

    source = GraphSource("a.onnx", tmp_path / "a.onnx", read=opened)  # type: ignore[arg-type]
    monkeypatch.setattr(sources, "load", lambda uri: source)
    with pytest.raises(OnnxGptError) as caught:
        onnx_gpt.prune("a.onnx", tmp_path / "out", sparsity=0.5)
    assert (caught.value.code, caught.value.exit) == ("prune-needs-checkpoint", 3)


def test_a_pruned_variant_can_be_pruned_again(inputs: Path, tmp_path: Path) -> None:
    prune(inputs, "gpt2", tmp_path / "once", structured="heads=0.25")
    once = sources.load(str(tmp_path / "once"))
    report = onnx_gpt.prune(
        str(tmp_path / "once"), tmp_path / "twice", sparsity=0.5, calibration=inputs / "tokens.npy", **FAST
    )
    twice = sources.load(str(tmp_path / "twice"))
    assert report.variant and describe(twice) == describe(dataclasses.replace(once, weights=twice.weights))
