"""Single weights become zero; every shape stays."""

from __future__ import annotations

import dataclasses

from calibration.pruning.model import PIPELINE
from calibration.pruning.sensitivity import shares
from calibration.pruning.sequential import prune_weights
from calibration.pruning.weights import method_of
from exporter.build import build
from exporter.writing import stored_weights
from graph_passes import run_pipeline
from onnx_gpt.pruning.report import ZEROS
from onnx_gpt.pruning.task import Pruned, Task


def with_zeros(task: Task) -> Pruned:
    """The checkpoint with the share of zeros, or the pattern, that the recipe asks for."""
    model, recipe, tokens = task.model, task.recipe, task.tokens
    wanted = [recipe.wanted_sparsity] * len(model.decoder.layers)
    if recipe.searches:
        with task.stages.stage("search"):
            runner = task.runner()
            chain = task.chain(model, runner, recipe.probe)
            wanted = shares(model, chain, runner, recipe.wanted_sparsity.share, task.progress.advance)
            del chain
    with task.stages.stage("prune"):
        length = None if tokens is None else tokens.shape[1]
        graph = build(model.decoder, model.weights, context_length=length)
        run_pipeline(graph, PIPELINE, verify=False)
        method = method_of(recipe.resolved_method)
        text = tokens if method.READS_TEXT else None
        changed = prune_weights(graph, method, wanted, text, task.folder, task.progress.advance)
    weights = stored_weights(model.decoder, {**model.weights, **changed})
    facts = {"shares": tuple(one.share for one in wanted), "notes": (ZEROS,)}
    return Pruned(dataclasses.replace(task.opened, weights=weights), facts)
