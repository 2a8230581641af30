"""The gate's thresholds from flags: what is not given is the default for the scheme and the size of the model."""

from __future__ import annotations

from onnx_gpt.report import Limits


def limits_from(
    max_kl: float | None, min_top1: float | None, max_perplexity_ratio: float | None
) -> Limits | None:
    """None where no flag is given."""
    limits = Limits(max_kl=max_kl, min_top1=min_top1, max_perplexity_ratio=max_perplexity_ratio)
    return None if limits == Limits() else limits
