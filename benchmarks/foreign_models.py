"""Decoder graphs as other exporters write them, made once under benchmarks/.cache/foreign/NAME/.

    python -m benchmarks.foreign_models [NAME ...]

Each has beside it a source of our own with the same weights (`ForeignGraph.own`): a Hugging Face folder, or a nanoGPT
checkpoint. ``smollm2`` in a name means the real weights, else the model is random: 4 layers of 256 channels, heads of
64. The exporting code is the tests' (tests/graph_passes/foreign_graphs.py).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import contenders as c
from benchmarks.measure import run, say
from benchmarks.models import ensure
from benchmarks.paths import CACHE, SMOLLM2

FOREIGN = CACHE / "foreign"
LAYERS = 4
SMOLLM2_LAYERS = 30

GENAI_FLOAT = c.made_by("genai builder fp32", SMOLLM2, "genai_builder", "genai", verb="make_float")


@dataclass(frozen=True)
class ForeignGraph:
    """One graph to be optimized.

    Attributes:
        name: as the table has it.
        model: gives the ``.onnx`` file, made where it is missing.
        own: gives a source of ours with the same weights.
        layers: attentions that there are.
    """

    name: str
    model: Callable[[], Path]
    own: Callable[[], Path]
    layers: int


def graphs() -> list[ForeignGraph]:
    """All of them, those with real weights first."""
    found = [
        ForeignGraph(
            "optimum-smollm2", lambda: c.OPTIMUM_FLOAT.ready() / "model.onnx", smollm2, SMOLLM2_LAYERS
        ),
        *(_exported_smollm2(how) for how in ("cache-sdpa-18", "cache-sdpa-23", "nocache-sdpa-18")),
        ForeignGraph("genai-smollm2", lambda: GENAI_FLOAT.ready() / "model.onnx", smollm2, SMOLLM2_LAYERS),
        ForeignGraph(
            "mobius-smollm2", lambda: c.MOBIUS_FLOAT.ready() / "model.onnx", smollm2, SMOLLM2_LAYERS
        ),
        ForeignGraph("optimum-gpt2", optimum_gpt2, lambda: own_source("gpt2"), LAYERS),
    ]
    return found + [_exported(name) for name in _names()]


def smollm2() -> Path:
    ensure(SMOLLM2)
    return SMOLLM2


def optimum_gpt2() -> Path:
    gpt2 = c.made_by("Optimum GPT-2", lambda: own_source("gpt2"), "optimum", "optimum")
    return gpt2.ready() / "model.onnx"


def _exported_smollm2(how: str) -> ForeignGraph:
    name = f"smollm2-{how}"
    return ForeignGraph(name, lambda: _made(name), smollm2, SMOLLM2_LAYERS)


def _exported(name: str) -> ForeignGraph:
    return ForeignGraph(name, lambda: _made(name), lambda: own_source(name.split("-")[0]), LAYERS)


def _made(name: str) -> Path:
    """A graph that torch exports, in a process of its own."""
    folder = FOREIGN / name
    if not folder.exists():
        run([sys.executable, "-m", "benchmarks.foreign_models", name])
    return folder / "model.onnx"


def own_source(model: str) -> Path:
    """The same weights as a checkpoint that we read."""
    folder = FOREIGN / f"own-{model}"
    if not folder.exists():
        run([sys.executable, "-m", "benchmarks.foreign_models", f"own-{model}"])
    checkpoint = folder / "ckpt.pt"
    return checkpoint if checkpoint.exists() else folder


def _names() -> list[str]:
    """The tests' graphs, without importing torch: this module stays small in the process that measures."""
    models = ("llama", "qwen2", "gemma3", "gpt2")
    ways = ("cache-sdpa-18", "cache-sdpa-23", "cache-eager-20", "nocache-sdpa-18", "nocache-eager-20")
    modules = ("nanogpt_sdpa", "nanogpt_tril", "hand_llama")
    return [f"{m}-{way}" for m in models for way in ways] + [
        f"{m}-{way}" for m in modules for way in ("dynamo-18", "dynamo-23", "script-17")
    ]


