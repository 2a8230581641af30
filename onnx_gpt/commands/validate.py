"""``onnx-gpt validate``: a bundle against its source, at any later time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from exporter.errors import Exit
from onnx_gpt.commands._limits import limits_from
from onnx_gpt.commands._show import progress_bar, show_parity
from onnx_gpt.parity.gate import gate_of
from onnx_gpt.validation import scheme_of_bundle
from onnx_gpt.validation import validate as validate_bundle


def validate(
    bundle: Path,
    /,
    *,
    against: str,
    max_kl: float | None = None,
    min_top1: float | None = None,
    max_perplexity_ratio: float | None = None,
    text: Path | None = None,
    tokens: int = 2048,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Measure a bundle's parity with a source. Exit status 5 where it fails the limits.

    Parameters
    ----------
    bundle
        Folder that optimize made.
    against
        Source to compare with, as optimize takes it.
    max_kl
        Largest mean KL divergence, nats a token.
    min_top1
        Smallest share of tokens with the same top choice, 0 to 1.
    max_perplexity_ratio
        Largest perplexity, as a multiple of the reference's.
    text
        UTF-8 file to evaluate on.
    tokens
        Tokens to evaluate on, at least.
    json
        Print the result as JSON.
    """
    limits = limits_from(gate_of(*scheme_of_bundle(bundle)), max_kl, min_top1, max_perplexity_ratio)
    with progress_bar() as bar:
        bar.stage("parity")
        parity = validate_bundle(bundle, against, limits=limits, text=text, tokens=tokens, progress=bar)
    if json:
        print(parity.model_dump_json(indent=2))
    else:
        show_parity(parity)
    return Exit.PARITY if parity.verdict == "fail" else Exit.DONE
