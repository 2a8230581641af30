"""Passes one by one: what each did to a graph, and the graph afterwards. Every rewrite is proven by running both sides.

python samples/custom_pipeline.py model.onnx OUT.onnx \\
    "inline, fold, shapes, linear, fold, control{context_length=64}, canonical"
"""

import sys
from pathlib import Path

import onnx_ir as ir

from exporter.onnx_format.reader import read_graph
from graph_passes import run_pipeline

source, out, pipeline = sys.argv[1:]
model = read_graph(Path(source))
for step in run_pipeline(model, pipeline):
    print(f"{step.name:10} {step.nodes_before:5} → {step.nodes_after:5} nodes, {step.fired} rewrites")
ir.save(model, out, external_data=f"{Path(out).name}.data")
