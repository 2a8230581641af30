"""``onnx-gpt validate``: parity of any two models, at any time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from exporter.errors import Exit
from onnx_gpt.commands._limits import limits_from
from onnx_gpt.commands._show import echo, progress_bar, show_parity
from onnx_gpt.validation import plan_comparison, run_comparison


def validate(
    model: str,
    /,
    *,
    against: str,
    max_kl: float | None = None,
    min_top1: float | None = None,
    max_perplexity_ratio: float | None = None,
    text: Path | None = None,
    tokens: int = 2048,
    skip: str = "",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Measure a model's parity with another. Exit status 5 where it fails the limits.

    Each is a checkpoint's folder, a .gguf, .pt or .onnx file (anyone's), a bundle's folder, hf:org/name,
    module:package.module:factory, or sample:tiny / sample:smollm2.

    Parameters
    ----------
    model
        The candidate.
    against
        The reference.
    max_kl
        Largest mean KL divergence, nats a token. The default is that of the scheme and the model's size.
    min_top1
        Smallest share of tokens with the same top choice, 0 to 1.
    max_perplexity_ratio
        Largest perplexity, as a multiple of the reference's.
    text
        UTF-8 file to evaluate on; held-out English of Python's own documentation by default.
    tokens
        Tokens to evaluate on, at least.
    skip
        Cases that are not to be run, "left_padding,window"; the result says so.
    json
        Print the result as JSON (docs/parity.md).
    """
    limits = limits_from(max_kl=max_kl, min_top1=min_top1, max_perplexity_ratio=max_perplexity_ratio)
    plan = plan_comparison(model, against, limits)
    left_out = tuple(name.strip() for name in skip.split(",") if name.strip())
    echo("validate", plan.echo())
    with progress_bar() as bar:
        parity = run_comparison(plan, text=text, tokens=tokens, skip=left_out, progress=bar)
    if json:
        print(parity.model_dump_json(indent=2, by_alias=True))
    else:
        show_parity(parity)
    return Exit.PARITY if parity.verdict == "fail" else Exit.DONE
