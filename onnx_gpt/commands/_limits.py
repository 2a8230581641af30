"""The gate's thresholds from flags: what is not given is the scheme's default."""

from __future__ import annotations

from onnx_gpt.parity.gate import DEFAULT_LIMITS
from onnx_gpt.report import Limits


def limits_from(
    scheme: str, max_kl: float | None, min_top1: float | None, max_perplexity_ratio: float | None
) -> Limits:
    given = {"max_kl": max_kl, "min_top1": min_top1, "max_perplexity_ratio": max_perplexity_ratio}
    return DEFAULT_LIMITS[scheme].model_copy(update={k: v for k, v in given.items() if v is not None})
