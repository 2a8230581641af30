"""How fast a bundle is: loading, prefill, and decode at a context, through the public `Generator`."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from exporter.errors import Exit, OnnxGptError
from onnx_gpt.generation.generator import Generator
from onnx_gpt.report import peak_rss_bytes

T = TypeVar("T")

LENGTH = 512
"""Tokens of the prefill, and before the steps, that are timed where the model's context holds as many."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of the repeats."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclasses.dataclass(frozen=True)
class Bench:
    """What was measured.

    Attributes:
        cache: ``shared`` (one KV buffer in place), ``growing`` or ``none``.
        threads: as asked for; None for onnxruntime's choice.
        prefill_tokens_per_second: prompt tokens over the time to the logits of the last one.
        first_token_seconds: from the prompt to the first token, chosen greedily.
        decode_tokens_per_second: greedy steps after ``context`` tokens.
        load_seconds: from the folder to a generator that is ready.
        peak_rss_bytes: of this process so far, whatever else it has done.
    """

    bundle: str
    cache: str
    threads: int | None
    prompt_tokens: int
    new_tokens: int
    context: int
    repeats: int
    load_seconds: float
    prefill_tokens_per_second: Spread
    first_token_seconds: Spread
    decode_tokens_per_second: Spread
    peak_rss_bytes: int


def bench(
    bundle: str | Path,
    *,
    prompt_tokens: int | None = None,
    new_tokens: int = 64,
    context: int | None = None,
    repeats: int = 5,
    threads: int | None = None,
) -> Bench:
    """Measure a bundle. Tokens are random and the same each time; one unmeasured round goes before.

    Args:
        prompt_tokens: length of the prefill that is timed; `LENGTH`, or what fits, by default.
        new_tokens: steps that are timed.
        context: tokens before the first of these steps; the same.
        repeats: rounds.
        threads: the physical cores by default.

    Raises:
        OnnxGptError: ``bench-invalid`` (exit 2), ``prompt-too-long``, or what `Generator` raises.
    """
    given = (number for number in (prompt_tokens, new_tokens, context, repeats) if number is not None)
    if min(given) < 1:
        raise OnnxGptError(
            "bench-invalid",
            "prompt_tokens, new_tokens, context and repeats must be at least 1",
            "give numbers above 0",
            exit=Exit.USAGE,
        )
    load_seconds, generator = _timed(lambda: Generator(bundle, threads=threads))
    most = generator.max_length or LENGTH + new_tokens
    prompt_tokens = prompt_tokens or min(LENGTH, most)
    context = context or max(1, min(LENGTH, most - new_tokens))
    longest = max(prompt_tokens, context + new_tokens)
    vocab_size = generator.session.vocab_size or 1
    tokens = np.random.default_rng(0).integers(0, vocab_size, longest).tolist()
    _round(generator, tokens[:prompt_tokens], tokens[:context], new_tokens)
    rounds = [_round(generator, tokens[:prompt_tokens], tokens[:context], new_tokens) for _ in range(repeats)]
    prefill, first, decode = zip(*rounds, strict=True)
    return Bench(
        bundle=str(bundle),
        cache=generator.session.cache,
        threads=threads,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        context=context,
        repeats=repeats,
        load_seconds=load_seconds,
        prefill_tokens_per_second=Spread.of([prompt_tokens / seconds for seconds in prefill]),
        first_token_seconds=Spread.of(first),
        decode_tokens_per_second=Spread.of([new_tokens / seconds for seconds in decode]),
        peak_rss_bytes=peak_rss_bytes(),
    )


def _round(
    generator: Generator, prompt: Sequence[int], context: Sequence[int], new_tokens: int
) -> tuple[float, float, float]:
    """Seconds to the prompt's logits, to its first token, and of ``new_tokens`` steps after the context."""
    generator.reset()
    prefill, logits = _timed(lambda: generator.prefill(prompt))
    choice, token = _timed(lambda: int(logits.argmax()))
    if len(context) != len(prompt):
        generator.reset()
        token = int(generator.prefill(context).argmax())
    generator.session.reserve(len(context) + new_tokens)
    start = time.perf_counter()
    for _ in range(new_tokens):
        token = int(generator.step(token).argmax())
    return prefill, prefill + choice, time.perf_counter() - start


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result