# Made in a process of its own -----------------------------------------------------------------------------


def make(name: str) -> None:
    """Write one graph, or ``own-MODEL``, into its folder."""
    from tests.graph_passes import foreign_graphs as tests

    size = tests.Size(LAYERS, 256, 4, 2, 64, 768, 8192, 1024)
    partial = FOREIGN / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if name.startswith("own-"):
        _write_own(name.removeprefix("own-"), tests, size, partial)
    elif name.startswith("smollm2-"):
        _export_smollm2(name.removeprefix("smollm2-"), tests, partial)
    else:
        tests.export(name, partial, size)
    partial.rename(FOREIGN / name)


def _export_smollm2(how: str, tests: Any, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    foreign = tests.GRAPHS[f"llama-{how}"]
    model = (
        AutoModelForCausalLM.from_pretrained(smollm2(), attn_implementation=foreign.attention).eval().float()
    )
    foreign.export(model, folder / "model.onnx")
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(SMOLLM2 / file, folder / file)


def _write_own(model: str, tests: Any, size: Any, folder: Path) -> None:
    import torch

    if model in tests.CONFIGS:
        tests.transformers_model(model, size).save_pretrained(folder)
        return
    module = tests.MODULES[model](size)
    if model.startswith("nanogpt"):
        arguments = {"n_layer": size.layers, "n_head": size.heads, "n_embd": size.hidden, "bias": True}
        arguments |= {"block_size": size.context, "vocab_size": size.vocab}
        state = {nano_name(name): tensor for name, tensor in module.state_dict().items()}
        state = {name: tensor for name, tensor in state.items() if not name.endswith(".attn.bias")}
        torch.save({"model": state, "model_args": arguments}, folder / "ckpt.pt")
        return
    config = tests.CONFIGS["llama"](size)
    config.tie_word_embeddings, config.rms_norm_eps = False, 1e-5
    llama = tests.transformers.LlamaForCausalLM(config)
    state = {llama_name(name): tensor for name, tensor in module.state_dict().items()}
    llama.load_state_dict({name: tensor for name, tensor in state.items() if name not in ("cos", "sin")})
    llama.save_pretrained(folder)


def nano_name(name: str) -> str:
    """nanoGPT's own name of one of the test module's tensors."""
    if name == "lm_head.weight":
        return name
    places = {"c_attn": "attn.c_attn", "c_proj": "attn.c_proj", "c_fc": "mlp.c_fc", "c_out": "mlp.c_proj"}
    parts = name.split(".")
    if parts[0] != "h":
        return f"transformer.{name}"
    if parts[2:] == ["bias"]:
        return f"transformer.h.{parts[1]}.attn.bias"
    return ".".join(["transformer", "h", parts[1], places.get(parts[2], parts[2]), *parts[3:]])


def llama_name(name: str) -> str:
    """Hugging Face's name of one of the test module's tensors."""
    places = {
        "wq": "self_attn.q_proj",
        "wk": "self_attn.k_proj",
        "wv": "self_attn.v_proj",
        "wo": "self_attn.o_proj",
        "w1": "mlp.gate_proj",
        "w3": "mlp.up_proj",
        "w2": "mlp.down_proj",
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
    }
    ends = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
    parts = name.split(".")
    if parts[0] != "layers":
        return ".".join([ends.get(parts[0], parts[0]), *parts[1:]])
    return ".".join(["model.layers", parts[1], places[parts[2]], *parts[3:]])


if __name__ == "__main__":
    for wanted in sys.argv[1:] or [graph.name for graph in graphs()]:
        if wanted.startswith("own-") or wanted in _names() or wanted.startswith("smollm2-"):
            make(wanted)
        else:
            next(graph for graph in graphs() if graph.name == wanted).model()
        say(json.dumps({"made": wanted}))
