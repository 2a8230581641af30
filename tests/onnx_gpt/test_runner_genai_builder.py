"""A folder that onnxruntime-genai's own builder made runs as it is, and says what transformers says."""

import os
import subprocess
import sys

import numpy as np
import pytest
from tiny_decoders import TEMPLATE, VOCAB, byte_tokenizer

from onnx_gpt.generation.generator import Generator

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("onnxruntime_genai")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A random Llama, and the builder's folder of it."""
    folder = tmp_path_factory.mktemp("genai")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        bos_token_id=257,
        eos_token_id=256,
        pad_token_id=256,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder / "hf")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder / "hf")
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "fp32", "-e", "cpu"]
    where = ["-i", "hf", "-o", "onnx", "-c", "cache", "--extra_options", "hf_token=false"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*builder, *where], cwd=folder, env=offline, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return model, tokenizer, folder / "onnx"


def test_logits_and_text_are_those_of_transformers(llama):
    model, tokenizer, folder = llama
    generator = Generator(folder, threads=1)
    assert (generator.session.cache, generator.max_length, generator.eos) == ("shared", 128, {256})
    tokens = generator.encode("Hello there")
    assert tokens == tokenizer("Hello there").input_ids
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
        chosen = model.generate(torch.tensor([tokens]), max_new_tokens=70, do_sample=False)[0]
    np.testing.assert_allclose(generator.prefill(tokens, every=True), expected, atol=1e-4)
    assert generator.generate("Hello there", max_new_tokens=70).tokens == tuple(
        chosen[len(tokens) :].tolist()
    )


def test_the_chat_template_is_that_of_the_tokenizer(llama):
    _, tokenizer, folder = llama
    chat = [{"role": "user", "content": "hi"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert Generator(folder, threads=1).encode(chat) == ids
