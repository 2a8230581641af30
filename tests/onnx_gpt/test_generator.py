"""The runner: the same text whatever the kind of cache, nothing run twice, one error for each misuse."""

import contextlib
import json

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from tiny_decoders import CONTEXT, EOS, VOCAB, byte_tokenizer, save_bundle

from exporter.errors import Exit, OnnxGptError
from onnx_gpt.generation.generator import Generation, Generator

KINDS = {
    "shared": {"kind": "shared"},
    "shared, positions": {"kind": "shared", "positions": True},
    "shared, last logits": {"kind": "shared", "keep": True},
    "growing": {"kind": "growing"},
    "growing, positions, last logits": {"kind": "growing", "positions": True, "keep": True},
    "none": {"kind": "none"},
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return {name: save_bundle(folder / str(i), **how) for i, (name, how) in enumerate(KINDS.items())}


@pytest.fixture
def generator(bundles):
    return Generator(bundles["shared, last logits"], threads=1)


def ran(generator):
    """Lengths of the runs to come, in a list that fills up."""
    lengths = []
    append = generator.session.append

    def counted(tokens, **settings):
        lengths.append(len(tokens))
        return append(tokens, **settings)

    generator.session.append = counted
    return lengths


@contextlib.contextmanager
def refused(code, exit=Exit.REJECTED):
    with pytest.raises(OnnxGptError) as error:
        yield
    assert (error.value.code, error.value.exit) == (code, exit)


# One function, three kinds of cache ---------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_cache_gives_the_same_logits_however_tokens_are_split(bundles, name):
    tokens = np.random.default_rng(0).integers(0, VOCAB, 40).tolist()
    whole = Generator(bundles["none"], threads=1).prefill(tokens, every=True)
    generator = Generator(bundles[name], threads=1)
    assert generator.session.cache == KINDS[name]["kind"]
    parts = [
        generator.prefill(tokens[:7], every=True),
        generator.step(tokens[7])[None],
        generator.step(tokens[8])[None],
        generator.prefill(tokens[9:20], every=True),
        generator.prefill(tokens[20:])[None],
    ]
    np.testing.assert_allclose(np.concatenate(parts), whole[[*range(20), 39]], atol=2e-4)


def test_every_kind_of_cache_gives_the_same_text(bundles):
    results = {n: Generator(b, threads=1).generate("Hello", max_new_tokens=40) for n, b in bundles.items()}
    assert len({result.tokens for result in results.values()}) == 1
    assert all(len(result.tokens) == 40 for result in results.values())


@pytest.mark.parametrize(
    "how",
    [
        {"integers": TensorProto.INT32, "kind": "none"},
        {"floats": TensorProto.FLOAT16, "kind": "shared"},
    ],
    ids=["int32 tokens", "float16"],
)
def test_other_types_run(tmp_path, bundles, how):
    expected = Generator(bundles["shared"], threads=1).prefill([5, 6, 7])
    logits = Generator(save_bundle(tmp_path, **how), threads=1).prefill([5, 6, 7])
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=0.05)


def test_logits_stay_as_they_were(generator):
    first = generator.prefill([1, 2, 3])
    kept = first.copy()
    generator.step(4)
    assert (first == kept).all()


def test_a_long_prompt_runs_in_pieces_and_gives_the_same(bundles, generator):
    tokens = np.random.default_rng(0).integers(0, 256, 300).tolist()
    runs = []
    run = generator.session._cache.run
    generator.session._cache.run = lambda past, new, every: (
        runs.append((len(past), new.shape[1])),
        run(past, new, every),
    )[1]
    logits = generator.prefill(tokens)
    assert runs == [(0, 256), (256, 44)]
    assert generator.session.tokens == tokens
    for other in ("growing", "none"):
        assert np.allclose(logits, Generator(bundles[other], threads=1).prefill(tokens), atol=1e-4)
    generator.reset()
    assert np.allclose(logits, generator.prefill(tokens, every=True)[-1], atol=1e-4)


def test_the_shared_buffer_grows_with_what_it_holds(generator):
    cache = generator.session._cache
    tokens = np.random.default_rng(1).integers(0, VOCAB, 300).tolist()
    capacities = set()
    logits = []
    for token in tokens:
        logits.append(generator.step(token))
        capacities.add(cache.capacity)
    assert sorted(capacities) == [64, 128, 256, 512]  # doubled, and never the whole context for nothing
    generator.reset()
    np.testing.assert_allclose(np.array(logits), generator.prefill(tokens, every=True), atol=2e-4)


