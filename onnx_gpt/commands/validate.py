"""``onnx-gpt validate``: parity of any two models, at any time."""

from __future__ import annotations

from exporter.errors import Exit
from onnx_gpt.commands._flags import Json, Text, Tokens
from onnx_gpt.commands._settings import NONE, Thresholds
from onnx_gpt.commands._show import echo, progress_bar, show_parity
from onnx_gpt.recipe_file import checked
from onnx_gpt.validation import plan_comparison, run_comparison


def validate(
    model: str,
    /,
    *,
    against: str,
    limits: Thresholds = NONE,
    text: Text = None,
    tokens: Tokens = 2048,
    skip: str = "",
    json: Json = False,
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
    skip
        Cases that are not to be run, "left_padding,window"; the result says so.
    """
    stated = checked({"limits": limits}, "the limits")["limits"] if limits else None
    plan = plan_comparison(model, against, stated)
    left_out = tuple(name.strip() for name in skip.split(",") if name.strip())
    echo("validate", plan.echo())
    with progress_bar() as bar:
        parity = run_comparison(plan, text=text, tokens=tokens, skip=left_out, progress=bar)
    if json:
        print(parity.model_dump_json(indent=2, by_alias=True))
    else:
        show_parity(parity)
    return Exit.PARITY if parity.verdict == "fail" else Exit.DONE
