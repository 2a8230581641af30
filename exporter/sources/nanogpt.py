"""A checkpoint of nanoGPT's train.py: ``{'model': state_dict, 'model_args': {…}, …}`` in a .pt file.

The model is GPT-2 with four differences, all undone here: the exact GELU; linear maps stored ``[out, in]``,
where Hugging Face's GPT-2 stores ``[in, out]``; biases that may be left out everywhere; and the prefix
``_orig_mod.`` or ``module.`` of a wrapper before every name. Source: github.com/karpathy/nanoGPT.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.checkpoint import Checkpoint
from exporter.errors import OnnxGptError, rejected, unsupported
from exporter.sources._torch_file import Tensor, read, shown
from exporter.weight_expressions import transposed
from exporter.weights import Weight, Zeros

SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
MAX_LAYERS = 10_000

LINEAR = re.compile(r"transformer\.h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
WRAPPED = re.compile(r"(_orig_mod\.|module\.)+")
"""What torch.compile and DistributedDataParallel put before every name, one after the other where both were used."""


def claims(uri: str) -> bool:
    return uri.lower().endswith((".pt", ".pth")) and Path(uri).is_file()


def load(uri: str) -> Checkpoint:
    """Read the description of the tensors; they themselves are read later, from where they lie in the file.

    There is no tokenizer in such a file. A ``meta.pkl`` beside it is a pickle and is not read.

    Raises:
        OnnxGptError: ``pickle-unsafe``, ``checkpoint-corrupt``; ``nanogpt-invalid`` for a file without a
            state dict or with impossible sizes; ``nanogpt-unsupported`` (exit 3) for unknown model arguments;
            ``weights-strided``.
    """
    path = Path(uri)
    content = read(path)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), dict) for key in ("model", "model_args")
    ):
        raise _invalid(path, "is no nanoGPT checkpoint: it holds no dicts 'model' and 'model_args'")
    arguments, biased = _arguments(path, content["model_args"])
    tensors = _tensors(path, content["model"])
    table, head = tensors["transformer.wte.weight"], tensors.get("lm_head.weight")
    tied = head is None or head == table  # one storage, one offset, one shape
    if tied:
        tensors.pop("lm_head.weight", None)
    weights: dict[str, Weight] = {
        name: transposed(tensor.weight(path, name)) if LINEAR.fullmatch(name) else tensor.weight(path, name)
        for name, tensor in tensors.items()
    }
    if not biased:
        weights |= _zero_biases(path, arguments, weights)
    return Checkpoint(uri, _config(arguments, tied), weights)


def _arguments(path: Path, given: Mapping[str, Any]) -> tuple[dict[str, int], bool]:
    """The sizes, and whether there are biases."""
    unknown = given.keys() - {*SIZES, "bias", "dropout"}
    if unknown:
        raise unsupported(
            "nanogpt-unsupported",
            f"{str(path)!r} has model_args that nanoGPT's GPTConfig does not have",
            "export a modified nanoGPT as module:package.module:factory",
            tuple(f"{key} = {shown(given[key])}" for key in sorted(unknown, key=str)),
        )
    findings = [
        f"{key} = {shown(given.get(key))}"
        for key in SIZES
        if type(given.get(key)) is not int or not 0 < given[key] < 1 << 31
    ]
    bias = given.get("bias", True)  # GPTConfig's default
    if type(bias) is not bool:
        findings.append(f"bias = {shown(bias)}")
    if not findings and given["n_layer"] > MAX_LAYERS:
        findings.append(f"n_layer = {given['n_layer']}")
    if findings:
        raise _invalid(path, "has impossible model_args", tuple(findings))
    return {key: given[key] for key in SIZES}, bias


def _tensors(path: Path, model: Mapping[Any, Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for key, value in model.items():
        name = WRAPPED.sub("", str(key), count=1) if WRAPPED.match(str(key)) else str(key)
        if not isinstance(value, Tensor) or not name.isprintable():
            raise _invalid(path, f"has a state dict whose {shown(key)} is not a tensor")
        if name in tensors:
            raise _invalid(path, f"holds {shown(name)} with and without what wraps it")
        tensors[name] = value
    if "transformer.wte.weight" not in tensors:
        raise _invalid(path, "has a state dict without transformer.wte.weight")
    odd = [name for name, tensor in tensors.items() if LINEAR.fullmatch(name) and len(tensor.shape) != 2]
    if odd:
        raise _invalid(path, "has linear maps that are no matrices", tuple(odd))
    return tensors


def _zero_biases(path: Path, sizes: Mapping[str, int], weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Biases of a model trained with ``bias=False``."""
    hidden = sizes["n_embd"]
    widths = {
        "ln_1": hidden,
        "ln_2": hidden,
        "attn.c_attn": 3 * hidden,
        "attn.c_proj": hidden,
        "mlp.c_fc": 4 * hidden,
        "mlp.c_proj": hidden,
    }
    zeros: dict[str, Weight] = {
        f"transformer.h.{layer}.{name}.bias": Zeros((width,))
        for layer in range(sizes["n_layer"])
        for name, width in widths.items()
    }
    zeros["transformer.ln_f.bias"] = Zeros((hidden,))
    contradicting = tuple(sorted(zeros.keys() & weights.keys()))
    if contradicting:
        raise _invalid(path, "says bias=False and has biases", contradicting)
    return zeros


def _config(sizes: Mapping[str, int], tied: bool) -> dict[str, Any]:
    """The same model in Hugging Face's terms."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": sizes["vocab_size"],
        "n_positions": sizes["block_size"],
        "n_embd": sizes["n_embd"],
        "n_layer": sizes["n_layer"],
        "n_head": sizes["n_head"],
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": tied,
    }


WRITTEN = "give a ckpt.pt that nanoGPT's train.py wrote, or the model itself as module:package.module:factory"


def _invalid(path: Path, what: str, details: tuple[str, ...] = ()) -> OnnxGptError:
    return rejected("nanogpt-invalid", f"{str(path)!r} {what}", WRITTEN, details)
