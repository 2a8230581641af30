"""Optimum: a Hugging Face folder traced by torch's exporter to fp32 ONNX; and its runtime, for folders of ours."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import main, making


def make(source: Path, out: Path) -> None:
    from optimum.exporters.onnx import main_export

    main_export(str(source), str(out), task="text-generation-with-past", do_validation=False)


def serve() -> None:
    """Answer each line ``{"folder", "prompt", "count"}`` on stdin by a line of `generated`, or ``{"error"}``."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        for line in sys.stdin:
            job = json.loads(line)
            try:
                answer = generated(job["folder"], job["prompt"], job["count"])
            except Exception as error:  # whatever the runtime says is the answer
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)


def generated(folder: str, prompt: list[int], count: int) -> dict[str, Any]:
    """Greedy tokens of a folder in ORTModelForCausalLM, seconds of the first, and of each decode step."""
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    model = ORTModelForCausalLM.from_pretrained(folder, local_files_only=True)
    ids = torch.tensor([prompt])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    taken = []
    for length in (1, count):  # the first is the prompt's share
        start = time.perf_counter()
        out = model.generate(**inputs, max_new_tokens=length, do_sample=False, pad_token_id=0)
        taken.append(time.perf_counter() - start)
    tokens = out[0, len(prompt) :].tolist()
    return {"tokens": tokens, "first": taken[0], "seconds": (taken[1] - taken[0]) / max(1, len(tokens) - 1)}


if __name__ == "__main__":
    main(make=making(make), serve=serve)
