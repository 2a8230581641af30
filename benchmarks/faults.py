"""Whether bisection names what is wrong: every fault of fault_list.py, put into the pipeline of its model.

    python -m benchmarks.faults [--json] [NAME ...]

Each model goes through its passes once as it should, where any verdict but right is a false alarm, and once with the
fault, where the pass and the layer that are named have to be the fault's. `finished` gives the faulty model itself.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import onnx_ir as ir

from benchmarks.fault_list import FAULTS, Fault
from benchmarks.measure import Row, holding, parser, publish, say
from calibration.quantization.weight_only import quantize_weights
from graph_passes import ORT_PIPELINE, parse, run_pipeline
from onnx_gpt.bisecting.cases import length_for
from onnx_gpt.bisecting.judging import truth_of
from onnx_gpt.bisecting.searching import Search, Stage, search
from onnx_gpt.exporting import export
from onnx_gpt.recipe import Recipe

WANTED = 28 / 30
"""Share of the faults whose pass and layer have to be named."""


def main() -> int:
    options = parser(__doc__)
    options.add_argument("names", nargs="*", help="only faults whose names hold one of these")
    chosen = options.parse_args()
    named = holding(chosen.names)
    wanted = [fault for fault in FAULTS if named(fault.name)]
    rows = [judged(fault) for fault in wanted]
    right = sum(row["right"] == "yes" for row in rows)
    alarms = sum(row["false alarm"] != "" for row in rows)
    say(f"{right} of {len(rows)} named, {alarms} false alarms")
    document = {"tables": {"faults": rows}, "named": right, "of": len(rows), "false_alarms": alarms}
    status = publish("faults", document, as_json=chosen.json, partial=len(wanted) < len(FAULTS))
    return status if right >= WANTED * len(rows) and not alarms else 1


def judged(fault: Fault) -> Row:
    """One line of the table."""
    started = time.perf_counter()
    healthy = searched(fault, faulty=False)
    alarm = "" if healthy.wrong is None else healthy.wrong.name
    seconds = time.perf_counter() - started
    found = searched(fault)
    named = "" if found.wrong is None else found.wrong.name
    place = "" if found.culprit is None else found.culprit.wrong.piece.place
    right = named == fault.after and place.startswith(fault.places)
    say(f"{time.perf_counter() - started:6.1f} s  {'right' if right else 'WRONG'}  {fault.name}")
    return {
        "fault": fault.name,
        "model": f"{fault.family} {fault.variant}",
        "put in after": fault.after,
        "in": " or ".join(fault.places),
        "pass named": named,
        "place named": place,
        "right": "yes" if right else "no",
        "false alarm": alarm,
        "seconds without": round(seconds, 2),
    }


def searched(fault: Fault, *, faulty: bool = True) -> Search:
    """What bisection makes of a fault's model."""
    model = export(fault.checkpoint()).model
    rows = np.random.default_rng(0).integers(0, 131, (2, length_for(model, 64)))
    return search(model, stages_of(fault, faulty=faulty), truth_of(model, rows))


def stages_of(fault: Fault, *, faulty: bool = True, scheme: str | None = None) -> list[Stage]:
    """The stages of a fault's model, from the canonical graph to the lowered and quantized one.

    Args:
        faulty: put the fault in.
        scheme: as ``--quantize`` takes it; the fault's own by default. A fault in codes wants its own.
    """
    scheme = fault.scheme if scheme is None else scheme

    def of(name: str) -> Stage:
        def apply(model: ir.Model) -> None:
            if name == "quantize":
                quantize_weights(model, Recipe(quantize=scheme).scheme(), {})
            else:
                run_pipeline(model, name, verify=False)
            if faulty and name == fault.after:
                fault.edit(model)

        return Stage(name, apply, lossy=name == "quantize")

    names = [str(step) for step in parse(ORT_PIPELINE)]
    return [of(name) for name in (*names, *(["quantize"] if scheme != "none" else []))]


def finished(fault: Fault, *, faulty: bool = True, scheme: str | None = None) -> ir.Model:
    """The fault's model after all stages; arguments as of `stages_of`."""
    model = export(fault.checkpoint()).model
    for stage in stages_of(fault, faulty=faulty, scheme=scheme):
        stage.apply(model)
    return model


if __name__ == "__main__":
    sys.exit(main())