# Text ---------------------------------------------------------------------------------------------------


def test_a_generation_says_what_happened(generator):
    pieces = []
    result = generator.generate("Hello", max_new_tokens=25, on_text=pieces.append)
    assert isinstance(result, Generation)
    assert result.prompt_tokens == 5
    assert len(result.tokens) == 25
    assert result.finish_reason == "length"
    assert "".join(pieces) == result.text
    assert all(pieces)
    assert result.prefill_seconds > 0
    assert result.decode_seconds > 0


def test_greedy_text_is_the_chain_of_the_likeliest_tokens(generator):
    result = generator.generate([7, 8, 9], max_new_tokens=12)
    generator.reset()
    logits, tokens = generator.prefill([7, 8, 9]), []
    for _ in range(12):
        tokens.append(int(logits.argmax()))
        logits = generator.step(tokens[-1])
    assert result.tokens == tuple(tokens)


def test_streaming_gives_the_same_text_and_returns_the_generation(generator):
    pieces = generator.stream("Hello", max_new_tokens=20)
    text = ""
    while True:
        try:
            text += next(pieces)
        except StopIteration as end:
            assert end.value.text == text
            break
    assert text == generator.generate("Hello", max_new_tokens=20).text


def test_the_same_seed_gives_the_same_tokens(generator):
    def sample(seed):
        return generator.generate("Hello", max_new_tokens=30, temperature=2.0, top_k=40, seed=seed).tokens

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(5)}) > 1
    assert len({sample(None) for _ in range(5)}) > 1


def test_a_penalty_on_repetition_reaches_prompt_and_text(generator):
    plain = generator.generate("Hello", max_new_tokens=60).tokens
    penalised = generator.generate("Hello", max_new_tokens=60, repetition_penalty=1e6).tokens
    assert len(set(plain)) < 60
    assert len(set(penalised) | set(generator.encode("Hello"))) == 60 + 4  # "Hello" has four letters, l twice


@pytest.mark.parametrize("many", [False, True])
def test_the_end_of_text_token_ends_it(tmp_path, bundles, many):
    free = Generator(bundles["shared"], threads=1).generate("Hello", max_new_tokens=30).tokens
    last = free[10]
    generator = Generator(save_bundle(tmp_path, eos=[EOS, last] if many else last), threads=1)
    result = generator.generate("Hello", max_new_tokens=30)
    assert result.finish_reason == "eos"
    assert result.tokens == free[: free.index(last) + 1]
    shorter = generator.generate("Hello", max_new_tokens=len(result.tokens) - 1)
    assert shorter.text == result.text  # the last token gives no text, special or not


def test_generation_config_goes_before_config(tmp_path):
    bundle = save_bundle(tmp_path, eos=1)
    (bundle / "generation_config.json").write_text(
        '{"eos_token_id": [2, 3], "temperature": 5.0, "do_sample": true}'
    )
    generator = Generator(bundle, threads=1)
    assert generator.eos == {2, 3}
    assert (
        generator.generate([1], max_new_tokens=9).tokens == generator.generate([1], max_new_tokens=9).tokens
    )


def test_a_stop_string_ends_the_text_before_it(generator):
    whole = generator.generate("Hello", max_new_tokens=60).text
    stop = whole[20:23]
    result = generator.generate("Hello", max_new_tokens=60, stop=("never in it", stop))
    assert result.finish_reason == "stop"
    assert result.text == whole[: whole.index(stop)]
    assert generator.generate("Hello", max_new_tokens=60, stop=stop).text == result.text


def test_the_context_ends_a_text(bundles):
    generator = Generator(bundles["shared"], threads=1, max_length=20)
    result = generator.generate("Hello", max_new_tokens=100)
    assert (len(result.tokens), result.finish_reason) == (15, "length")
    assert Generator(bundles["shared"], threads=1, max_length=10**6).max_length == CONTEXT


