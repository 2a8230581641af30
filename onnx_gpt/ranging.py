"""How large the values of a model get on text: what float16 and 8 bits would make of them."""

from __future__ import annotations

from pathlib import Path

from calibration.ranges import Ranges
from calibration.ranges import ranges as ranges_of
from exporter import sources
from exporter.checkpoint import ModuleSource
from exporter.errors import Exit, OnnxGptError, unsupported
from graph_passes import run_pipeline
from onnx_gpt.bundle.targets import chosen
from onnx_gpt.exporting import export, pipeline_of
from onnx_gpt.optimizing.calibrating import calibration_windows
from onnx_gpt.progress import Progress, Silent

WINDOWS = 8
"""Windows of text that go through the model: the largest values are those of a few kinds of tokens, which all hold."""


def ranges(
    source: str,
    *,
    text: Path | None = None,
    windows: int = WINDOWS,
    target: str = "ort",
    context_length: int | None = None,
    progress: Progress | None = None,
) -> Ranges:
    """Run a model's fused float graph on text and measure every value.

    Args:
        source: what `exporter.sources.load` takes, but no module.
        text: file or folder of text, as ``--calibration`` of `optimize`; Python's own documentation by default.
        windows: of 512 tokens, or of the model's context where that is shorter.
        target: whose passes fuse the graph.
        context_length: as of `optimize`.
        progress: told what happens.

    Returns:
        `calibration.ranges.Ranges`: edges and norms, in the order of the graph.

    Raises:
        OnnxGptError: what loading and passes raise; ``ranges-needs-float`` (exit 3) for a graph that holds codes, or a
            module; ``scheme-invalid`` (exit 2) for no windows.
    """
    if windows < 1:
        raise OnnxGptError(
            "scheme-invalid",
            f"{windows} windows of text are no text",
            "give a number above 0",
            exit=Exit.USAGE,
        )
    progress = progress or Silent()
    progress.stage("load")
    opened = sources.load(source)
    if isinstance(opened, ModuleSource):
        raise _needs_float("a module has no graph whose layers are known")
    exported = export(opened, context_length)
    run_pipeline(exported.model, pipeline_of(exported, None, chosen(target).models[0].pipeline), verify=False)
    coded = next((node for node in exported.model.graph if node.op_type in CODED), None)
    if coded is not None:
        raise _needs_float(f"{source} is quantized: node {coded.name!r} reads codes")
    progress.stage("text")
    read = calibration_windows(opened, exported, text, windows)
    progress.stage("run")
    return ranges_of(exported.model, read.tokens, advance=progress.advance)


CODED = frozenset(["MatMulNBits", "GatherBlockQuantized", "DequantizeLinear", "MatMulIntegerToFloat"])


def _needs_float(cause: str) -> Exception:
    return unsupported("ranges-needs-float", cause, "give the checkpoint that it was made from")
