"""Make somebody else's decoder fast: say what will be fused, then do it, proven against the graph as it was.

python samples/optimise_onnx.py model.onnx OUT
"""

import sys

import onnx_gpt

source, out = sys.argv[1:]
for part in onnx_gpt.explain(source).layers[0]:
    print(f"first layer's {part.part}: {part.form} {part.reason or ''}")
report = onnx_gpt.optimize(source, out, tokens=256)
print(f"{report.graph.nodes} nodes in {out}, mean KL {report.parity.mean_kl:.2g}: {report.parity.verdict}")
