"""Any contender that is an ONNX decoder, run by the public `onnx_gpt.Generator` on plain onnxruntime.

python -m benchmarks.onnx_model logits MODEL TOKENS.npy LOGITS.npy
python -m benchmarks.onnx_model speed MODEL
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.protocol import CONTEXT, STEPS, THREADS, TOKEN, main, prompt, time_decoder, write_logits
from onnx_gpt import Generator


def logits(model: Path, tokens: Path, out: Path) -> None:
    generator = Generator(model, threads=THREADS)

    def logits_of(window: np.ndarray) -> Any:
        generator.reset()
        return generator.prefill(window.tolist(), every=True)

    write_logits(tokens, out, logits_of)


def speed(model: Path) -> dict[str, float]:
    generator = Generator(model, threads=THREADS)

    def prefill() -> None:
        generator.reset()
        generator.session.reserve(CONTEXT + STEPS)
        generator.prefill(prompt())

    return time_decoder(prefill, lambda: generator.step(TOKEN))


if __name__ == "__main__":
    main(logits=logits, speed=speed)
