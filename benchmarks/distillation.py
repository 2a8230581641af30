"""What a teacher gives back: a pruned student healed, a small one taught from nothing, and what is left of it in int4.

    python -m benchmarks.distillation [--only heal --only scratch --only bytes …] [--remake] [--json]

`heal`: feed-forwards a quarter smaller, fitted (`benchmarks.compression`), then trained on the calibration part of
Python's documentation; perplexity is measured by `onnx-gpt distill` itself on the part that neither pruning nor
training reads. `scratch`: a student of half of sample:tiny's layers, trained from random weights with and without its
teacher, in as many steps. `bytes`: int4 bundles of the dense and of the pruned model, on the same text, against the
dense float bundle. `scales`: int4 codes that stay, and scales that are trained. `kill`: a run that is killed with
SIGKILL and given again, against one that is not. `permuted` is SmolLM2 with its channels in another order (models.py
says why). Processor minutes are those of one process, the teacher's included.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks import compression
from benchmarks import contenders as c
from benchmarks.measure import (
    ROOT,
    ChildFailedError,
    Row,
    environment,
    file_name,
    fresh,
    parser,
    publish,
    run,
    say,
    size_of,
)
from benchmarks.models import ensure
from benchmarks.paths import CACHE, PERMUTED

FOLDER = CACHE / "distillation"
UNIFORM = "FFN −25 %, fitted, uniform"
MAGNITUDE = "FFN −25 %, magnitude, uniform"
HEALED = (
    ("tiny", MAGNITUDE, ("--steps", "200", "--rate", "2e-4")),
    ("tiny", UNIFORM, ("--steps", "200", "--rate", "5e-5")),
    ("permuted", UNIFORM, ("--steps", "200", "--batch", "1", "--rate", "1e-4")),
)
"""Models, what was taken out of them, and how they are trained."""
SEEDS = (0, 1, 2)
SCRATCH = ("--steps", "300")
BYTES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("dense", "int4", ()),
    ("dense", "int4, table 8 bits", ("--table-bits", "8")),
    ("pruned", "int4, table 8 bits", ("--table-bits", "8")),
    ("pruned and healed", "int4, table 8 bits", ("--table-bits", "8")),
    ("pruned and healed", "int4", ()),
)
TOKENS = ("--tokens", compression.TOKENS)


def main() -> int:
    options = parser(__doc__, remake="train again")
    options.add_argument("--only", action="append", choices=list(TABLES), help="all by default")
    chosen = options.parse_args()
    ensure(PERMUTED)
    if chosen.remake:
        fresh(FOLDER)
    tables: dict[str, list[Row]] = {}
    failed: dict[str, str] = {}
    for name in chosen.only or TABLES:
        try:
            tables[name] = TABLES[name]()
        except ChildFailedError as error:
            failed[name] = str(error)
    return publish(
        "distillation", {"tables": tables, "failed": failed}, as_json=chosen.json, partial=bool(chosen.only)
    )


def pruned(model: str, name: str) -> Path:
    variant = next(variant for variant in compression.STRUCTURES if variant.name == name)
    return compression.pruned(model, variant)


def command(student: str | Path, teacher: str | Path, out: Path, options: Sequence[str]) -> c.Command:
    return c.our_command("distill", student, "--teacher", teacher, "-o", out, *TOKENS, *options)


def distilled(student: str | Path, teacher: str | Path, out: Path, options: Sequence[str]) -> Row:
    """The report of a student, trained where it is missing."""
    if not out.exists():
        say(f"training {out.name}")
        out.parent.mkdir(parents=True, exist_ok=True)
        run(command(student, teacher, out, options))
    report: Row = json.loads((out / "report.json").read_text("utf-8"))
    return report


def place(model: str, name: str) -> Path:
    return FOLDER / model / file_name(name)


def healed(model: str, name: str, options: Sequence[str]) -> tuple[Path, Row]:
    out = place(model, f"{name} healed")
    return out, distilled(pruned(model, name), compression.SOURCES[model], out, options)


def heal() -> list[Row]:
    rows = []
    for model, name, options in HEALED:
        _, report = healed(model, name, options)
        training = report["training"]
        rows.append(
            {
                "student": f"{model}, {name}",
                "perplexity": report["before"]["perplexity"],
                "healed": report["after"]["perplexity"],
                "dense": report["teacher"]["perplexity"],
                "share of lost log perplexity back": report["recovered"],
                "held-out KL before": training["curve"][0]["loss"],
                "after": min(point["loss"] for point in training["curve"]),
                "tokens": training["tokens"],
                "processor minutes": training["processor_seconds"] / 60,
            }
        )
    return rows


def scratch() -> list[Row]:
    """Half of the layers, the same tokenizer; each seed draws other weights and another order of the text."""
    student = FOLDER / "tiny" / "student"
    student.mkdir(parents=True, exist_ok=True)
    config = json.loads((ROOT / "samples" / "tiny" / "config.json").read_text("utf-8"))
    (student / "config.json").write_text(json.dumps(config | {"n_layer": config["n_layer"] // 2}), "utf-8")
    rows = []
    for seed in SEEDS:
        row: Row = {"seed": seed}
        for name, mix in (("with a teacher", "0"), ("without", "1")):
            options = (*SCRATCH, "--mix", mix, "--seed", str(seed))
            report = distilled(student, "sample:tiny", place("tiny", f"scratch {name} {seed}"), options)
            row |= {"M parameters": report["after"]["size"]["parameters"] / 1e6}
            row |= {"of": report["teacher"]["parameters"] / 1e6, "steps": report["training"]["done"]}
            row[f"perplexity {name}"] = report["after"]["perplexity"]
        rows.append(row)
    return rows


def equal_bytes() -> list[Row]:
    """int4 of the dense and of the pruned model; a table of 8 bits makes the pruned one as large as the dense."""
    model, name, options = HEALED[-1]
    sources: dict[str, Path] = {"dense": PERMUTED, "pruned": pruned(model, name)}
    sources["pruned and healed"], _ = healed(model, name, options)
    dense = compression.bundle(model, "dense", PERMUTED).ready()
    rows = []
    for who, how, flags in BYTES:
        path = place(model, f"{who} {how}")
        if not path.exists():
            run(c.optimize(sources[who], path, "--no-parity", "--quantize", "int4", *flags))
        rows.append({"model": who, "bundle": how, "MB": size_of(path) / 1e6, **distance(path, dense)})
    return rows


def distance(path: Path, dense: Path) -> Row:
    """Perplexity of a bundle on held-out text, and its KL to the dense float bundle's distributions."""
    from onnx_gpt.parity.candidate import Candidate
    from onnx_gpt.parity.metrics import Agreement
    from onnx_gpt.parity.text import evaluation_tokens

    ours, theirs = (Candidate(folder / "model.onnx") for folder in (path, dense))
    window = min(512, json.loads((dense / "config.json").read_text("utf-8")).get("n_positions", 512))
    tokenizer = (dense / "tokenizer.json").read_bytes()
    text = evaluation_tokens(tokenizer, ours.vocab_size or 0, tokens=int(compression.TOKENS), window=window)
    agreement = Agreement()
    for tokens in text.windows:
        logits = [one.logits(np.asarray(tokens)[None])[0, :-1] for one in (ours, theirs)]
        agreement.add(*logits, tokens[1:])
    perplexity, of_dense = agreement.perplexities()
    return {
        "perplexity": perplexity,
        "of dense float": perplexity / of_dense,
        "mean KL": agreement.kl_statistics()[0],
        "same top choice": agreement.top1(0.0)[0],
    }


