"""Every target for every family: does the bundle load in its real runtime, and does it say the right thing?

    python -m benchmarks.targets [--only TARGET] [--family NAME] [--model smollm2] [--json]

Models are tiny random ones of every family (tests/tiny.py), written as checkpoints, and sample:tiny; `--model smollm2`
adds SmolLM2. Each bundle is made by `optimize --no-parity`, float and int8, and opened by what the target is for: plain
onnxruntime, onnxruntime-genai, transformers.js in Node, onnxruntime's .ort loader and its reader of model packages,
OpenVINO, Optimum in its own environment. 32 greedy tokens are compared: those of float bundles with PyTorch's fp32
model, those of int8 ones with our runner on the same graph, activations left in float where the runtime leaves them
so. A sample with a chat template answers a message.

The whole table goes to results/targets.json, into docs/targets.md and, shorter, into README.md; with `--only` or
`--family`, nowhere but stdout.
A cell that this run did not reach says "not run".
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measure import Row, parser, publish, say, size_of
from benchmarks.runtimes import RUNTIMES, Answer, NotHereError, Runtime
from benchmarks.target_table import TOKENS, matrix, write_sections
from exporter.errors import Exit, OnnxGptError
from tests.onnx_gpt.device_runtimes import unrounded

if TYPE_CHECKING:
    from exporter.checkpoint import Checkpoint

WEIGHTS = ("float", "int8")
TEXT = "The class statement defines"
PROMPT = 8
"""Tokens of a random model's prompt."""
PROMPTS = 16
"""Prompts that a random model's is chosen from."""
SAMPLES = {"tiny": "sample:tiny", "smollm2": "sample:smollm2"}


@dataclass(frozen=True)
class Model:
    """A source, and what the fp32 model says.

    Attributes:
        source: what ``optimize`` takes.
        prompt: token ids.
        tokens: the reference's, up to the end of text.
        eos: tokens that end a text.
        margin: the least by which the reference prefers one of its tokens to every other, in logits.
    """

    name: str
    source: str
    prompt: list[int]
    tokens: list[int]
    eos: frozenset[int]
    margin: float


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--only", choices=tuple(RUNTIMES), help="one target")
    options.add_argument("--family", help="one family, or tiny for sample:tiny")
    options.add_argument("--model", choices=("smollm2",), help="SmolLM2 too (minutes)")
    chosen = options.parse_args()
    wanted = [name for name in RUNTIMES if chosen.only in (None, name)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="targets-") as home:
        for name, prepare in models(chosen.family, chosen.model, Path(home)):
            try:
                model = prepare()
            except Exception as error:  # the table goes on, and says which model it is about
                rows += [
                    _row(name, target, weights, failed=_first(error))
                    for target in wanted
                    for weights in WEIGHTS
                ]
                continue
            rows += [cell(model, target, weights) for weights in WEIGHTS for target in wanted]
    failed = {f"{r['model']} {r['weights']} {r['target']}": r["why"] for r in rows if r["verdict"] in BAD}
    whole = not (chosen.only or chosen.family)
    if whole and chosen.model is None:
        why = "only with --model smollm2"
        rows += [
            _row("sample:smollm2", target, weights, "not run", why=why)
            for weights in WEIGHTS
            for target in RUNTIMES
        ]
    document = {"tables": {"matrix": matrix(rows), "cells": rows}, "failed": failed}
    status = publish("targets", document, as_json=chosen.json, partial=not whole)
    if whole:
        write_sections(rows)
    return status


# Models ---------------------------------------------------------------------------------------------------


def models(family: str | None, more: str | None, home: Path) -> Iterator[tuple[str, Callable[[], Model]]]:
    """Names, and functions that make them."""
    from exporter.families import families

    for name in sorted(families()):
        if family in (None, name):
            yield name, partial(random_model, name, home)
    for name in ("tiny", *([more] if more else [])):
        if family in (None, name) or name == more:
            yield f"sample:{name}", partial(sample, name)


def random_model(family: str, home: Path) -> Model:
    """A tiny model of a family as a folder, with a tokenizer, and the prompt of the longest text with no close call."""
    from exporter.writing import write_checkpoint
    from tests.tiny import tiny

    checkpoint = tiny(family)
    files = {"tokenizer.json": letters(checkpoint.config["vocab_size"]), "tokenizer_config.json": b"{}"}
    folder = home / family
    folder.mkdir()
    write_checkpoint(folder, dataclasses.replace(checkpoint, files=files))
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, checkpoint.config["vocab_size"], (PROMPTS, PROMPT)).tolist()
    found = [_referred(family, str(folder), prompt) for prompt in prompts]
    going = [model for model in found if not model.eos & set(model.prompt)]  # genai ends there
    return max(going, key=lambda model: (len(model.tokens), model.margin))


def letters(count: int) -> bytes:
    """A tokenizer.json of one letter for each token, those of ASCII first."""
    from tokenizers import Tokenizer, models

    return Tokenizer(models.BPE({chr(0x20 + i): i for i in range(count)}, [])).to_str().encode()


def sample(name: str) -> Model:
    """A sample's model, and a text; a message where it has a chat template."""
    from tokenizers import Tokenizer

    from onnx_gpt.generation.chat import chat_template
    from onnx_gpt.generation.prompt import encode

    files = _loaded(SAMPLES[name]).files
    chat = chat_template(json.loads(files["tokenizer_config.json"]), None)
    prompt = TEXT if chat is None else [{"role": "user", "content": TEXT}]
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    return _referred(f"sample:{name}", SAMPLES[name], encode(prompt, tokenizer, chat))


