"""What pruning costs and gains: zeros by three methods, structures fitted or not, a smaller vocabulary, and the
speed of it.

    python -m benchmarks.compression [--model tiny --model permuted] [--rounds 5] [--only NAME] [--remake] [--json]

Perplexity is measured by `onnx-gpt prune` itself, on English that calibration never reads, as a ratio to the dense
model in the same process. Speed is that of the float32 bundles, prefill of 512 tokens and 64 decode steps after
them in a fresh process, in turn; the expected speed-up is the quotient of the multiplications that each takes.
`permuted` is SmolLM2 with its channels in another order (models.py says why). Timings mean something on an
otherwise idle machine only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import contenders as c
from benchmarks.measure import (
    ChildFailedError,
    Row,
    file_name,
    fresh,
    holding,
    interleave,
    median,
    parser,
    publish,
    run,
    say,
    size_of,
)
from benchmarks.models import ensure
from benchmarks.paths import CACHE, PERMUTED
from benchmarks.peers.protocol import CONTEXT

FOLDER = CACHE / "compression"
SOURCES: dict[str, str | Path] = {"tiny": "sample:tiny", "permuted": PERMUTED}
TOKENS = "4096"


@dataclass(frozen=True)
class Variant:
    """One way to prune.

    Attributes:
        name: as the tables have it.
        options: of ``onnx-gpt prune``.
        timed: whether its bundle's speed is measured.
    """

    name: str
    options: tuple[str, ...]
    timed: bool = False


def zeros(method: str, *options: str) -> tuple[str, ...]:
    return ("--method", method, *options)


UNIFORM = ("--allocate", "uniform")
HALF, PATTERN = ("--sparsity", "0.5"), ("--pattern", "2:4")
WEIGHTS = (
    *(Variant(f"{name} 50 %", zeros(name, *HALF, *UNIFORM)) for name in ("magnitude", "wanda", "sparsegpt")),
    *(Variant(f"{name} 50 %, searched", zeros(name, *HALF)) for name in ("wanda", "sparsegpt")),
    *(Variant(f"{name} 2:4", zeros(name, *PATTERN)) for name in ("magnitude", "wanda", "sparsegpt")),
)
QUARTER = ("--structured", "ffn=0.25")
STRUCTURES = (
    Variant("FFN −25 %, magnitude, uniform", (*QUARTER, "--method", "magnitude")),
    Variant("FFN −25 %, fitted, uniform", (*QUARTER, *UNIFORM), timed=True),
    Variant("FFN −25 %, fitted, searched", QUARTER, timed=True),
    Variant("heads −1/3, fitted", ("--structured", "heads=0.34"), timed=True),
    Variant("hidden −10 %, fitted", ("--structured", "hidden=0.1"), timed=True),
    Variant("layers −10 %, fitted", ("--structured", "layers=0.1"), timed=True),
)
VOCABULARY = Variant("vocabulary of the corpus", ("--structured", "vocab=used"), timed=True)


def main() -> int:
    options = parser(__doc__, rounds=5, only="variants", remake="prune again")
    options.add_argument("--model", action="append", choices=list(SOURCES), help="all by default")
    chosen = options.parse_args()
    models = chosen.model or list(SOURCES)
    if "permuted" in models:
        ensure(PERMUTED)
    if chosen.remake:
        fresh(FOLDER)
    tables: dict[str, list[Row]] = {}
    failed: dict[str, str] = {}
    for model in models:
        for name, rows in measured(model, chosen.only, chosen.rounds, failed):
            tables[f"{name}, {model}"] = rows
    partial = bool(chosen.only or chosen.model)
    return publish("compression", {"tables": tables, "failed": failed}, as_json=chosen.json, partial=partial)


def measured(
    model: str, only: list[str] | None, rounds: int, failed: dict[str, str]
) -> Iterator[tuple[str, list[Row]]]:
    """The tables of one model."""
    done: list[Variant] = []
    wanted = holding(only)
    for name, variants in (("zeros", WEIGHTS), ("structures", (*STRUCTURES, VOCABULARY))):
        rows = []
        for variant in (one for one in variants if wanted(one.name)):
            try:
                rows.append(damage(model, variant))
                done.append(variant)
            except ChildFailedError as error:
                failed[f"{variant.name}, {model}"] = str(error)
        yield name, rows
    if VOCABULARY in done:
        yield "exactness", [exactness(model)]
    timed = [variant for variant in done if variant.timed]
    if timed and model != "tiny":  # whose context is shorter than the prompt that is timed
        yield "speed", speed(model, timed, rounds, failed)


def folder_of(model: str, name: str) -> Path:
    return FOLDER / model / file_name(name)


def corpus() -> Path:
    """What a vocabulary is cut to: the calibration part of Python's documentation."""
    from onnx_gpt.parity.text import calibration_text

    path = FOLDER / "corpus.txt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(calibration_text(), "utf-8")
    return path


def pruned(model: str, variant: Variant) -> Path:
    """The pruned checkpoint, made where it is missing, by the command that a user types."""
    out = folder_of(model, variant.name)
    if not out.exists():
        say(f"pruning {model}: {variant.name}")
        options = [*variant.options, *(["--calibration", str(corpus())] if variant == VOCABULARY else [])]
        run(c.our_command("prune", SOURCES[model], "-o", out, "--tokens", TOKENS, *options))
    return out