def scales() -> list[Row]:
    """Bundles of sample:tiny in int4, its scales as rounding chose them and trained, against its float bundle."""
    trained = place("tiny", "scales trained")
    report = distilled("sample:tiny", "sample:tiny", trained, ("--quantize", "int4"))
    dense = compression.bundle("tiny", "dense", "sample:tiny").ready()
    rows = []
    for name, source in (("rounded to nearest", "sample:tiny"), ("scales trained", trained)):
        path = place("tiny", f"{name} int4")
        if not path.exists():
            run(c.optimize(source, path, "--no-parity", "--quantize", "int4"))
        rows.append({"int4": name, "MB": size_of(path) / 1e6, **distance(path, dense)})
    rows[-1]["processor minutes"] = report["training"]["processor_seconds"] / 60
    return rows


def kill() -> list[Row]:
    """Killed as soon as it has kept a state, and given again."""
    student, options = pruned("tiny", MAGNITUDE), ("--steps", "60", "--rate", "2e-4")
    whole = distilled(student, "sample:tiny", place("tiny", "not killed"), options)
    out = place("tiny", "killed")
    if not out.exists():
        states = out.parent / f".{out.name}.distill"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        child = subprocess.Popen(
            command(student, "sample:tiny", out, options), cwd=ROOT, env=environment(), **quiet
        )
        while child.poll() is None and not list(states.glob("step-*[0-9]")):
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        for leftover in out.parent.glob(f".{out.name}.*.scratch"):
            shutil.rmtree(leftover)
    killed = distilled(student, "sample:tiny", out, options)

    def loss(report: Row) -> float:
        return float(report["training"]["curve"][-1]["loss"])

    weights = ["model.safetensors", "config.json"]
    same = all((place("tiny", "not killed") / w).read_bytes() == (out / w).read_bytes() for w in weights)
    return [
        {
            "killed at step": killed["training"]["resumed"][0],
            "final loss": loss(killed),
            "not killed": loss(whole),
            "same bytes": same,
        }
    ]


TABLES: dict[str, Callable[[], list[Row]]] = {
    "heal": heal,
    "scratch": scratch,
    "bytes": equal_bytes,
    "scales": scales,
    "kill": kill,
}


if __name__ == "__main__":
    sys.exit(main())
