"""onnxruntime on phones: ``.ort`` files, which its reduced builds open, and the operators that such a build needs.

Neither optimizers nor a protobuf parser are in a reduced build: what they would do at load is done here, by onnxruntime
itself, which holds the whole model in memory for it. ``model`` has every optimization baked in; ``runtime`` keeps those
apart that compete with NNAPI or CoreML, for onnxruntime to apply where these do not take a node
(``session.enable_saved_runtime_optimizations``).
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from exporter.errors import unsupported
from graph_passes import ORT_PIPELINE
from onnx_gpt.bundle.runtime import Runtime
from onnx_gpt.bundle.targets import BundleFacts, ModelFile, Target

PHONE = Runtime("onnxruntime 1.32 for mobile")
RUNTIME_STYLE = "model.with_runtime_opt"
LARGEST = 2**31 - 1
"""Bytes of a flatbuffer, which an .ort file is: offsets in it are signed 32-bit integers."""
OPERATORS = "required_operators.config"
"""What ``build.sh --include_ops_by_config`` takes."""


def finish(folder: Path) -> None:
    """Replace every ``.onnx`` file and its weights by the ``.ort`` file that onnxruntime makes of it.

    Raises:
        OnnxGptError: ``target-unsupported`` (exit 3) for a model of over 2 GB.
    """
    made = []
    for model in sorted(folder.glob("*.onnx")):
        data = model.with_suffix(".onnx.data")
        size = data.stat().st_size if data.exists() else 0
        if size > LARGEST:
            raise unsupported(
                "target-unsupported",
                f"an .ort file holds 2 GB at most, and the weights take {size / 1e9:.1f} GB",
                "quantize the model, or use --target ort",
            )
        made.append(_converted(model))
        data.unlink(missing_ok=True)
        model.unlink()
    _write_operators(made, folder / OPERATORS)


def _converted(model: Path) -> Path:
    import onnxruntime as ort

    made = model.with_suffix(".ort")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(made)
    options.add_session_config_entry("session.save_model_format", "ORT")
    if model.stem == RUNTIME_STYLE:
        options.add_session_config_entry("optimization.minimal_build_optimizations", "save")
    # The layout of NCHWc is an x86 one, and phones are not.
    ort.InferenceSession(
        str(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"]
    )
    return made


def _write_operators(models: list[Path], path: Path) -> None:
    from onnxruntime.tools.ort_format_model import create_config_from_models

    with contextlib.redirect_stdout(io.StringIO()):  # it says what it does
        create_config_from_models(models, path, enable_type_reduction=False)
    # Its first line names the folder that this was made in.
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("#")), "utf-8", newline="\n")


TARGET = Target(
    name="mobile",
    models=(
        ModelFile("model", "model.onnx", ORT_PIPELINE, PHONE, opened="model.ort"),
        ModelFile("runtime", f"{RUNTIME_STYLE}.onnx", ORT_PIPELINE, PHONE, opened=f"{RUNTIME_STYLE}.ort"),
    ),
    files=BundleFacts.common_files,
    finish=finish,
)
