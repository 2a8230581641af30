"""A Hugging Face checkpoint directory: ``config.json`` and safetensors, one file or shards with an index."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from exporter.checkpoint import Checkpoint
from exporter.errors import OnnxGptError, rejected, unsupported
from exporter.families import describe
from exporter.sources._files import JSON_LIMIT, has, inside, parse_json_object, read_bytes
from exporter.sources._safetensors import read_header
from exporter.weights import Weight

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
"""Passed through to the bundle where they are there."""

FILE_LIMIT = 256 << 20
"""Bytes of such a file. Gemma 3's tokenizer.json, the largest known, has 33 MB."""

SLOW_TOKENIZERS = (
    *("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model"),
    *("tekken.json", "qwen.tiktoken"),
)
"""Files of tokenizers that transformers turns into a tokenizer.json when it loads them."""

ADAPTER = "adapter_config.json"

MODELS = (".gguf", ".onnx", ".pt", ".pth")
"""Ends of files that are a source each, and lie in folders too."""

HEADS = ("lm_head.", "embed_out.")
"""Tensors that lie beside the base model."""


def claims(uri: str) -> bool:
    return Path(uri).is_dir()


def load(uri: str) -> Checkpoint:
    """Read the configuration, the headers of the weight files, and the tokenizer's files.

    Raises:
        OnnxGptError: ``config-missing``, ``config-unreadable``; ``weights-missing``, ``weights-pickle``,
            ``weights-incomplete``, ``weights-corrupt``; ``path-escapes``, ``file-irregular``,
            ``file-unreadable``, ``file-too-large``; ``tokenizer-slow``, ``checkpoint-quantized``,
            ``adapter-unmerged`` (exit 3).
    """
    bare = untrained(uri)
    return with_base_prefix(dataclasses.replace(bare, weights=_read_weights(Path(uri))))


def untrained(uri: str) -> Checkpoint:
    """The configuration and the tokenizer's files of a directory, without weights: a model that is to be trained.

    Raises:
        OnnxGptError: those of `load` that are not about weights.
    """
    folder = Path(uri)
    if has(folder, ADAPTER) and not any(has(folder, name) for name in (WEIGHTS, INDEX)):
        raise unsupported(
            "adapter-unmerged",
            f"{str(folder)!r} holds an adapter alone ({ADAPTER}), not the model that it changes",
            "merge them: AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(NEW)",
        )
    config = read_config(folder)
    quantized = config.get("quantization_config")
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise unsupported(
            "checkpoint-quantized",
            f"{str(folder)!r} is quantized already (quantization_config: {method!r:.80})",
            "give the checkpoint that it was made from, and quantize with --quantize",
        )
    return Checkpoint(uri, config, {}, read_files(folder))


