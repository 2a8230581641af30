"""``module:package.module:factory``: the user's own nn.Module, exported by torch.

The factory is the user's code, imported because the user named it; nothing of a checkpoint is ever executed. What it
prints goes to stderr: stdout is for results.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from exporter.checkpoint import ModuleSource
from exporter.errors import Exit, OnnxGptError, rejected
from exporter.onnx_format.reader import take_in

PREFIX = "module:"
BATCH, LENGTH = 2, 7
"""Tokens ``[B, S]`` that a module is traced and tried on."""
SAME = 1e-2
"""Of the largest logit: the most by which logits of the same tokens may differ where others come after them."""
FAILURES = (Exception, SystemExit)
"""What code of the user's may raise, and is no reason to stop without a word."""


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
        with quiet_stdout():
            factory = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError) as error:
        raise rejected(
            "module-unusable",
            f"{uri!r} cannot be imported: {error}",
            "run from the folder that holds the module",
        ) from error
    except FAILURES as error:
        raise failed(f"importing {uri!r}", error, "make the module importable") from error
    if not callable(factory):
        raise rejected(
            "module-unusable", f"{attribute} of {name} is not callable", "name a function or class"
        )
    return ModuleSource(uri, factory)


def instantiate(source: ModuleSource) -> Any:
    """Call the factory: the module, in float32 and for inference.

    Raises:
        OnnxGptError: ``module-unusable`` where the factory fails or gives something else.
    """
    remedy = (
        "make the factory return a torch.nn.Module, its weights loaded, when it is called without arguments"
    )
    try:
        with quiet_stdout():
            made = source.factory()
    except FAILURES as error:
        raise failed(source.uri, error, remedy) from error
    torch = _torch()
    if not isinstance(made, torch.nn.Module):
        raise rejected("module-unusable", f"{source.uri} gave a {type(made).__name__}, no module", remedy)
    if any(tensor.is_meta for tensor in (*made.parameters(), *made.buffers())):
        raise rejected("module-unusable", f"{source.uri} gave a module without weights, on meta", remedy)
    return getattr(made, "_orig_mod", made).cpu().float().eval()  # as it was before torch.compile


