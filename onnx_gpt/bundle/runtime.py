"""What a runtime runs, as far as a graph must know it before it is written."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from exporter.errors import unsupported


@dataclasses.dataclass(frozen=True)
class Runtime:
    """One runtime on one kind of device.

    Attributes:
        name: as messages call it, with the version that was tried.
        opset: newest version of the standard operators that it loads.
        lacks: operators that it has no kernel for, or none that is worth having, as ``domain::op``; the domain is left
            out for standard ones.
        caches: types of key/value cache that it feeds: ``float``, ``int8``.
        constant_scales: whether it looks up a table of codes only where its scales are constants, and no cast of one.
        pieces: whether long prompts come in pieces (`onnx_gpt.Generator`), so that attention may hold a run's scores.
    """

    name: str
    opset: int = 24
    lacks: frozenset[str] = frozenset()
    caches: tuple[str, ...] = ("float", "int8")
    constant_scales: bool = False
    pieces: bool = False


def require_runs(model: ir.Model, runtime: Runtime) -> None:
    """Refuse a finished graph that a runtime cannot load or runs badly.

    Raises:
        OnnxGptError: ``target-unsupported`` (exit 3).
    """
    version = model.graph.opset_imports.get("", 1)
    found = {f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph}
    details = [f"{op}: no kernel, or none that is fast" for op in sorted(found & runtime.lacks)]
    if version > runtime.opset:
        details.append(f"operator set {version}: it loads up to {runtime.opset}")
    if details:
        raise unsupported(
            "target-unsupported",
            f"{runtime.name} cannot run this graph as it is",
            "choose another target or another quantization",
            tuple(details),
        )
