"""OpenVINO through optimum-intel and NNCF: a Hugging Face folder to int8 weights, or float ones (``make_float``).

OpenVINO itself runs what comes of it, and `openvino` bundles of ours, with the cache as its own state in both.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import THREADS, TOKEN, main, making, prompt, time_decoder, write_logits

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "openvino_llm.py"


def make(source: Path, out: Path) -> None:
    from optimum.intel import OVWeightQuantizationConfig

    _export(source, out, OVWeightQuantizationConfig(bits=8))


def make_float(source: Path, out: Path) -> None:
    _export(source, out, None)


def _export(source: Path, out: Path, weights: Any) -> None:
    from optimum.intel import OVModelForCausalLM

    model = OVModelForCausalLM.from_pretrained(
        str(source), export=True, compile=False, quantization_config=weights
    )
    model.save_pretrained(str(out))


class Decoder:
    """A model whose cache stays inside between calls: a folder of optimum-intel's, or a bundle of ours."""

    def __init__(self, model: Path) -> None:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"}
        file = model / "openvino_model.xml"
        if file.exists():
            read = openvino.Core().read_model(file)
        else:
            read = runpy.run_path(str(SAMPLE))["stateful"](model / "model.onnx")
        compiled = openvino.Core().compile_model(read, "CPU", settings)
        self.positions = any(value.any_name == "position_ids" for value in compiled.inputs)
        self.request = compiled.create_infer_request()
        self.reset()

    def reset(self) -> None:
        self.request.reset_state()
        self.past = 0

    def append(self, tokens: Any) -> Any:
        """Logits ``[S, V]`` of new tokens."""
        import numpy as np

        ids = np.asarray(tokens, np.int64)[None]
        total = self.past + ids.shape[1]
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones((1, total), np.int64),
            "beam_idx": np.zeros(1, np.int32),
        }
        if self.positions:
            feeds["position_ids"] = np.arange(self.past, total, dtype=np.int64)[None]
        self.past = total
        return self.request.infer(feeds, share_inputs=True, share_outputs=True)["logits"][0]


def logits(model: Path, tokens: Path, out: Path) -> None:
    decoder = Decoder(model)

    def logits_of(window: Any) -> Any:
        decoder.reset()
        return decoder.append(window)

    write_logits(tokens, out, logits_of)


def speed(model: Path) -> dict[str, float]:
    decoder = Decoder(model)

    def prefill() -> None:
        decoder.reset()
        decoder.append(prompt())

    return time_decoder(prefill, lambda: decoder.append([TOKEN]))


if __name__ == "__main__":
    main(make=making(make), make_float=making(make_float), logits=logits, speed=speed)
