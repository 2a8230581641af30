"""What a product of codes takes in one decode step on this machine, and what the rest of a step takes.

Products are timed with their weights coming from memory, as in a model: so many of them in turn that no cache holds
them all. The least of several runs counts, since others may use the machine meanwhile.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from calibration.quantization.lowering import ACCURACY_LEVEL
from calibration.quantization.pack import packed_shape
from calibration.scheme import Grid
from graph_passes.matching import MICROSOFT, initializer, make
from onnx_gpt.bundle.writing import MODEL
from onnx_gpt.generation.decoder_session import DecoderSession, allowed_threads

COLD = 64 << 20
"""Bytes of codes that are gone through before any is needed again: more than caches hold."""
RUNS, LONGEST = 50, 0.5
"""Runs of one kind, and seconds after which no more are begun."""
CONTEXT, STEPS = 512, 24
"""Tokens before the decode steps that are timed, and how many are."""

Shape = tuple[Grid, int, int]
"""Grid, N and K of a product."""


def product_seconds(shape: Shape) -> float:
    """Least seconds of ``x · Wᵀ`` of one token, float32 ``x [1, K]``, W ``[N, K]`` as MatMulNBits has it."""
    import onnxruntime as ort

    grid, rows, columns = shape
    packed = packed_shape(rows, columns, grid.bits, grid.block_size)
    count = max(2, COLD // max(1, int(np.prod(packed))))
    rng = np.random.default_rng(0)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, columns]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 23, MICROSOFT: 1}, name="products")
    scale = initializer(graph, ir.tensor(rng.random(packed[:2], np.float32), name="scale"))
    for i in range(count):
        codes = ir.tensor(rng.integers(0, 256, packed, np.uint8), name=f"codes_{i}")
        node = make(
            "MatMulNBits",
            [x, initializer(graph, codes), scale],
            f"product_{i}",
            domain=MICROSOFT,
            K=columns,
            N=rows,
            bits=grid.bits,
            block_size=grid.block_size,
            accuracy_level=ACCURACY_LEVEL,
        )
        graph.append(node)
        node.outputs[0].type, node.outputs[0].shape = x.type, ir.Shape([1, rows])
        graph.outputs.append(node.outputs[0])
    with tempfile.TemporaryDirectory(prefix="onnx-gpt-kernels-") as folder:
        path = Path(folder) / MODEL
        ir.save(
            ir.Model(graph, ir_version=10), path, external_data=f"{MODEL}.data", size_threshold_bytes=1024
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads = allowed_threads()
        options.log_severity_level = 3
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feeds = {"x": rng.standard_normal((1, columns)).astype(np.float32)}
        return least(lambda: session.run(None, feeds)) / count


def step_seconds(model: Path, context_length: int | None) -> float:
    """Least seconds of a decode step of a written decoder, after `CONTEXT` tokens where its context holds as many."""
    longest = context_length or CONTEXT + STEPS
    steps = max(1, min(STEPS, longest - 1))
    context = max(1, min(CONTEXT, longest - steps))
    session = DecoderSession(model)
    tokens = np.random.default_rng(0).integers(0, session.vocab_size or 2, context)
    session.reserve(context + steps)
    session.append(tokens)
    return least(lambda: session.append(tokens[:1]), steps)


def least(call: Callable[[], object], runs: int = RUNS) -> float:
    """Seconds of the quickest of some calls: others may use the machine meanwhile."""
    times: list[float] = []
    while len(times) < runs and sum(times) < LONGEST:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
