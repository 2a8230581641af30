"""The default benchmarks, or some of them, one after another: `python -m benchmarks [foreign ...]`.

Leaves results/*.json and results/README.md.

`python -m benchmarks mutants` runs one that measures no speed: whether the tests find bugs in graph passes.

Each runs in its own process (measure.py says why). Timings mean something on an otherwise idle machine only.
"""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.contenders import REMAKE
from benchmarks.measure import RESULTS, ROOT, Row, parser, say, table

COMMANDS = ("quality", "make_time", "speed", "foreign", "passes")
REMAKES = ("quality", "speed")
"""Those that take --remake."""


def main() -> int:
    if sys.argv[1:2] == ["mutants"]:
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.mutants", *sys.argv[2:]], cwd=ROOT
        ).returncode
    options = parser(__doc__, remake=REMAKE)
    options.add_argument("names", nargs="*", help=f"some of {', '.join(COMMANDS)}; all by default")
    chosen = options.parse_args()
    if not set(chosen.names) <= set(COMMANDS):
        options.error(f"there are {', '.join(COMMANDS)}")
    failed = []
    for name in chosen.names or COMMANDS:
        say(f"== {name}")
        remake = ["--remake"] if chosen.remake and name in REMAKES else []
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *remake]
        if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode != 0:
            failed.append(name)
    documents = [json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    text = summary(documents)
    (RESULTS / "README.md").write_text(text, "utf-8")
    print(json.dumps(documents) if chosen.json else text)
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def summary(documents: list[Row]) -> str:
    """The tables of all documents as one markdown page."""
    parts = ["# Results\n\nWritten by `python -m benchmarks`; benchmarks/README.md says what is measured."]
    for document in documents:
        facts = ", ".join(f"{key} {value}" for key, value in document["machine"].items())
        tables = "\n\n".join(table(rows) for rows in document["tables"].values() if rows)
        parts.append(f"## {document['benchmark']}\n\n{facts}\n\n{tables}")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
