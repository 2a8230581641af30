"""Every family in every shape it can take: the lowered graph answers as the canonical one, or refuses."""

from __future__ import annotations

import numpy as np
import pytest
from decoders import empty_cache, ragged_batch, rows_of, run_chunks, session, whole, worst
from tiny import tiny, variants

from exporter.build import build
from exporter.match import matched
from graph_passes import ORT_PIPELINE, run_pipeline
from graph_passes.lint import require_no_cliffs
from graph_passes.lowering.lengths import LEFT_PADDING


@pytest.mark.parametrize(("family", "variant"), list(variants()))
def test_lowered_family_answers_as_the_canonical_graph(family: str, variant: str) -> None:
    checkpoint = tiny(family, variant=variant)
    described, weights = matched(checkpoint)
    model = build(described, weights)
    rows, chunks = ragged_batch(vocab=described.vocab_size)
    run = session(model)
    wanted = [run_chunks(run, described, whole(row))[0][0] for row in rows]

    reports = {report.name: report for report in run_pipeline(model, ORT_PIPELINE)}
    assert reports["attention"].fired == reports["qkv"].fired == len(described.layers), reports
    require_no_cliffs(model)
    run = session(model)
    scale = max(float(np.abs(w).max()) for w in wanted)
    assert worst(rows_of(run_chunks(run, described, chunks)), wanted) < 2e-5 * max(scale, 1.0)

    left = np.array([[1, 1, 1], [0, 1, 1]])
    with pytest.raises(Exception, match=LEFT_PADDING):
        run.run(None, {"input_ids": np.ones_like(left), "attention_mask": left, **empty_cache(described, 2)})
