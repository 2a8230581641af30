"""Whether the gate can be trusted in both directions: faults that `validate` catches, and false alarms that it gives.

    python -m benchmarks.gate [--only catches|alarms|time] [--seeds N] [NAME ...]

`catches` puts each fault of `benchmarks.faults` into a tiny model of a fitting family and asks three gates: ours
(`onnx_gpt.validate` against the checkpoint), and two written after what the peers' own code does. Optimum's exporter
runs one token after a random past of 16, for 2 rows, and holds logits and presents against PyTorch with `np.allclose`
at `atol=1e-5`; a difference is a warning. Olive's OnnxDiscrepancyCheck runs one prefill with dummy tokens and an empty
cache and counts logits that differ by more than 0.01. `alarms` asks them about models without a fault: every family,
float, int8 and int4, several seeds, one and two threads. Then, in a table of its own, our gate alone is asked about
whole jobs, every family for every other scheme and target: by `optimize` itself, then by `validate` with one and two
threads. `time` is the whole of `validate` for SmolLM2 at int4 against PyTorch.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Row, holding, parser, publish, run, say
from benchmarks.paths import CACHE

TOKENS = 512
CONTEXT = 64
OPTIMUM_ATOL, OPTIMUM_ROWS, OPTIMUM_PAST = 1e-5, 2, 16
OLIVE_DIFFERENCE, OLIVE_TOKENS = 1e-2, 16
SCHEMES = ("none", "int8", "int4")
JOBS: Mapping[str, Mapping[str, str]] = {
    "w8a8": {"quantize": "w8a8"},
    "w8a8, rounded": {"quantize": "w8a8", "method": "rtn"},
    "dynamic8": {"quantize": "dynamic8"},
    "int4, gptq": {"quantize": "int4", "method": "gptq"},
    "int4, awq": {"quantize": "int4", "method": "awq"},
    "int4, bias": {"quantize": "int4", "method": "bias"},
    "int8, int8 cache": {"quantize": "int8", "kv_cache": "int8"},
    "none, int8 cache": {"kv_cache": "int8"},
    "fp16": {"quantize": "fp16"},
    "q4f16": {"quantize": "q4f16"},
    "genai, int4": {"target": "genai", "quantize": "int4"},
    "mobile, int8": {"target": "mobile", "quantize": "int8"},
    "openvino, none": {"target": "openvino"},
    "openvino, int4": {"target": "openvino", "quantize": "int4"},
    "optimum, none": {"target": "optimum"},
    "optimum, int8": {"target": "optimum", "quantize": "int8"},
    "web": {"target": "web"},
}
"""Settings of jobs by what the table calls them."""
REFUSALS = ("nothing-to-correct", "target-unsupported", "half-unsupported")
"""What a job may say of a family that it cannot be done for."""
READS_TEXT = ("w8a8", "gptq", "awq", "bias", "cache", "16", "web")
SECONDS = 90.0
JOB_SEEDS = 1
"""Seeds that jobs are done for at most: there are many of them."""


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--only", choices=("catches", "alarms", "time"), help="one of the three")
    options.add_argument("--seeds", type=int, default=3, help="models of each family in `alarms`")
    options.add_argument("names", nargs="*", help="only faults or families whose names hold one of these")
    chosen = options.parse_args()
    wanted = (chosen.only,) if chosen.only else ("catches", "alarms", "time")
    tables: dict[str, list[Row]] = {}
    document: Row = {"tables": tables}
    named = holding(chosen.names)
    failed = False
    if "catches" in wanted:
        tables["catches"] = list(catches(named))
        document["caught"] = {gate: sum(row[gate] == "caught" for row in tables["catches"]) for gate in GATES}
        failed |= any(row["onnx-gpt"] != "caught" for row in tables["catches"])
        say(f"caught of {len(tables['catches'])}: {document['caught']}")
    if "alarms" in wanted:
        tables["alarms"] = list(alarms(named, chosen.seeds))
        document["models"] = sum(row["models"] for row in tables["alarms"])
        document["false alarms"] = {gate: sum(row[gate] for row in tables["alarms"]) for gate in GATES}
        failed |= bool(document["false alarms"]["onnx-gpt"])
        say(f"false alarms of {document['models']}: {document['false alarms']}")
        tables["jobs"] = list(jobs(named, min(chosen.seeds, JOB_SEEDS)))
        document["job models"] = sum(row["models"] for row in tables["jobs"])
        document["job alarms"] = sum(row["alarms"] for row in tables["jobs"])
        failed |= bool(document["job alarms"])
        say(f"false alarms of {document['job models']} models of jobs: {document['job alarms']}")
    if "time" in wanted:
        tables["time"] = [timed()]
        failed |= tables["time"][0]["seconds"] > SECONDS
    partial = bool(chosen.only or chosen.names)
    status = publish("gate", document, as_json=chosen.json, partial=partial)
    return 1 if failed else status


# Faults ---------------------------------------------------------------------------------------------------


def catches(named: Callable[[str], bool]) -> Iterator[Row]:
    """Each fault with what the gates said."""
    from benchmarks.fault_list import FAULTS
    from benchmarks.faults import finished

    for fault in FAULTS:
        if not named(fault.name):
            continue
        with laid_out(fault.checkpoint(), finished(fault)) as (bundle, source):
            verdicts, why = judged(bundle, source)
        say(f"{'caught' if verdicts['onnx-gpt'] else 'MISSED':7} {fault.name}: {why[:100]}")
        told = {gate: "caught" if found else "missed" for gate, found in verdicts.items()}
        yield {
            "fault": fault.name,
            "family": fault.family,
            "scheme": fault.scheme,
            **told,
            "found as": why[:80],
        }


def alarms(named: Callable[[str], bool], seeds: int) -> Iterator[Row]:
    """False alarms by family and scheme."""
    from exporter.families import families
    from tests.tiny import tiny

    for family in filter(named, sorted(families())):
        for scheme in SCHEMES:
            row: Row = {"family": family, "scheme": scheme, "models": 0} | dict.fromkeys(GATES, 0)
            for seed in range(seeds):
                checkpoint = tiny(family, seed)
                with laid_out(checkpoint, healthy(checkpoint, scheme)) as (bundle, source):
                    for threads in (1, 2):
                        verdicts, why = judged(bundle, source, threads)
                        row["models"] += 1
                        for gate, alarm in verdicts.items():
                            row[gate] += alarm
                        if verdicts["onnx-gpt"]:
                            say(f"FALSE ALARM {family} {scheme} seed {seed} threads {threads}: {why}")
            say(f"{row}")
            yield row


def jobs(named: Callable[[str], bool], seeds: int) -> Iterator[Row]:
    """False alarms of whole jobs, by what they were asked for."""
    from exporter.errors import OnnxGptError
    from exporter.families import families
    from exporter.writing import write_checkpoint
    from tests.tiny import tiny

    for name, settings in JOBS.items():
        row: Row = {"job": name, "models": 0, "refused": 0, "alarms": 0}
        for family in filter(named, sorted(families())):
            for seed in range(seeds):
                with tempfile.TemporaryDirectory(prefix="gate-") as folder:
                    source = Path(folder) / "source"
                    source.mkdir()
                    checkpoint = tiny(family, seed)
                    write_checkpoint(source, checkpoint)
                    try:
                        alarms_of = list(_job_alarms(name, settings, source, Path(folder)))
                    except OnnxGptError as error:
                        if error.code not in REFUSALS:
                            raise
                        row["refused"] += 1
                        continue
                row["models"] += len(alarms_of)
                row["alarms"] += sum(map(bool, alarms_of))
                for why in filter(None, alarms_of):
                    say(f"FALSE ALARM {family} {name} seed {seed}: {why}")
        say(f"{row}")
        yield row


def _job_alarms(name: str, settings: Mapping[str, str], source: Path, folder: Path) -> Iterator[str]:
    """Why `optimize` or `validate` says that a model of a job is not its source; empty where neither does."""
    from exporter.errors import OnnxGptError
    from onnx_gpt import optimize

    text = folder / "text.npy"
    np.save(text, np.random.default_rng(2).integers(0, 131, 2048))
    reads = {"calibration": text} if any(part in name for part in READS_TEXT) else {}
    bundle = folder / "bundle"
    try:
        optimize(str(source), bundle, tokens=TOKENS, verify=False, **settings, **reads)
    except OnnxGptError as error:
        if error.code not in ("parity-failed", "weights-untrue"):
            raise
        yield "; ".join([error.cause, *error.details])
        return
    models = sorted(bundle.rglob("*.onnx"))
    if not models:  # what only the runtime of a phone opens, `optimize` has proven and compared
        yield ""
    for model in models:
        for threads in (1, 2):
            refused, why = ours(model, source, threads)
            yield why if refused else ""


def healthy(checkpoint: Any, scheme: str) -> Any:
    """A model as it should be."""
    from calibration.quantization.weight_only import quantize_weights
    from graph_passes import ORT_PIPELINE, run_pipeline
    from onnx_gpt.exporting import export
    from onnx_gpt.recipe import Recipe

    model = export(checkpoint).model
    run_pipeline(model, ORT_PIPELINE, verify=False)
    if scheme != "none":
        quantize_weights(model, Recipe(quantize=scheme).scheme(), {})
    return model


@contextmanager
def laid_out(checkpoint: Any, model: Any) -> Iterator[tuple[Path, Path]]:
    """A bundle's folder and a checkpoint's, as users have them."""
    from exporter.writing import write_checkpoint
    from onnx_gpt.bundle.writing import save
    from onnx_gpt.progress import Silent

    with tempfile.TemporaryDirectory(prefix="gate-") as folder:
        bundle, source = Path(folder) / "bundle", Path(folder) / "source"
        bundle.mkdir()
        source.mkdir()
        write_checkpoint(source, checkpoint)
        save(model, bundle, Silent())
        (bundle / "config.json").write_text(json.dumps({"max_position_embeddings": CONTEXT}), "utf-8")
        yield bundle, source


# Gates ----------------------------------------------------------------------------------------------------


def judged(bundle: Path, source: Path, threads: int = 0) -> tuple[dict[str, bool], str]:
    """Which gates say that a bundle is not its source, and why ours does."""
    from exporter import sources
    from exporter.reference import Reference
    from onnx_gpt.parity.candidate import Candidate

    refused, why = ours(bundle, source, threads)
    reference = Reference(sources.load(str(source)))
    candidate = Candidate(bundle / "model.onnx", threads)
    peers = {name: _fails(lambda gate=gate: gate(candidate, reference)) for name, gate in PEERS.items()}
    return {"onnx-gpt": refused, **peers}, why


def ours(bundle: Path, source: Path, threads: int) -> tuple[bool, str]:
    """What `validate` says of a bundle's folder or a model in it."""
    from exporter.errors import OnnxGptError
    from onnx_gpt.validation import validate

    try:
        parity = validate(bundle, source, tokens=TOKENS, threads=threads)
    except OnnxGptError as error:
        return True, str(error.cause)
    return parity.verdict == "fail", "; ".join(parity.failures)


