"""``onnx-gpt optimize``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from onnx_gpt.commands._limits import limits_from
from onnx_gpt.commands._show import echo, progress_bar, show_report
from onnx_gpt.parity.gate import gate_of
from onnx_gpt.pipeline import run
from onnx_gpt.recipe import Recipe


def optimize(
    source: str,
    /,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    quantize: Literal["none", "int8", "int4", "w8a8", "keep"] = "none",
    block_size: int | None = None,
    table_bits: Literal[4, 8] | None = None,
    target: str = "ort",
    context_length: int | None = None,
    parity: Annotated[bool, Parameter(negative="--no-parity")] = True,
    max_kl: float | None = None,
    min_top1: float | None = None,
    max_perplexity_ratio: float | None = None,
    text: Path | None = None,
    tokens: int = 2048,
    kv_cache: Literal["float", "int8"] = "float",
    verify: Annotated[bool, Parameter(negative="--no-verify")] = True,
    calibration: Path | None = None,
    passes: str | None = None,
    method: Literal["rtn", "gptq"] | None = None,
    mixed: str = "",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Turn a trained decoder into a fused, quantized bundle that is proven against PyTorch.

    Nothing is published where parity fails (exit status 5) or anything else goes wrong.

    Parameters
    ----------
    source
        Checkpoint directory, .gguf, .pt, .onnx, hf:org/name, module:package.module:factory, sample:tiny or :smollm2.
    out
        Directory to make. It must not exist.
    quantize
        none: float32. int8, int4: weights only, symmetric. keep: a GGUF's own codes, as they are.
        w8a8: weights and activations, by scales from calibration text: the fastest for long prompts.
    block_size
        Columns that share a scale: 16, 32, 64, 128 or 256. Smaller is more accurate, larger is smaller and faster.
    table_bits
        Width of the embedding and head, that of the layers by default. 8 with int4 loses a quarter less.
    target
        Runtimes, separated by commas: ort, genai. Several are written to one folder each.
    context_length
        Largest number of tokens the bundle can hold; the model's own by default.
    parity
        Compare with PyTorch on text, or leave the report saying "not run".
    max_kl
        Gate: largest mean KL divergence, nats a token.
    min_top1
        Gate: smallest share of tokens with the same top choice, 0 to 1.
    max_perplexity_ratio
        Gate: largest perplexity, as a multiple of the reference's.
    text
        UTF-8 file to evaluate on; held-out English of Python's own documentation by default.
    tokens
        Tokens to evaluate on, at least.
    kv_cache
        int8: keys and values take a quarter of the memory, scaled by channel from calibration text.
    calibration
        Text that gptq chooses codes on and an int8 cache is scaled by: .txt, .jsonl, .parquet, .npy, a folder. Python's
        documentation by default.
    method
        How int4 and int8 choose their codes. rtn: round to nearest. gptq: for the least error of each layer on
        calibration text; the default where --calibration is given.
    mixed
        Other widths for some roles, ROLE=BITS or ROLE=BITS/BLOCK: "attention.v=8,ffn.down=8/128".
    passes
        Pipeline to run instead of the target's own: names and options, "fold, attention, opset{version=21}".
    verify
        Run what every pass takes away and what it puts there on the same data, and compare.
    json
        Print the report as JSON.
    """
    limits = limits_from(gate_of(quantize, kv_cache), max_kl, min_top1, max_perplexity_ratio)
    targets = tuple(name.strip() for name in target.split(",") if name.strip())
    recipe = Recipe(
        quantize,
        block_size,
        table_bits,
        targets,
        context_length,
        parity,
        limits,
        text,
        tokens,
        kv_cache,
        verify,
        calibration,
        passes,
        method,
        mixed,
    )
    echo(f"optimize {source} → {out}", recipe.echo())
    with progress_bar() as bar:
        report = run(source, out, recipe, bar)
    if json:
        print(report.json_text(), end="")
    else:
        show_report(report, out)
    return 0
