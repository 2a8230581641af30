"""What others do to a foreign graph: onnxsim, onnxslim, and onnxruntime's optimizer for transformers.

``simplify``, ``slim`` and ``ort`` take MODEL.onnx and a folder, and write ``model.onnx`` there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.protocol import main, making


def simplify(source: Path, out: Path) -> None:
    import onnx
    from onnxsim import simplify as onnxsim

    model, _ = onnxsim(onnx.load(source))
    onnx.save(model, out / "model.onnx", save_as_external_data=True, location="model.onnx.data")


def slim(source: Path, out: Path) -> None:
    import onnx
    import onnxslim

    model = onnxslim.slim(str(source))
    onnx.save(model, out / "model.onnx", save_as_external_data=True, location="model.onnx.data")


def ort(source: Path, out: Path) -> None:
    from onnxruntime.transformers.optimizer import optimize_model

    # heads and hidden size 0: it finds them in the graph
    optimized = optimize_model(str(source), model_type="gpt2", num_heads=0, hidden_size=0, opt_level=0)
    optimized.save_model_to_file(str(out / "model.onnx"), use_external_data_format=True)


def _into_folder(make: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    def made(source: Path, out: Path) -> None:
        out.mkdir(parents=True)
        make(source, out)

    return made


if __name__ == "__main__":
    main(
        simplify=making(_into_folder(simplify)),
        slim=making(_into_folder(slim)),
        ort=making(_into_folder(ort)),
    )
