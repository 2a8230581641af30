"""A checkpoint as it will be once structures have been taken out: its shapes, and weights that cannot be read."""

from __future__ import annotations

import dataclasses

from exporter.checkpoint import Checkpoint
from exporter.families import describe
from exporter.resizing import resized_config
from exporter.weights import Unread
from onnx_gpt.pruning.recipe import structures_of
from onnx_gpt.pruning.structures import equal_sizes, hidden_left, layers_gone, resolved


def without(opened: Checkpoint, structured: str) -> Checkpoint:
    """What ``onnx-gpt prune --structured`` would leave, in sizes: which neurons and layers go does not change them.

    A search splits the same number of neurons over the layers in another way.

    Raises:
        OnnxGptError: ``prune-invalid`` (exit 2), ``variant-impossible`` (exit 3) where pruning would refuse.
    """
    wanted = resolved(opened, structures_of(structured))
    layers = describe(opened).layers
    left = len(layers) - (layers_gone(wanted, len(layers)) if wanted.layers else 0)
    sizes = equal_sizes(layers[:left], wanted)
    hidden = hidden_left(opened, wanted, sizes[0])
    shaped = dataclasses.replace(
        opened, config=resized_config(opened, sizes, kept=range(left), hidden=hidden)
    )
    parts = dict(describe(shaped).parts()).values()
    return dataclasses.replace(shaped, weights={part.name: Unread(part.stored_shape) for part in parts})
