"""Quantize to 4 bits with codes chosen on your own conversations, a JSON Lines file with a key "text" or "messages".

python samples/quantize_on_your_text.py SOURCE data.jsonl OUT
"""

import sys
from pathlib import Path

import onnx_gpt

source, data, out = sys.argv[1:]
report = onnx_gpt.optimize(
    source, out, quantize="int4", calibration=Path(data), block_size=32, table_bits=8, parity=False
)
made, size = report.calibration, report.files["model.onnx.data"] / 1e6
print(f"{size:.2f} MB of weights, chosen on {made['windows']} windows of {made['window']} tokens")
