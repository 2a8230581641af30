"""Whether the proof of graph passes bites: bugs put into rules, passes and helpers, one at a time.

Each mutant is a line of a source file written wrongly, as it has been once or could be. A child process imports the
package with that line changed, and runs the tests of rules, of generated graphs and of witnesses; whatever fails there
finds it. `python -m benchmarks mutants` prints a table of what was found by which test, and what was missed.
"""

from __future__ import annotations

import dataclasses
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from benchmarks.measure import ROOT, Row, holding, parser, publish, say

TESTS = tuple(
    f"tests/graph_passes/test_{name}.py" for name in ("rules", "generated", "witness", "rewrites", "fold")
)
BUDGET = 90
"""Seconds of processor time that a commit gives these tests."""

MISSED = "missed"
WANTED = 0.95
"""Share of the mutants that has to be found."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One bug.

    Attributes:
        name: of the bug.
        module: file below graph_passes/, without its ending.
        right, wrong: text of the file, and what stands there instead; its first place counts.
    """

    name: str
    module: str
    right: str
    wrong: str

    @property
    def path(self) -> Path:
        return ROOT / "graph_passes" / f"{self.module}.py"

    def source(self) -> str:
        """The file with the bug in it.

        Raises:
            ValueError: the file no longer holds the text.
        """
        text = self.path.read_text("utf-8")
        if self.right not in text:
            raise ValueError(f"{self.name}: {self.path.name} holds no {self.right!r}")
        return text.replace(self.right, self.wrong, 1)


RMS = "return op.RMSNormalization(x, γ, epsilon=ε, axis=-1)"
LAYER = "return op.LayerNormalization(x, γ, β, epsilon=ε, axis=-1)"
HALF = 'return op.Concat(-op.Slice(x, "D/2", None), op.Slice(x, 0, "D/2"), axis=-1)'
SCALED = "return op.Attention(q, op.Transpose(k, perm=[0, 1, 3, 2]), v, m, scale=c)"

