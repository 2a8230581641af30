"""What huge pages gain: one bundle in the public Generator, its memory moved to them and not, in turn.

    python -m benchmarks.huge_pages [--rounds 9] [--only NAME] [--json]

A sample is a fresh process that reads 512 tokens and times 64 steps after them. `glibc` has huge pages from malloc
itself (GLIBC_TUNABLES), as any program can have that is started so.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from pathlib import Path

from benchmarks import contenders as c
from benchmarks.measure import Row, interleave, median, parser, publish, run
from benchmarks.models import ensure
from benchmarks.paths import PERMUTED, SMOLLM2

DECODE, PREFILL = "decode_tokens_per_second", "prefill_tokens_per_second"
CONTENDERS = (c.OURS_INT4_FAST_PERMUTED, c.GENAI_INT4, c.OURS_W8A8_PERMUTED, c.OURS_FLOAT)
PAGES = ("small", "huge", "glibc")


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=9, help="samples of each (9)")
    options.add_argument("--only", action="append", help="measure the contenders whose name has this in it")
    chosen = options.parse_args()
    ensure(SMOLLM2, PERMUTED)
    wanted, failed = c.prepared(c.selected(CONTENDERS, chosen.only, remake=False))
    ways = {f"{one.name}, {pages}": functools.partial(speed, one, pages) for one in wanted for pages in PAGES}
    samples, broken = interleave(ways, chosen.rounds)
    rows = [row(name, taken, samples[f"{name.rsplit(', ', 1)[0]}, small"]) for name, taken in samples.items()]
    document = {"tables": {"huge pages": rows}, "samples": samples, "failed": failed | broken}
    return publish("huge_pages", document, as_json=chosen.json, partial=bool(chosen.only))


def speed(contender: c.Contender, pages: str) -> Row:
    tunables = ["env", "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"] if pages == "glibc" else []
    command = [*tunables, sys.executable, "-m", "benchmarks.huge_pages", "speed", contender.ready(), pages]
    document: Row = run(command).document()
    return document


def row(name: str, samples: list[Row], small: list[Row]) -> Row:
    decode, prefill = ([sample[what] for sample in samples] for what in (DECODE, PREFILL))
    return {
        "file, pages": name,
        "decode tok/s": median(decode),
        "range": f"{min(decode):.0f}–{max(decode):.0f}",
        "× small": median(decode) / median([sample[DECODE] for sample in small]),
        "prefill tok/s": median(prefill),
        "prefill × small": median(prefill) / median([sample[PREFILL] for sample in small]),
    }


def child(model: str, pages: str) -> None:
    """Print the speeds of a bundle whose session lies as it was allocated, or on huge pages."""
    from benchmarks.onnx_model import speed as timed
    from onnx_gpt.generation import generator

    if pages != "huge":
        generator.on_huge_pages = contextlib.nullcontext  # type: ignore[assignment]
    print(json.dumps(timed(Path(model))))


if __name__ == "__main__":
    sys.exit(child(*sys.argv[2:]) if sys.argv[1:2] == ["speed"] else main())