def read_files(folder: Path) -> dict[str, bytes]:
    """The tokenizer's and the generation's files that are there, as they are.

    Raises:
        OnnxGptError: ``config-unreadable`` for one that a runtime could not read; ``tokenizer-slow`` (exit 3) for a
            tokenizer without tokenizer.json.
    """
    files = {name: read_bytes(folder, name, FILE_LIMIT) for name in FILES if has(folder, name)}
    for name, data in files.items():
        what = repr(str(folder / name))
        if name.endswith(".jinja"):
            try:
                data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise rejected("config-unreadable", f"{what}: {error}", "write it again, in UTF-8") from error
        elif name != "tokenizer.json":  # the library that runs it reads that one
            parse_json_object(data, what, "config-unreadable")
    slow = [name for name in (*SLOW_TOKENIZERS, "tokenizer_config.json") if has(folder, name)]
    if slow and "tokenizer.json" not in files:
        raise unsupported(
            "tokenizer-slow",
            f"{str(folder)!r} has its tokenizer in {', '.join(slow)} and not in tokenizer.json",
            "write one: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR); or take these files away",
        )
    return files


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` as it is written; a family checks its keys.

    Raises:
        OnnxGptError: ``config-missing``, ``config-unreadable``.
    """
    if not has(folder, "config.json"):
        raise rejected(
            "config-missing",
            f"{str(folder)!r} has no config.json",
            _instead(folder) or "give the directory that save_pretrained wrote, or that the Hub shows",
        )
    path = str(folder / "config.json")
    config = parse_json_object(read_bytes(folder, "config.json", JSON_LIMIT), repr(path), "config-unreadable")
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise rejected(
            "config-unreadable",
            f"architectures in {path!r} is not a list of class names",
            'write "architectures": ["LlamaForCausalLM"], or what the model is',
        )
    if not isinstance(config.get("model_type"), str | None):
        raise rejected(
            "config-unreadable",
            f"model_type in {path!r} is no text",
            'write "model_type": "llama", or what the model is',
        )
    return config


def with_base_prefix(checkpoint: Checkpoint) -> Checkpoint:
    """The same with tensor names as the class in ``architectures`` spells them.

    A class with a head wraps a base model (GPT2LMHeadModel.transformer, LlamaForCausalLM.model) and
    transformers loads checkpoints of either. ``gpt2`` on the Hub is the best known one saved from the base
    model: ``h.0.ln_1.weight`` for ``transformer.h.0.ln_1.weight``. Where no tensor has the prefix, all but
    the head's get it.
    """
    try:
        prefix = describe(checkpoint).embedding.name.partition(".")[0] + "."
    except OnnxGptError:  # whoever asks for the description is told what is wrong with the configuration
        return checkpoint
    weights = checkpoint.weights
    if any(name.startswith(prefix) for name in weights):
        return checkpoint
    named = {name if name.startswith(HEADS) else prefix + name: weight for name, weight in weights.items()}
    return dataclasses.replace(checkpoint, weights=named)


def _read_weights(folder: Path) -> dict[str, Weight]:
    # transformers prefers the single file where both are there
    if has(folder, WEIGHTS):
        return read_header(_weight_file(folder, WEIGHTS))
    if has(folder, INDEX):
        return _read_shards(folder)
    raise _no_weights(folder)


def _weight_file(folder: Path, name: str) -> Path:
    path = inside(folder, name)
    if not path.is_file():
        raise rejected("weights-missing", f"{str(folder / name)!r} does not exist", "download it again")
    return path


def _read_shards(folder: Path) -> dict[str, Weight]:
    """The shards that the index names, held against it in both directions."""
    what = repr(str(folder / INDEX))
    index = parse_json_object(read_bytes(folder, INDEX, JSON_LIMIT), what, "weights-incomplete")
    placed = index.get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(shard, str) for shard in placed.values()):
        raise rejected(
            "weights-incomplete", f"{what} has no weight_map of names to files", "download the index again"
        )
    paths = {shard: inside(folder, shard) for shard in sorted(set(placed.values()))}
    findings = [f"missing file: {shard}" for shard, path in paths.items() if not path.is_file()]
    tensors: dict[str, Weight] = {}
    for shard, path in paths.items():
        if not path.is_file():
            continue
        header = read_header(path)
        wanted = {name for name, place in placed.items() if place == shard}
        findings += [f"{shard} lacks {name}" for name in sorted(wanted - header.keys())]
        findings += [
            f"{shard} has {name}, which the index does not place there" for name in header.keys() - wanted
        ]
        tensors |= header
    if findings:
        raise rejected(
            "weights-incomplete",
            f"the shards of {str(folder)!r} and their index do not agree ({len(findings)} findings)",
            "download the directory again, all of it",
            tuple(sorted(findings)),
        )
    return tensors


def _no_weights(folder: Path) -> OnnxGptError:
    if any(has(folder, name) for name in ("pytorch_model.bin", "pytorch_model.bin.index.json")):
        return unsupported(
            "weights-pickle",
            f"{str(folder)!r} has its weights only in pytorch_model.bin, a pickle, which could run any code",
            "if you trust it, convert it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW)",
        )
    return rejected(
        "weights-missing",
        f"{str(folder)!r} has neither {WEIGHTS} nor {INDEX}",
        _instead(folder) or "give a directory with safetensors weights",
    )


def _instead(folder: Path) -> str:
    """What to give in place of a folder that holds another kind of model; empty where it holds none."""
    models = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in MODELS)
    return f"give the model in it by its name: {folder / models[0]}" if models else ""
