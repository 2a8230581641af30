"""One step of a release pipeline: make a bundle, or stop; verify it; hand its digest to the steps that follow.

    python samples/release_step/release.py SOURCE OUT [--quantize int4] [--text FILE] [--tokens 2048] [--max-kl X]

Prints ``name=value`` lines, as GitHub Actions wants them in ``$GITHUB_OUTPUT``. Ends with onnx-gpt's own exit statuses
(docs/errors.md): 5 where the bundle is not near enough to the model, 6 where it is not what its certificate says.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import onnx_gpt
from exporter.errors import Exit
from onnx_gpt import Limits, OnnxGptError


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("source")
    options.add_argument("out", type=Path)
    options.add_argument("--quantize", default="int4")
    options.add_argument("--text", type=Path, default=None)
    options.add_argument("--tokens", type=int, default=2048)
    options.add_argument("--max-kl", type=float, default=None)
    chosen = options.parse_args()
    try:
        report = onnx_gpt.optimize(
            chosen.source,
            chosen.out,
            quantize=chosen.quantize,
            text=chosen.text,
            tokens=chosen.tokens,
            limits=Limits(max_kl=chosen.max_kl),
        )
        digest = report.certificates["ort"]
        found = onnx_gpt.verify(chosen.out, certificate_digest=digest)
    except OnnxGptError as error:
        print(f"error {error}", file=sys.stderr)
        return error.exit
    for violation in found.violations:
        print(f"{violation.code}: {violation.subject}: {violation.cause}", file=sys.stderr)
    if found.verdict == "fail" or report.parity == "not run":
        return Exit.VERIFICATION
    print(f"certificate={digest}")
    print(f"mean_kl={report.parity.mean_kl:.6g}")
    print(f"bytes={sum(report.files.values())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
