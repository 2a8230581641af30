"""What a peer's file answers on its command line.

    make SOURCE OUT              make the artifact, print {"seconds", "peak_rss_bytes", "files"}
    logits MODEL TOKENS OUT      TOKENS int64 [N, S] → OUT float32 [N, S, V], both .npy
    speed MODEL                  print {"prefill_tokens_per_second", "decode_tokens_per_second",
                                        "decode_processor_seconds"}

Only what every environment has is imported here: the standard library, and numpy where logits are written.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

THREADS = int(os.environ.get("BENCHMARK_THREADS", "2"))
"""One thread is for a busy machine: processor time says what the work is, where two threads wait for each other."""
CONTEXT = int(os.environ.get("BENCHMARK_CONTEXT", "512"))
"""Tokens of the prefill, and of the context in which decoding starts."""
STEPS = 64
"""Decode steps that are timed."""

TOKEN = 1000
"""What is fed at each timed step: the work does not depend on it."""

Command = Callable[..., Any]


def prompt() -> list[int]:
    """The CONTEXT token ids of the timed prefill."""
    return list(range(TOKEN, TOKEN + CONTEXT))


def main(**commands: Command) -> None:
    """Call the command that the first argument names with the paths that follow; print its result as JSON."""
    name, *arguments = sys.argv[1:]
    result = commands[name](*map(Path, arguments))
    if result is not None:
        print(json.dumps(result))


def making(make: Callable[[Path, Path], None]) -> Command:
    """Wrap a function that makes OUT from SOURCE so that it reports what it took."""

    def timed(source: Path, out: Path) -> dict[str, Any]:
        start = time.perf_counter()
        make(source, out)
        unit = 1 if sys.platform == "darwin" else 1024
        return {
            "seconds": time.perf_counter() - start,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
            "files": {
                str(f.relative_to(out)): f.stat().st_size for f in sorted(out.rglob("*")) if f.is_file()
            },
        }

    return timed


def write_logits(tokens: Path, out: Path, logits_of: Callable[[Any], Any]) -> None:
    """Run windows one by one; ``logits_of`` maps int64 ``[S]`` to float32 ``[S, V]``, nothing before it."""
    import numpy as np

    windows = np.load(tokens)
    sink = None
    for index, window in enumerate(windows):
        logits = logits_of(window)
        if sink is None:
            shape = (len(windows), *logits.shape)
            sink = np.lib.format.open_memmap(out, mode="w+", dtype=np.float32, shape=shape)
        sink[index] = logits


def time_decoder(prefill: Callable[[], object], step: Callable[[], object]) -> dict[str, float]:
    """Tokens per second of one prefill of CONTEXT tokens, then of STEPS single tokens, and a step's processor time.

    ``prefill`` starts from an empty cache each time. The first one warms up, with a few steps, uncounted.
    """
    prefill()
    for _ in range(4):
        step()
    start = time.perf_counter()
    prefill()
    prefilled, used = time.perf_counter(), time.process_time()
    for _ in range(STEPS):
        step()
    done, taken = time.perf_counter(), time.process_time() - used
    return {
        "prefill_tokens_per_second": CONTEXT / (prefilled - start),
        "decode_tokens_per_second": STEPS / (done - prefilled),
        "decode_processor_seconds": taken / STEPS,
    }
