"""OpenVINO through optimum-intel and NNCF: a Hugging Face folder to int8 weights, run by OpenVINO itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import THREADS, TOKEN, main, making, prompt, time_decoder, write_logits


def make(source: Path, out: Path) -> None:
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    weights = OVWeightQuantizationConfig(bits=8)
    model = OVModelForCausalLM.from_pretrained(
        str(source), export=True, compile=False, quantization_config=weights
    )
    model.save_pretrained(str(out))


class Decoder:
    """The stateful model: the KV cache stays inside between calls."""

    def __init__(self, model: Path) -> None:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(str(model / "openvino_model.xml"), "CPU", settings)
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
            "position_ids": np.arange(self.past, total, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
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
    main(make=making(make), logits=logits, speed=speed)
