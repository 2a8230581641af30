"""Which channels of a checkpoint are turned or scaled before its graph is built, from what goes through it on text."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibration.data.windows import Windows, require_apart
from calibration.quantization import awq, bias_correction
from calibration.scheme import BiasCorrected, Static, WeightOnly
from calibration.transforms.rotation import rotated
from calibration.transforms.scaling import Scales, givers, of_giver, of_readers, scaled
from calibration.transforms.smoothing import SMOOTHED, smooth
from calibration.walking import GIVERS
from exporter.checkpoint import Opened
from exporter.decoder import Decoder
from exporter.errors import unsupported
from exporter.weights import Weight
from graph_passes import run_pipeline
from onnx_gpt.exporting import Exported, Transform, export, pipeline_of
from onnx_gpt.optimizing.calibrating import calibration_windows
from onnx_gpt.parity.prove import evaluation_text
from onnx_gpt.progress import Progress
from onnx_gpt.recipe import Recipe

SMOOTHING_WINDOWS = 8
"""Windows of text that scales for static 8-bit are tried on."""
MOST_ERROR = 4e-3
"""Error of a down projection's outputs, over their size, up to which it is static. Token by token, SmolLM2's are at
2e-4 to 1.5e-3, o at 3e-5 to 4e-3; what is beyond stays weight-only, by blocks."""


@dataclasses.dataclass(frozen=True)
class Channels:
    """What happens to a checkpoint's channels.

    Attributes:
        transform: the exact change of its decoder and weights.
        text: facts of the text, for the report.
        static: roles of the down projections that are static, their inputs rounded token by token.
    """

    transform: Transform
    text: Mapping[str, Any]
    static: tuple[str, ...] = ()


def channels_of(opened: Opened, recipe: Recipe, pipeline: str, folder: Path, progress: Progress) -> Channels:
    """Run a checkpoint's float graph on text, for w8a8 (rotated, then smoothed), AWQ or bias correction.

    Args:
        pipeline: passes of the target.
        folder: made for what is kept meanwhile.

    Raises:
        OnnxGptError: ``channels-unknown-decoder`` (exit 3) where the source is no checkpoint; see `calibration.data`;
            ``calibration-overlap`` where parity would be judged on the same text.
    """
    turn: Transform | None = rotated if recipe.is_static else None
    exported = export(opened, recipe.context_length, transform=turn)
    decoder = _decoder_of(exported, recipe)
    run_pipeline(exported.model, pipeline_of(exported, recipe.passes, pipeline), verify=False)
    windows = _text(opened, exported, recipe)
    folder.mkdir()
    if recipe.is_static:
        tokens = windows.tokens[:SMOOTHING_WINDOWS]
        found = smooth(decoder, exported.model, tokens, givers(decoder), folder, progress.advance)
        scheme = recipe.scheme()
        limit = MOST_ERROR if isinstance(scheme, Static) and scheme.by_token else 0.0
        static = (role for role, error in found.errors.items() if role.endswith("down") and error < limit)
        text = windows.facts() | _told(decoder, found.scales, SMOOTHED)
        return Channels(functools.partial(_turned_and_scaled, scales=found.scales), text, tuple(static))
    scheme = recipe.scheme()
    assert isinstance(scheme, WeightOnly)
    if isinstance(scheme, BiasCorrected):
        means = bias_correction.means(exported.model, windows.tokens, folder, progress.advance)
        return Channels(
            functools.partial(bias_correction.corrected, scheme=scheme, means=means), windows.facts()
        )
    scales = awq.scales(
        exported.model,
        scheme,
        windows.tokens,
        givers(decoder),
        lambda giver, scale: of_readers(decoder, giver, of_giver(decoder, giver, scale)),
        folder,
        progress.advance,
    )
    own = {giver: of_giver(decoder, giver, scale) for giver, scale in scales.items()}
    text = windows.facts() | _told(decoder, own, tuple(dict.fromkeys(GIVERS.values())))
    return Channels(functools.partial(scaled, scales=own), text)


def _told(decoder: Decoder, scales: Scales, places: tuple[str, ...]) -> dict[str, Any]:
    """For the report: in how many layers channels of each place were scaled, and which cannot be scaled exactly."""
    able = givers(decoder)
    of = {place: [role for role in able if role.endswith(place)] for place in places}
    return {
        "channels_scaled": {
            place: sum(role in scales for role in roles) for place, roles in of.items() if roles
        },
        "channels_not_scalable": [place for place, roles in of.items() if not roles],
    }


def _turned_and_scaled(
    decoder: Decoder, weights: Mapping[str, Weight], scales: Scales
) -> tuple[Decoder, dict[str, Weight]]:
    return scaled(*rotated(decoder, weights), scales)


def _decoder_of(exported: Exported, recipe: Recipe) -> Decoder:
    if exported.decoder is not None:
        return exported.decoder
    what, instead = (
        ("w8a8", "--quantize int8") if recipe.is_static else (f"method {recipe.method}", "--method gptq")
    )
    raise unsupported(
        "channels-unknown-decoder",
        f"{what} changes several weights of a layer together, and the decoder of this graph is not known",
        f"give the checkpoint that the graph was exported from, or use {instead}",
    )


def _text(opened: Opened, exported: Exported, recipe: Recipe) -> Windows:
    windows = calibration_windows(opened, exported, recipe.calibration, recipe.calibration_windows)
    if recipe.parity:
        require_apart(windows.tokens, evaluation_text(opened, exported, recipe).windows)
    return windows