def export(module: Any) -> ir.Model:
    """The module's graph: ``input_ids [batch_size, sequence_length]`` → ``logits``, without a cache.

    Raises:
        OnnxGptError: ``module-not-exportable`` (exit 3) with torch's reason; ``module-unusable`` where it does not run
            or gives other than logits of all tokens; ``reference-missing`` (exit 8).
    """
    torch = _torch()

    class Logits(torch.nn.Module):  # type: ignore[misc, name-defined]  # torch is imported when it is needed
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, tokens: Any) -> Any:
            return logits_in(self.module(tokens))

    tokens = torch.zeros((BATCH, LENGTH), dtype=torch.int64)
    shapes = ({0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length", max=2**20)},)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    refused: BaseException | None = None
    try:
        with warnings.catch_warnings(), quiet_stdout():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                Logits(), (tokens,), dynamo=True, dynamic_shapes=shapes, opset_version=21, verbose=False
            )
    except FAILURES as error:  # torch raises dozens of kinds; all mean that this module cannot be exported
        refused = error
    # Tried afterwards: a table that a module makes when it is first called would be part of the graph otherwise.
    _require_logits(module, tokens)
    if refused is not None:
        raise OnnxGptError(
            "module-not-exportable",
            f"torch.onnx.export refused the module: {_reason(refused)}",
            "make forward(tokens[B, S] int64) → logits[B, S, V] traceable by torch.export with dynamic B and S",
            exit=Exit.UNSUPPORTED,
        ) from refused
    assert program is not None
    model: ir.Model = program.model
    _name_contract(model)
    take_in(model)
    return model


def logits_in(output: Any) -> Any:
    """The logits in what a module's forward gives.

    That is the tensor itself, ``logits`` of a mapping or an object, or the first tensor ``[B, S, V]`` of floats in a
    mapping, list or tuple: ``(logits, loss)`` and ``(loss, logits)`` alike. None where there is none.
    """
    if isinstance(output, Mapping):
        candidates = [output["logits"]] if "logits" in output else list(output.values())
    elif hasattr(output, "logits"):
        candidates = [output.logits]
    else:
        candidates = list(output) if isinstance(output, list | tuple) else [output]
    return next((item for item in candidates if _is_logits(item)), None)


def failed(what: str, error: BaseException, remedy: str) -> OnnxGptError:
    """The refusal of code of the user's that raised something."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return rejected(
        "module-unusable", f"{what} failed: {type(error).__name__}: {lines[0] if lines else ''}", remedy
    )


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Let what code of the user's prints go to stderr, and what libraries and programs that it calls print."""
    sys.stdout.flush()
    try:
        own = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of the two is closed
        own = -1
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if own >= 0:
            os.dup2(own, 1)
            os.close(own)


def _is_logits(value: Any) -> bool:
    return getattr(value, "ndim", None) == 3 and bool(value.is_floating_point())


def _require_logits(module: Any, tokens: Any) -> None:
    """Run the module thrice: it has to give logits of all tokens, of fewer too the same, and the same ones again.

    Raises:
        OnnxGptError: ``module-unusable``.
    """
    torch = _torch()
    remedy = "make forward(tokens[B, S] int64) return logits[B, S, V], alone or as `logits` or first of what it returns"
    name = type(module).__name__
    given = []
    for part in (tokens, tokens[:1, :-2], tokens):
        try:
            with torch.no_grad(), quiet_stdout():
                output = module(part)
        except FAILURES as error:
            raise failed(f"{name} on tokens {list(part.shape)}", error, remedy) from error
        logits = logits_in(output)
        if logits is None:
            what = getattr(output, "shape", type(output).__name__)
            raise rejected("module-unusable", f"{name} gives no logits [B, S, V], but {what!s:.80}", remedy)
        if logits.shape[:2] != part.shape:
            raise rejected(
                "module-unusable",
                f"{name} gives {list(logits.shape)} for tokens {list(part.shape)}, not logits of every token",
                "return the logits of all positions: nanoGPT's forward cuts all but the last one off, x[:, [-1], :]",
            )
        given.append(logits)
    if not torch.equal(given[0].nan_to_num(), given[2].nan_to_num()):
        raise rejected(
            "module-unusable",
            f"{name} gives other logits when it is called again with the same tokens",
            "leave dropout to training, F.dropout(x, p, training=self.training), and keep no state between calls",
        )
    long, short = given[0][:1, : given[1].shape[1]].nan_to_num(), given[1].nan_to_num()
    if (long - short).abs().max() > SAME * long.abs().max():
        raise rejected(
            "module-unusable",
            f"{name} gives other logits for {short.shape[1]} tokens when others come after them",
            "let every token see itself and those before it alone, and do the same whatever the length",
        )


def _reason(error: BaseException) -> str:
    """The first line of what is at the bottom of an error of torch's, which speaks of its own steps at the top."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise OnnxGptError(
            "reference-missing",
            "exporting an nn.Module needs torch",
            "pip install 'onnx-gpt[reference]'",
            exit=Exit.ENVIRONMENT,
        ) from error
    return torch


def _name_contract(model: ir.Model) -> None:
    """Give inputs and outputs the contract's names and literal symbols."""
    tokens, logits = model.graph.inputs[0], model.graph.outputs[0]
    tokens.name, logits.name = "input_ids", "logits"
    batch, length = "batch_size", "sequence_length"
    vocab = logits.shape[-1] if logits.shape is not None else None
    tokens.shape = ir.Shape([batch, length])
    logits.shape = ir.Shape([batch, length, vocab if isinstance(vocab, int) else "vocab_size"])
    model.producer_name = "onnx-gpt"
