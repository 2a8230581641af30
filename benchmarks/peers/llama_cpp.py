"""llama.cpp through llama-cpp-python: it runs a GGUF as it is, so nothing is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import CONTEXT, STEPS, THREADS, TOKEN, main, prompt, time_decoder, write_logits


def logits(model: Path, tokens: Path, out: Path) -> None:
    import numpy as np

    llama = _load(model, logits_all=True)

    def logits_of(window: Any) -> Any:
        llama.reset()
        llama.eval(window.tolist())
        return np.asarray(llama.scores[: len(window)])

    write_logits(tokens, out, logits_of)


def speed(model: Path) -> dict[str, float]:
    llama = _load(model, logits_all=False)

    def prefill() -> None:
        llama.reset()
        llama.eval(prompt())

    return time_decoder(prefill, lambda: llama.eval([TOKEN]))


def _load(model: Path, *, logits_all: bool) -> Any:
    from llama_cpp import Llama

    return Llama(
        str(model),
        n_ctx=CONTEXT + 2 * STEPS,
        n_batch=CONTEXT,
        n_ubatch=CONTEXT,
        n_threads=THREADS,
        n_threads_batch=THREADS,
        logits_all=logits_all,
        verbose=False,
    )


if __name__ == "__main__":
    main(logits=logits, speed=speed)