def optimum_style(candidate: Any, reference: Any) -> bool:
    """One token after a random past, logits and presents; whether they differ."""
    rng = np.random.default_rng(0)
    past = {
        slot.past: rng.standard_normal((OPTIMUM_ROWS, slot.shape[1], OPTIMUM_PAST, slot.shape[3]), np.float32)
        for slot in candidate.interface.slots
    }
    tokens = rng.integers(0, candidate.vocab_size, (OPTIMUM_ROWS, 1))
    logits, presents = candidate.run(tokens, past=past)
    pairs = [
        (past[f"past_key_values.{i}.key"], past[f"past_key_values.{i}.value"]) for i in range(len(past) // 2)
    ]
    theirs, kept = reference.after(tokens, pairs)
    close = np.allclose(theirs, logits, atol=OPTIMUM_ATOL)
    for i, (keys, values) in enumerate(kept):
        for side, array in (("key", keys), ("value", values)):
            have = presents[f"past_key_values.{i}.{side}"][:, :, -array.shape[2] :]
            close &= np.allclose(array, have, atol=OPTIMUM_ATOL)
    return not close


def olive_style(candidate: Any, reference: Any) -> bool:
    """One prefill of dummy tokens after an empty cache; whether a logit differs by more than 0.01."""
    tokens = np.random.default_rng(0).integers(0, candidate.vocab_size, (1, OLIVE_TOKENS))
    difference = np.abs(candidate.logits(tokens) - reference.logits(tokens)).max()
    return not difference <= OLIVE_DIFFERENCE


def _fails(gate: Callable[[], bool]) -> bool:
    """A model that does not run is caught by whoever runs it."""
    try:
        return gate()
    except Exception as error:  # whatever onnxruntime raises
        say(f"  {type(error).__name__}: {str(error).splitlines()[0][:100]}")
        return True


PEERS: dict[str, Callable[[Any, Any], bool]] = {"Optimum-style": optimum_style, "Olive-style": olive_style}
GATES = ("onnx-gpt", *PEERS)


# Time -----------------------------------------------------------------------------------------------------


def timed() -> Row:
    """Seconds of `validate` for SmolLM2 at int4 against PyTorch, start-up included."""
    from benchmarks.contenders import optimize, our_command
    from benchmarks.models import ensure
    from benchmarks.paths import SMOLLM2

    ensure(SMOLLM2)
    bundle = CACHE / "gate" / "smollm2-int4"
    if not bundle.exists():
        bundle.parent.mkdir(parents=True, exist_ok=True)
        run(optimize(SMOLLM2, bundle, "--quantize", "int4", "--no-parity"))
    started = time.perf_counter()
    child = run(our_command("validate", bundle, "--against", SMOLLM2, "--json"))
    seconds = time.perf_counter() - started
    parity = json.loads(child.stdout)
    return {
        "model": "SmolLM2 int4 against PyTorch",
        "verdict": parity["verdict"],
        "cases": len(parity["checks"]),
        "seconds": seconds,
        "cpu seconds": child.cpu_seconds,
        "peak MB": child.peak_rss_bytes / 1e6,
    }


if __name__ == "__main__":
    sys.exit(main())