def _referred(name: str, source: str, prompt: list[int]) -> Model:
    from exporter.reference import Reference

    checkpoint = _loaded(source)
    stated = checkpoint.config.get("eos_token_id")
    eos = frozenset([stated] if isinstance(stated, int) else stated or [])
    reference = Reference(checkpoint)
    tokens = ended(reference.greedy(np.array(prompt, np.int64), TOKENS), eos)
    logits = reference.logits(np.array([prompt + tokens[:-1]], np.int64))[0, len(prompt) - 1 :]
    second, first = np.sort(logits, axis=-1)[:, -2:].T
    return Model(name, source, prompt, tokens, eos, float((first - second).min()))


def _loaded(source: str) -> Checkpoint:
    from exporter import sources
    from exporter.checkpoint import Checkpoint

    loaded = sources.load(source)
    assert isinstance(loaded, Checkpoint)
    return loaded


def ended(tokens: Sequence[int], eos: frozenset[int]) -> list[int]:
    """Tokens up to the first that ends the text, that one too: some runtimes stop there, others go on."""
    last = next((i for i, token in enumerate(tokens) if token in eos), len(tokens))
    return [int(token) for token in tokens[: last + 1]]


# Cells ----------------------------------------------------------------------------------------------------

BAD = ("not made", "fails", "differs")
"""Verdicts that fail the run; ``refused`` is an error that says so: this runtime cannot run such a model."""


def cell(model: Model, target: str, weights: str) -> Row:
    """One bundle, made, opened and compared."""
    say(f"{model.name} {weights}: {target}")
    runtime = RUNTIMES[target]
    with tempfile.TemporaryDirectory(prefix="target-") as folder:
        bundle = Path(folder) / "bundle"
        try:
            made(model.source, bundle, runtime.model[weights], weights, runtime)
        except OnnxGptError as error:
            verdict = "refused" if error.exit is Exit.UNSUPPORTED else "not made"
            return _row(model.name, target, weights, verdict, why=_first(error))
        except Exception as error:  # a cell is one fact; the table goes on
            return _row(model.name, target, weights, failed=_first(error))
        row: Row = {"MB": _megabytes(bundle)}
        path = runtime.path[weights]
        try:
            answer = runtime.generate(path)(bundle, model.prompt, TOKENS)
        except NotHereError as error:
            return _row(model.name, target, weights, "not run", why=str(error), **row)
        except Exception as error:
            return _row(model.name, target, weights, "fails", why=_first(error), **row)
        graph = bundle / path
        if runtime.graph is not None:
            other = Path(folder) / "graph"
            made(model.source, other, runtime.graph, weights, RUNTIMES[runtime.graph])
            graph = other / "model.onnx"
        if not runtime.rounds:
            graph = unrounded(graph)
        row |= compared(model, answer, graph, weights)
    return _row(model.name, target, weights, **row)


def made(source: str, out: Path, target: str, weights: str, runtime: Runtime) -> None:
    import onnx_gpt

    quantized: dict[str, Any] = {"quantize": weights} if weights != "float" and runtime.quantized else {}
    if weights == "float" and runtime.quantized:
        quantized = {"quantize": "none"}
    onnx_gpt.optimize(source, out, target=target, parity=False, **quantized)


def compared(model: Model, answer: Answer, graph: Path, weights: str) -> Row:
    """Tokens beside those expected; where they part, how far apart our runner's logits of the two are."""
    from onnx_gpt.parity.candidate import Candidate

    candidate = Candidate(graph)
    prompt = np.array(model.prompt, np.int64)
    wanted = model.tokens if weights == "float" else ended(candidate.greedy(prompt, TOKENS), model.eos)
    found = ended(answer.tokens, model.eos)
    pairs = zip(found, wanted, strict=False)
    equal = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(wanted)))
    row: Row = {"equal": equal, "of": len(wanted)}
    if answer.first is not None and answer.first > 0:
        row["prefill tok/s"] = round(len(prompt) / answer.first, 1)
    if answer.step is not None and answer.step > 0:
        row["decode tok/s"] = round(1 / answer.step, 1)
    if found == wanted:
        return row | {"verdict": "equal"}
    if equal == len(found) or equal == len(wanted):
        return row | {"verdict": "differs", "why": f"{len(found)} tokens, not {len(wanted)}"}
    logits = candidate.logits(np.array([model.prompt + wanted[:equal]]))[0, -1]
    gap = float(logits[wanted[equal]] - logits[found[equal]])
    return row | {"verdict": "differs", "why": f"token {equal + 1}: {gap:.3f} between the two logits"}


def _row(
    model: str,
    target: str,
    weights: str,
    verdict: str | None = None,
    *,
    failed: str | None = None,
    **facts: Any,
) -> Row:
    keys = ("verdict", "equal", "of", "MB", "prefill tok/s", "decode tok/s", "why")
    given = {"verdict": "not made" if failed else verdict, "why": failed} | facts
    return {"model": model, "weights": weights, "target": target} | {key: given.get(key) for key in keys}


def _megabytes(bundle: Path) -> float:
    files = sum(path.stat().st_size for path in bundle.rglob("*.ort"))
    data = sum(path.stat().st_size for path in bundle.rglob("*.onnx_data_*"))
    return round((size_of(bundle) + files + data) / 1e6, 3)


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in lines if "Error" in line), lines[0] if lines else "")
    return f"{type(error).__name__}: {said}"[:300]


if __name__ == "__main__":
    sys.exit(main())
