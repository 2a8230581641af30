"""The bench measures what it says, and through the public runner."""

import dataclasses
import json

import pytest
from tiny_decoders import save_bundle

from exporter.errors import Exit, OnnxGptError
from onnx_gpt.cli import main
from onnx_gpt.generation.generator import Generator
from onnx_gpt.generation.measuring import Spread, bench


@pytest.mark.parametrize("kind", ["shared", "growing", "none"])
def test_every_kind_of_bundle_is_measured(tmp_path, kind):
    result = bench(
        save_bundle(tmp_path, kind), prompt_tokens=20, new_tokens=5, context=30, repeats=3, threads=1
    )
    assert (result.cache, result.threads, result.context) == (kind, 1, 30)
    assert result.load_seconds > 0
    assert result.peak_rss_bytes > 10_000_000
    for spread in (
        result.prefill_tokens_per_second,
        result.first_token_seconds,
        result.decode_tokens_per_second,
    ):
        assert 0 < spread.min <= spread.median <= spread.max
    # The first token comes after the prefill, in the same round.
    assert result.first_token_seconds.min > 20 / result.prefill_tokens_per_second.max
    json.dumps(dataclasses.asdict(result))


@pytest.mark.parametrize("context", [12, 40])
def test_what_is_timed_is_what_was_asked_for(tmp_path, monkeypatch, context):
    runs = []
    prefill = Generator.prefill

    def counted(self, tokens, **settings):
        runs.append((len(self.session.tokens), len(tokens)))
        return prefill(self, tokens, **settings)

    monkeypatch.setattr(Generator, "prefill", counted)
    bench(save_bundle(tmp_path), prompt_tokens=12, new_tokens=3, context=context, repeats=2, threads=1)
    before = [(0, 12)] if context == 12 else [(0, 12), (0, context)]
    assert runs == (before + [(context + i, 1) for i in range(3)]) * 3


def test_a_spread():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(median=2.0, min=1.0, max=3.0)


@pytest.mark.parametrize("wrong", [{"prompt_tokens": 0}, {"new_tokens": 0}, {"context": 0}, {"repeats": 0}])
def test_numbers_that_mean_nothing(tmp_path, wrong):
    with pytest.raises(OnnxGptError) as error:
        bench(save_bundle(tmp_path), **wrong)
    assert (error.value.code, error.value.exit) == ("bench-invalid", Exit.USAGE)


def test_a_context_that_the_model_does_not_have(tmp_path):
    with pytest.raises(OnnxGptError, match="prompt-too-long"):
        bench(save_bundle(tmp_path), context=10**5, repeats=1)


def test_a_recipe_that_is_none_is_said_before_anything_is_timed(tmp_path, monkeypatch, capsys):
    bundle = save_bundle(tmp_path)
    (bundle / "recipe.toml").write_text("tokens = ")
    monkeypatch.setattr("onnx_gpt.commands.bench.measure", lambda *_, **__: pytest.fail("it was timed"))
    with pytest.raises(SystemExit) as ended:
        main(["bench", str(bundle)])
    assert ended.value.code == Exit.REJECTED
    assert "recipe-unreadable" in capsys.readouterr().err