# A conversation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_conversation_is_not_run_again(bundles, name):
    generator = Generator(bundles[name], threads=1)
    lengths = ran(generator)
    chat = [{"role": "user", "content": "What is it?"}]
    first = generator.generate(chat, max_new_tokens=9)
    prompt = generator.encode(chat)
    assert lengths == [len(prompt)] + [1] * 8
    # The model's own tokens come back and then something new; the last token was never run.
    longer = [*prompt, *first.tokens, 1, 2, 3]
    del lengths[:]
    goes_on = generator.generate(longer, max_new_tokens=5)
    assert lengths[0] == 4
    assert goes_on.tokens == Generator(bundles[name], threads=1).generate(longer, max_new_tokens=5).tokens


@pytest.mark.parametrize("name", KINDS)
def test_an_answer_that_came_back_changed_is_run_from_the_change(bundles, name):
    generator = Generator(bundles[name], threads=1)
    first = generator.generate([1, 2, 3, 4], max_new_tokens=9)
    lengths = ran(generator)
    changed = [1, 2, 3, 4, *first.tokens[:3], (first.tokens[3] + 1) % 256, 9]
    result = generator.generate(changed, max_new_tokens=8)
    assert lengths[0] == 2
    assert result.tokens == Generator(bundles[name], threads=1).generate(changed, max_new_tokens=8).tokens


def test_any_other_prompt_starts_afresh(generator):
    lengths = ran(generator)
    for prompt in ([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3], [1, 2, 9, 4, 5], [5]):
        del lengths[:]
        generator.generate(prompt, max_new_tokens=4)
        assert lengths[0] == len(prompt)
    generator.reset()
    del lengths[:]
    generator.generate([5, 6], max_new_tokens=1)
    assert lengths == [2]


def test_what_was_run_by_hand_is_no_conversation(generator):
    generator.generate([1, 2], max_new_tokens=4)
    generator.step(3)
    lengths = ran(generator)
    generator.generate([1, 2, 3], max_new_tokens=1)
    assert lengths == [3]


def test_a_text_that_another_has_overtaken_cannot_go_on(generator):
    first = generator.stream([1, 2, 3], max_new_tokens=50)
    next(first)
    expected = generator.generate([4, 5], max_new_tokens=8).tokens
    with refused("stream-overtaken", Exit.USAGE):
        list(first)
    assert generator.generate([4, 5], max_new_tokens=8).tokens == expected


def test_a_text_that_was_left_does_no_harm(generator):
    expected = generator.generate([1, 2, 3], max_new_tokens=8).tokens
    next(generator.stream([1, 2, 3], max_new_tokens=50))
    assert generator.generate([1, 2, 3], max_new_tokens=8).tokens == expected


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=5))
def test_no_order_of_prompts_changes_a_text(bundles, prompts):
    cached, plain = (Generator(bundles[name], threads=1) for name in ("shared", "none"))
    for prompt in prompts:
        text = cached.generate(prompt, max_new_tokens=4).tokens
        plain.reset()
        assert text == plain.generate(prompt, max_new_tokens=4).tokens


# Errors -------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_bundle(tmp_path):
    with refused("bundle-missing"):
        Generator(tmp_path / "nowhere")
    with refused("bundle-incomplete"):
        Generator(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with refused("onnx-invalid"):
        Generator(tmp_path)


@pytest.mark.parametrize(
    "name, text",
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"max_position_embeddings": "many"}'),
        ("config.json", '{"eos_token_id": "</s>"}'),
        ("genai_config.json", '{"model": 3}'),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", '"x"'),
    ],
)
def test_files_that_are_broken(tmp_path, name, text):
    bundle = save_bundle(tmp_path)
    (bundle / name).write_text(text)
    with refused("bundle-invalid"):
        Generator(bundle)


def test_external_data_that_is_missing(tmp_path):
    bundle = save_bundle(tmp_path)
    path = bundle / "model.onnx"
    place = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 200}
    onnx.save(onnx.load(path), path, **place)
    assert Generator(bundle, threads=1).generate([1], max_new_tokens=2).tokens
    (bundle / "model.onnx.data").unlink()
    with refused("onnx-data-missing"):
        Generator(bundle)


