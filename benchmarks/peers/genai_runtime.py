"""onnxruntime-genai: its own loop over a folder with genai_config.json, the builder's and ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import CONTEXT, STEPS, THREADS, main, prompt, time_decoder


class Decoder:
    """Greedy text of a model, as a user's program would ask for it."""

    def __init__(self, model: Path) -> None:
        import onnxruntime_genai as og

        config = og.Config(str(model))
        session = {"intra_op_num_threads": THREADS}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = og.Model(config)

    def prefill(self) -> None:
        """Read the prompt and choose the first token; no text ends before it is as long as it may become."""
        import onnxruntime_genai as og

        parameters = og.GeneratorParams(self.model)
        length = CONTEXT + 2 * STEPS
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
        self.generator: Any = og.Generator(self.model, parameters)
        self.generator.append_tokens(prompt())
        self.generator.generate_next_token()

    def step(self) -> None:
        self.generator.generate_next_token()


def speed(model: Path) -> dict[str, float]:
    decoder = Decoder(model)
    return time_decoder(decoder.prefill, decoder.step)


if __name__ == "__main__":
    main(speed=speed)
