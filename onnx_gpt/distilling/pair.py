"""The two models of a distillation: opened, described, and held against each other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from calibration.quantization.rtn import nearest
from calibration.scheme import WeightOnly
from exporter import sources
from exporter.checkpoint import Checkpoint
from exporter.decoder import Decoder
from exporter.errors import unsupported
from exporter.families import describe
from exporter.match import matched
from exporter.sources import hf_directory
from exporter.weights import Array, Weight
from exporter.writing import dtype_of, stored_weights
from onnx_gpt.distilling.recipe import DistillRecipe, invalid
from onnx_gpt.parity.sides import require_same_vocabulary
from onnx_gpt.parity.tokenizers import tokenizer_check


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder that can be run in PyTorch; untrained where its checkpoint is a configuration alone."""

    opened: Checkpoint
    decoder: Decoder

    @property
    def trained(self) -> bool:
        return bool(self.opened.weights)

    @property
    def tokenizer(self) -> bytes | None:
        """Its tokenizer.json."""
        return self.opened.files.get("tokenizer.json")

    @property
    def dtype(self) -> str:
        """The type that its weights are written in."""
        return dtype_of(self.opened.weights.values()) if self.trained else "F32"

    def arrays(self) -> dict[str, np.ndarray]:
        """Its weights by role, read into memory as float32."""
        return {role: weight.read() for role, weight in matched(self.opened)[1].items()}


def open_pair(student: str, teacher: str, recipe: DistillRecipe) -> tuple[Model, Model]:
    """Student and teacher.

    Raises:
        OnnxGptError: ``distill-needs-checkpoint`` (exit 3) for a graph or a module, ``vocabulary-differs``,
            ``distill-tokenizers`` (exit 3) where they read text as different tokens, ``distill-hidden`` (exit 3) where
            hidden states of two widths were to be compared; what opening raises.
    """
    teaches = _opened(teacher)
    learns = hf_directory.untrained(student) if _is_untrained(student) else _opened(student)
    if "tokenizer.json" not in learns.files:
        learns = dataclasses.replace(learns, files={**teaches.files, **learns.files})
    ours, theirs = Model(learns, describe(learns)), Model(teaches, describe(teaches))
    require_same_vocabulary(ours.decoder.vocab_size, theirs.decoder.vocab_size, (student, teacher))
    check = tokenizer_check(ours.tokenizer, theirs.tokenizer, recipe.text)
    if check.verdict == "fail":
        raise unsupported("distill-tokenizers", check.detail, "take a teacher and a student of one tokenizer")
    width, other = ours.decoder.hidden_size, theirs.decoder.hidden_size
    if recipe.hidden and width != other:
        raise unsupported(
            "distill-hidden",
            f"hidden states of {width} and {other} channels cannot be compared",
            "drop --hidden",
        )
    return ours, theirs


def on_grid(model: Model, scheme: WeightOnly) -> Model:
    """The same decoder with every matrix rounded to the grid that a scheme has for it.

    Raises:
        OnnxGptError: ``distill-invalid`` for a model without weights.
    """
    from calibration.distillation.scales import grid_of

    if not model.trained:
        raise invalid("a student without weights has no codes", "train it first, then give the result")
    weights: dict[str, Weight] = {}
    for role, array in model.arrays().items():
        grid = grid_of(scheme, role, array.shape)
        weights[role] = Array(array if grid is None else nearest(array, grid))
    stored = stored_weights(model.decoder, weights)
    return Model(dataclasses.replace(model.opened, weights=stored), model.decoder)


def _is_untrained(source: str) -> bool:
    folder = Path(source)
    weights = (*folder.glob("*.safetensors*"), *folder.glob("pytorch_model.bin*"))
    return (folder / "config.json").is_file() and not weights


def _opened(source: str) -> Checkpoint:
    opened = sources.load(source)
    if not isinstance(opened, Checkpoint):
        raise unsupported(
            "distill-needs-checkpoint",
            f"{source!r} is no checkpoint: only one whose decoder is known can be trained, or teach",
            "give the checkpoint that the graph was exported from",
        )
    return opened