def damage(model: str, variant: Variant) -> Row:
    report = json.loads((pruned(model, variant) / "report.json").read_text("utf-8"))
    before, after = report["before"], report["after"]
    return {
        "pruned": variant.name,
        "perplexity": after["perplexity"],
        "of dense": report["perplexity_ratio"],
        "bits a byte": after["bits_per_byte"],
        "bits of dense": before["bits_per_byte"],
        "M parameters": after["size"]["parameters"] / 1e6,
        "size of dense": after["size"]["nbytes"] / before["size"]["nbytes"],
        "compressed, of dense": after["size"]["compressed"] / before["size"]["compressed"],
        "seconds": round(sum(stage["seconds"] for stage in report["stages"])),
    }


def bundle(model: str, name: str, source: str | Path) -> c.Contender:
    """The float32 bundle of a checkpoint."""
    path = folder_of(model, f"{name} bundle")
    return c.Contender(name, path, lambda: c.optimize(source, path, "--no-parity"), c.on_onnxruntime)


def exactness(model: str) -> Row:
    """Logits of kept tokens before and after the others have gone, on the corpus."""
    from tokenizers import Tokenizer

    from exporter import sources
    from onnx_gpt.parity.candidate import Candidate

    small = sources.load(str(pruned(model, VOCABULARY)))
    whole = sources.load(str(SOURCES[model]))
    cut = [Tokenizer.from_str(source.files["tokenizer.json"].decode()) for source in (whole, small)]
    text = corpus().read_text("utf-8")[:4000]
    ids = [tokenizer.encode(text, add_special_tokens=False).ids[:200] for tokenizer in cut]
    vocabularies = [tokenizer.get_vocab() for tokenizer in cut]
    new = {i: vocabularies[1][token] for token, i in vocabularies[0].items() if token in vocabularies[1]}
    old_of = {place: i for i, place in new.items()}
    places = sorted(old_of)
    bundles = [
        bundle(model, "dense", SOURCES[model]),
        bundle(model, VOCABULARY.name, pruned(model, VOCABULARY)),
    ]
    dense, ours = (
        Candidate(one.ready() / "model.onnx").logits(np.array([row], np.int64))[0]
        for one, row in zip(bundles, ids, strict=True)
    )
    before, after = dense[:, [old_of[place] for place in places]], ours[:, places]
    return {
        "tokens kept": len(places),
        "of": len(vocabularies[0]),
        "same tokens": [new.get(i) for i in ids[0]] == ids[1],
        "largest |Δlogit|": float(np.abs(before - after).max()),
        "bundle, MB": size_of(bundles[1].path) / 1e6,
        "dense, MB": size_of(bundles[0].path) / 1e6,
    }


def speed(model: str, timed: list[Variant], rounds: int, failed: dict[str, str]) -> list[Row]:
    """Speed-ups as measured, round by round, and as the multiplications say."""
    sources: dict[str, str | Path] = {"dense": SOURCES[model]}
    sources |= {variant.name: pruned(model, variant) for variant in timed}
    made, broken = c.prepared([bundle(model, name, source) for name, source in sources.items()])
    sampled: dict[str, Callable[[], Row]] = {one.name: one.speed for one in made}
    samples, more = interleave(sampled, rounds)
    failed |= {f"speed of {name}, {model}": why for name, why in (broken | more).items()}
    if "dense" not in samples:
        return []
    work = {name: multiplications(sources[name]) for name in samples}
    rows = []
    for name, runs in samples.items():
        row: Row = {"bundle": name}
        for phase in ("prefill", "decode"):
            key = f"{phase}_tokens_per_second"
            gain = median([a[key] / b[key] for a, b in zip(runs, samples["dense"], strict=True)])
            expected = work["dense"][phase] / work[name][phase]
            row |= {
                f"{phase} tok/s": median([a[key] for a in runs]),
                f"{phase} ×": gain,
                f"{phase} × expected": expected,
                f"{phase}, of expected": gain / expected,
            }
        rows.append(row)
    return rows


def multiplications(source: str | Path) -> dict[str, float]:
    """Of one token: in a prefill of `CONTEXT` tokens whose last logits alone are wanted, and in a step after it."""
    from exporter import sources
    from exporter.checkpoint import Checkpoint
    from exporter.families import describe

    opened = sources.load(str(source))
    assert isinstance(opened, Checkpoint)
    decoder = describe(opened)
    layers = attended = 0.0
    for layer in decoder.layers:
        attention, ffn = layer.attention, layer.ffn
        maps = (attention.q, attention.k, attention.v, attention.o, ffn.up, ffn.gate, ffn.down)
        layers += sum(float(np.prod(one.weight.shape)) for one in maps if one is not None)
        attended += 2 * attention.heads * attention.head_dim
    head = decoder.vocab_size * decoder.hidden_size
    return {
        "prefill": layers + attended * CONTEXT / 2 + head / CONTEXT,
        "decode": layers + attended * CONTEXT + head,
    }


if __name__ == "__main__":
    sys.exit(main())
