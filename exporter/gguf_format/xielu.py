"""xIELU's numbers, which a GGUF file of Apertus has among its keys and Hugging Face among its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from exporter.families.apertus import CONSTANTS
from exporter.gguf_format.keys import Keys
from exporter.gguf_format.reader import Header
from exporter.match import BFLOAT16
from exporter.weights import Array, Weight

LEARNED = ("alpha_p", "alpha_n")


def require_constants(keys: Keys) -> None:
    """
    Raises:
        OnnxGptError: ``gguf-key-unsupported`` (exit 3) where they are not Hugging Face's, as bfloat16 rounds them.
    """
    for name, constant in CONSTANTS.items():
        stated = keys.header.numbers(f"xielu.{name}")
        if not np.allclose(stated, constant, rtol=BFLOAT16, atol=0):
            raise keys.unsupported([f"xielu.{name} = {stated[:8].tolist()}"])


def xielu(header: Header, config: Mapping[str, Any]) -> Mapping[str, Weight]:
    """Tensors by their Hugging Face names: of each layer two of ``[1]`` that are learned, and two constants."""
    weights: dict[str, Weight] = {}
    for name in (*LEARNED, *CONSTANTS):
        stated = header.numbers(f"xielu.{name}")
        if stated.shape != (config["num_hidden_layers"],):
            raise header.invalid(
                f"xielu.{name} has {stated.size} numbers for {config['num_hidden_layers']} layers"
            )
        shape = (1,) if name in LEARNED else ()
        for i, value in enumerate(stated):
            weights[f"model.layers.{i}.mlp.act_fn.{name}"] = Array(np.full(shape, value, np.float32))
    return weights
