"""CodeGen (Nijkamp et al. 2022): GPT-J with q, k and v in one tensor, as four machines that trained it held them."""

from __future__ import annotations

from typing import Self

import pydantic

from exporter.decoder import Decoder, Linear
from exporter.families import _gpt, gptj
from exporter.families._blocks import linear
from exporter.families._rows import thirds

ARCHITECTURES = ("CodeGenForCausalLM",)
IGNORED = _gpt.IGNORED
MACHINES = 4
"""Each held a quarter of the rows of q, then of v, then of k."""


class Config(gptj.Config):
    @pydantic.model_validator(mode="after")
    def _quarters_fit(self) -> Self:
        if self.n_embd % MACHINES:
            raise ValueError(f"n_embd {self.n_embd} is no multiple of {MACHINES}")
        return self


def describe(config: Config) -> Decoder:
    hidden = config.n_embd

    def projections(at: str) -> list[Linear]:
        q, v, k = thirds(linear(f"{at}.qkv_proj", 3 * hidden, hidden), MACHINES)
        return [q, k, v]

    return gptj.parallel_decoder("codegen", config, projections)
