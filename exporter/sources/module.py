"""``module:package.module:factory``: the user's own nn.Module, exported by torch.

The factory is the user's code, imported because the user named it; nothing of a checkpoint is ever executed.
"""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import onnx_ir as ir

from exporter.checkpoint import ModuleSource
from exporter.errors import Exit, OnnxGptError, rejected
from exporter.onnx_format.reader import take_in

PREFIX = "module:"


def claims(uri: str) -> bool:
    return uri.startswith(PREFIX)


def load(uri: str) -> ModuleSource:
    """Import the factory; it is called when the module is needed.

    Raises:
        OnnxGptError: ``module-unusable`` where the name does not lead to a callable.
    """
    name, _, attribute = uri.removeprefix(PREFIX).partition(":")
    if not name or not attribute:
        raise rejected("module-unusable", f"{uri!r} names no factory", "write module:package.module:factory")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        factory = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError) as error:
        raise rejected(
            "module-unusable",
            f"{uri!r} cannot be imported: {error}",
            "run from the folder that holds the module",
        ) from error
    if not callable(factory):
        raise rejected(
            "module-unusable", f"{attribute} of {name} is not callable", "name a function or class"
        )
    return ModuleSource(uri, factory)


def instantiate(source: ModuleSource) -> Any:
    """Call the factory: the module, for inference.

    Raises:
        OnnxGptError: ``module-unusable`` where the factory fails or gives something else.
    """
    try:
        return source.factory().eval()
    except Exception as error:  # the user's code may raise anything
        raise rejected(
            "module-unusable",
            f"{source.uri} failed: {type(error).__name__}: {error}",
            "make the factory return a torch.nn.Module when it is called without arguments",
        ) from error


def export(module: Any) -> ir.Model:
    """The module's graph: ``input_ids [batch_size, sequence_length]`` → ``logits``, without a cache.

    Raises:
        OnnxGptError: ``module-not-exportable`` (exit 3) with torch's reason; ``reference-missing`` (exit 8).
    """
    try:
        import torch
    except ImportError as error:
        raise OnnxGptError(
            "reference-missing",
            "exporting an nn.Module needs torch",
            "pip install 'onnx-gpt[reference]'",
            exit=Exit.ENVIRONMENT,
        ) from error

    tokens = torch.zeros((2, 7), dtype=torch.int64)
    shapes = ({0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length", max=2**20)},)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module, (tokens,), dynamo=True, dynamic_shapes=shapes, opset_version=21, verbose=False
            )
    except Exception as error:  # torch raises dozens of kinds; all mean that this module cannot be exported
        raise OnnxGptError(
            "module-not-exportable",
            f"torch.onnx.export refused the module: {str(error).splitlines()[0]}",
            "make forward(tokens[B, S] int64) → logits[B, S, V] traceable by torch.export with dynamic B and S",
            exit=Exit.UNSUPPORTED,
        ) from error
    assert program is not None
    model: ir.Model = program.model
    _name_contract(model)
    take_in(model)
    return model


def _name_contract(model: ir.Model) -> None:
    """Give inputs and outputs the contract's names and literal symbols."""
    (tokens,), (logits, *_) = model.graph.inputs, model.graph.outputs
    tokens.name, logits.name = "input_ids", "logits"
    batch, length = "batch_size", "sequence_length"
    vocab = logits.shape[-1] if logits.shape is not None else None
    tokens.shape = ir.Shape([batch, length])
    logits.shape = ir.Shape([batch, length, vocab if isinstance(vocab, int) else "vocab_size"])
    model.producer_name = "onnx-gpt"