@pytest.mark.parametrize(
    "change, code",
    [
        (lambda graph: setattr(graph.input[0], "name", "tokens"), "model-input-unknown"),
        (lambda graph: setattr(graph.output[0], "name", "scores"), "model-output-missing"),
        (lambda graph: graph.output.pop(), "model-output-missing"),
        (
            lambda graph: setattr(graph.input[2].type.tensor_type.shape.dim[1], "dim_param", "k"),
            "cache-shape",
        ),
    ],
)
def test_a_model_that_is_no_decoder(tmp_path, change, code):
    bundle = save_bundle(tmp_path, "growing")
    model = onnx.load(bundle / "model.onnx")
    change(model.graph)
    renamed = {"input_ids": model.graph.input[0].name, "logits": model.graph.output[0].name}
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    onnx.save(model, bundle / "model.onnx")
    with refused(code, Exit.UNSUPPORTED):
        Generator(bundle)


def test_prompts_that_cannot_be_run(generator):
    for empty in ("", [], np.array([], np.int64)):
        with refused("prompt-empty"):
            generator.generate(empty)
    with refused("prompt-empty"):
        generator.prefill([])
    for outside in ([1, VOCAB], [-1]):
        with refused("token-out-of-range"):
            generator.generate(outside)
        with refused("token-out-of-range"):
            generator.prefill(outside)
    for long in ([1] * CONTEXT, [1] * (CONTEXT + 5)):
        with refused("prompt-too-long"):
            generator.stream(long)  # at once, not when the first piece is asked for
    with refused("prompt-too-long"):
        generator.prefill([1] * (CONTEXT + 1))
    assert generator.generate([1] * (CONTEXT - 1), max_new_tokens=9).finish_reason == "length"


@pytest.mark.parametrize(
    "wrong",
    [{"max_new_tokens": 0}, {"stop": ("",)}, {"stop": ""}, {"seed": -1}, {"temperature": -1.0}, {"top_k": 3}],
)
def test_settings_that_mean_nothing(generator, wrong):
    with refused("sampling-invalid", Exit.USAGE):
        generator.stream("Hello", **wrong)


def test_a_tokenizer_that_is_not_the_models(tmp_path):
    bundle = save_bundle(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["one", "too", "many"])
    tokenizer.save(str(bundle / "tokenizer.json"))
    with refused("tokenizer-too-large"):
        Generator(bundle)


def test_a_bundle_without_a_tokenizer_runs_token_ids(tmp_path, bundles):
    bundle = save_bundle(tmp_path, "none")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (bundle / name).unlink()
    generator = Generator(bundle, threads=1)
    result = generator.generate([1, 2, 3], max_new_tokens=5)
    assert result.text == ""
    assert result.tokens == Generator(bundles["none"], threads=1).generate([1, 2, 3], max_new_tokens=5).tokens
    with refused("tokenizer-missing"):
        generator.generate("Hello")
    with refused("tokenizer-missing"):
        generator.generate([1], stop="x")
    with refused("chat-template-missing"):
        generator.generate([{"role": "user", "content": "hi"}])


def test_a_run_that_fails_says_where_and_leaves_the_cache(tmp_path):
    bundle = save_bundle(tmp_path, "growing", config=False)  # no context length is known
    generator = Generator(bundle, threads=1)
    generator.prefill([1] * CONTEXT)
    with refused("model-run-failed"):
        generator.step(1)  # beyond the rotary tables
    assert len(generator.session.tokens) == CONTEXT


# onnxruntime-genai's folders ----------------------------------------------------------------------------


def test_genai_config_stands_in_for_config(tmp_path):
    bundle = save_bundle(tmp_path, open_head_dim=True, config=False)
    (bundle / "model.onnx").rename(bundle / "decoder.onnx")
    decoder = {"filename": "decoder.onnx", "head_size": 16}
    model = {"model": {"context_length": 99, "eos_token_id": [4, 5], "decoder": decoder}}
    (bundle / "genai_config.json").write_text(json.dumps(model))
    generator = Generator(bundle, threads=1)
    assert (generator.max_length, generator.eos, generator.session.cache) == (99, {4, 5}, "shared")
    assert generator.generate("Hello", max_new_tokens=5).tokens


def test_padding_and_truncation_that_a_tokenizer_keeps_are_off(tmp_path):
    bundle = save_bundle(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(bundle / "tokenizer.json"))
    assert len(Generator(bundle, threads=1).encode("Hello")) == 5