MUTANTS = (
    # Rules
    Mutant("RMSNorm takes a default epsilon", "rules/norms", RMS, RMS.replace("epsilon=ε, ", "")),
    Mutant("LayerNorm loses its bias", "rules/norms", LAYER, LAYER.replace(" β,", "")),
    Mutant("LayerNorm takes a default epsilon", "rules/norms", LAYER, LAYER.replace("epsilon=ε, ", "")),
    Mutant("LayerNorm does not subtract the mean", "rules/norms", "(x - op.ReduceMean(x, [-1]), γ", "(x, γ"),
    Mutant("erf GELU becomes tanh GELU", "rules/activations", 'approximate="none"', 'approximate="tanh"'),
    Mutant(
        "GELU with another factor passes for it",
        "rules/activations",
        "math.sqrt(0.5)",
        "(math.sqrt(0.5) / 1.1)",
    ),
    Mutant("the cube's factor is misread", "rules/activations", "cube * 0.044715", "cube * (0.044715 * 1.1)"),
    Mutant("SiLU loses its factor", "rules/activations", "return x * op.Sigmoid(x)", "return op.Sigmoid(x)"),
    Mutant(
        "cos and sin change places",
        "rules/rotary",
        "return op.RotaryEmbedding(x, c, s)",
        "return op.RotaryEmbedding(x, s, c)",
    ),
    Mutant(
        "rotation the other way round", "rules/rotary", HALF, HALF.replace("-op", "op").replace(" op", " -op")
    ),
    Mutant("interleaved rotary is taken for halves", "rules/rotary", "(x, c, s, interleaved=1)", "(x, c, s)"),
    Mutant("attention loses its scale", "rules/attention", SCALED, SCALED.replace("scale=c", "scale=1.0")),
    Mutant("one of two scales is lost", "rules/attention", "scale=c * d", "scale=c"),
    Mutant("softcap is lost", "rules/attention", "scale=c, softcap=cap)", "scale=c)"),
    Mutant(
        "keys of the past come before queries",
        "rules/attention",
        "m, past_k, past_v, scale",
        "m, past_v, past_k, scale",
    ),
    Mutant(
        "−∞ and scores change places", "rules/attention", "op.Where(op.Not(m), x, low)", "op.Where(m, x, low)"
    ),
    Mutant("permutations are multiplied backwards", "rules/moves", "[p[i] for i in q]", "[q[i] for i in p]"),
    Mutant("a transposition is taken for none", "rules/moves", "perm=[0, 1, 2, 3])", "perm=[0, 2, 1, 3])"),
    # Engine and helpers
    Mutant("differences commute", "engine/matcher", '"Add", "Mul",', '"Add", "Sub", "Mul",'),
    Mutant(
        "an output of the graph may vanish",
        "engine/matcher",
        "if others or value.is_graph_output():",
        "if others:",
    ),
    Mutant(
        "nodes are equal whatever their attributes", "passes/fold", "outputs, tuple(attributes)", "outputs"
    ),
    Mutant(
        "constants are equal whatever their type",
        "structure/constants",
        "return tensor.dtype, tuple(tensor.shape), ",
        "return ",
    ),
    Mutant("packed biases are in another order", "lowering/linear", "Stack(biases)", "Stack(biases[::-1])"),
    Mutant(
        "maps of different inputs are packed",
        "lowering/linear",
        "linear.input is not first.input",
        "linear is None",
    ),
    # Passes
    Mutant("the window is one too wide", "passes/attention", "= found.window\n", "= found.window + 1\n"),
    Mutant("GroupQueryAttention turns by sines first", "passes/attention", "inputs[1:3]", "inputs[2:0:-1]"),
    Mutant("GroupQueryAttention loses softcap", "passes/attention", '("scale", "softcap")', '("scale",)'),
    Mutant("GroupQueryAttention loses its scale", "passes/attention", '("scale", "softcap")', '("softcap",)'),
    Mutant(
        "GroupQueryAttention rotates halves always",
        "passes/attention",
        'rotations[0], "interleaved", 0)',
        'rotations[0], "never", 0)',
    ),
    Mutant(
        "tokens are counted one too many",
        "lowering/lengths",
        "np.array([-1], np.int32)",
        "np.array([0], np.int32)",
    ),
    Mutant("the batch is taken for the length", "lowering/lengths", "start=1, end=2", "start=0, end=1"),
    Mutant("skip norm gives another sum", "passes/norm", "fused.outputs[3])", "fused.outputs[0])"),
    Mutant("skip norm takes a default epsilon", "passes/norm", 'attribute(node, "epsilon", 1e-5)', "1e-5"),
    Mutant("SiLU of another value", "passes/mlp", "    if value is x:\n", "    if value is not None:\n"),
    Mutant(
        "gate and up change places",
        "passes/mlp",
        'stacked(linears, "gate_up")',
        'stacked(linears[::-1], "gate_up")',
    ),
    Mutant("erf GELU becomes FastGelu", "passes/mlp", '!= "tanh"', '== "neither"'),
    Mutant(
        "gating the other half",
        "passes/outline",
        '[split.outputs[0]], "activated"',
        '[split.outputs[1]], "activated"',
    ),
    Mutant(
        "a slice moves past what others read",
        "passes/keep",
        "if all(user is root or user",
        "if any(user is root or user",
    ),
    Mutant(
        "channels are cut at the wrong place",
        "passes/unpack",
        "head * width + part.last)",
        "head * width + part.last - 1)",
    ),
    Mutant(
        "another part of a packed bias",
        "passes/unpack",
        "Rows(linear.bias, rows)",
        "Rows(linear.bias, tuple((a - rows[0][0], b - rows[0][0]) for a, b in rows))",
    ),
    # Masks and positions
    Mutant(
        "a key after the query is seen", "control/masks", "seen &= distance >= 0", "seen &= distance >= -1"
    ),
    Mutant("weak masks are masks", "control/masks", "MASKED = -1e4", "MASKED = -1.0"),
)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("names", nargs="*", help="only mutants whose names hold one of these")
    options.add_argument("--run", metavar="NAME", help="the tests on one mutant, in this process")
    chosen = options.parse_args()
    if chosen.run is not None:
        return run_tests(next(mutant for mutant in MUTANTS if mutant.name == chosen.run))
    named = holding(chosen.names)
    wanted = [mutant for mutant in MUTANTS if named(mutant.name)]
    for mutant in wanted:
        mutant.source()  # before hours are spent: a mutant whose line has changed would test nothing
    rows = [judged(mutant) for mutant in wanted]
    found = sum(row["found by"] != MISSED for row in rows)
    say(f"{found} of {len(rows)} found")
    document = {"tables": {"mutants": rows}, "found": found, "of": len(rows)}
    status = publish("mutants", document, as_json=chosen.json, partial=len(wanted) < len(MUTANTS))
    return status if found >= WANTED * len(rows) else 1


def judged(mutant: Mutant) -> Row:
    """Run the tests on a mutant in a process of their own."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.mutants", "--run", mutant.name]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    row = {"mutant": mutant.name, "file": f"graph_passes/{mutant.module}.py", "found by": verdict(child)}
    say(f"{time.perf_counter() - started:6.1f} s  {row['found by'][:60]:60}  {mutant.name}")
    return row


def verdict(child: subprocess.CompletedProcess[str]) -> str:
    """The first test that failed.

    Raises:
        RuntimeError: the tests did not run at all.
    """
    failed = re.search(r"^(?:FAILED|ERROR) tests/graph_passes/(\S+)", child.stdout, re.MULTILINE)
    if failed is not None:
        return failed[1]
    if child.returncode == 0 or child.returncode < 0:  # a negative one: its time was up
        return MISSED
    raise RuntimeError(f"{' '.join(child.args)}\n{child.stdout[-2000:]}\n{child.stderr[-2000:]}")


def run_tests(mutant: Mutant) -> int:
    """Import the package with a bug in it, and run the tests until one fails or the time is up."""
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (BUDGET, BUDGET + 5))
    sys.meta_path.insert(0, _Importer(mutant))
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore", *TESTS]))


class _Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a changed source."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.name = "graph_passes." + mutant.module.replace("/", ".")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.mutant.path, loader=self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.mutant.source(), str(self.mutant.path), "exec"), module.__dict__)


if __name__ == "__main__":
    sys.exit(main())
