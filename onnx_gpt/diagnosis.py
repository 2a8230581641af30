"""Is this machine fit: what is needed is here, what is missing, and what the optional parts would allow. No network."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from packaging.requirements import Requirement

from onnx_gpt.machine import Machine, free_disk, this_machine

Status = Literal["ok", "warning", "missing"]

DISTRIBUTION = "onnx-gpt"
PYTHONS = ((3, 11), (3, 14))
"""The first version that runs, and the first that does not."""

ALLOWS: Mapping[str, str] = {
    "reference": "comparing with PyTorch, module: sources",
    "genai": "running bundles in onnxruntime-genai",
    "onnxsim": "the pass onnxsim",
    "openvino": "running bundles in OpenVINO",
    "data": "calibration text from .parquet",
}
"""What an extra is for. Those for work on this project itself are not asked for."""

NOT_ASKED = ("dev",)
MEMORY = 2 << 30
"""Bytes that comparing a model of 135M parameters with PyTorch takes at most (measured: 1.8 GB)."""
DISK = 2 << 30


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        status: ``missing`` where nothing works without it, ``warning`` where something is slow or left out.
        found: what is here.
        remedy: what to do; empty where nothing is.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """All checks."""

    checks: tuple[Check, ...]

    @property
    def fit(self) -> bool:
        """Whether nothing that is needed is missing."""
        return all(check.status != "missing" for check in self.checks)

    def json(self) -> dict[str, Any]:
        """Plain values."""
        checks = [dataclasses.asdict(check) for check in self.checks]
        return {"schema": "onnx-gpt/doctor/1", "fit": self.fit, "checks": checks}


def doctor() -> Diagnosis:
    """Look at Python, packages, CPU, threads, memory and disk, and run one small graph."""
    machine = this_machine()
    return Diagnosis((_python(), *_packages(), _runs(), *_cpu(machine), *_room(machine)))


def _python() -> Check:
    version, (first, beyond) = sys.version_info[:2], PYTHONS
    if first <= version < beyond:
        return Check("python", "ok", platform.python_version())
    wanted = f"use Python {first[0]}.{first[1]} to {beyond[0]}.{beyond[1] - 1}"
    return Check("python", "missing", platform.python_version(), wanted)


def _packages() -> Iterator[Check]:
    """Packages of the core one by one, those of an extra together."""
    try:
        requires = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("onnx-gpt", "missing", "run from a folder, not installed", "pip install onnx-gpt")
        return
    needed = [Requirement(text) for text in requires]
    extras = importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    for requirement in (r for r in needed if _wanted(r, "")):
        found, fits = _installed(requirement)
        remedy = "" if fits else f"pip install '{requirement.name}{requirement.specifier}'"
        yield Check(requirement.name, "ok" if fits else "missing", found, remedy)
    for extra in (e for e in extras if e not in NOT_ASKED):
        own = [r for r in needed if _wanted(r, extra) and not _wanted(r, "")]
        states = [(r.name, *_installed(r)) for r in own]
        fits = all(fit for _, _, fit in states)
        found = ", ".join(f"{name} {version}" for name, version, _ in states)
        purpose = ALLOWS.get(extra, "")
        remedy = "" if fits else f"pip install 'onnx-gpt[{extra}]' allows {purpose}"
        yield Check(f"extra {extra}", "ok" if fits else "warning", found, remedy)


def _wanted(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _installed(requirement: Requirement) -> tuple[str, bool]:
    """The version that is here, and whether it is one that is wanted."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed", False
    return version, requirement.specifier.contains(version, prereleases=True)


def _runs() -> Check:
    """One product with 4-bit weights, its answer known: the kernel that most bundles live by."""
    try:
        import onnxruntime as ort

        session = ort.InferenceSession(_product().SerializeToString(), providers=["CPUExecutionProvider"])
        (y,) = session.run(None, {"x": np.ones((1, 32), np.float32)})
    except Exception as error:  # an import, a library's loader and a kernel raise kinds of their own
        return Check("4-bit product", "missing", f"it does not run: {error}"[:200], "reinstall onnxruntime")
    if np.allclose(y, 32.0, rtol=0.02):
        return Check("4-bit product", "ok", f"right on onnxruntime {ort.__version__}")
    return Check(
        "4-bit product", "missing", f"it gives {float(y[0, 0]):.3f} and not 32", "use another onnxruntime"
    )


def _product() -> onnx.ModelProto:
    """x [1, 32] · Wᵀ, W [1, 32] of ones: codes of 9 stand for 9 − 8, at a scale of 1."""
    helper = onnx.helper
    grid: dict[str, Any] = {"K": 32, "N": 1, "bits": 4, "block_size": 32, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **grid)
    weights = [
        onnx.numpy_helper.from_array(np.full((1, 1, 16), 0x99, np.uint8), "w"),
        onnx.numpy_helper.from_array(np.ones(1, np.float32), "s"),
    ]
    x, y = (helper.make_tensor_value_info(name, 1, [1, size]) for name, size in (("x", 32), ("y", 1)))
    graph = helper.make_graph([node], "product", [x], [y], weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _cpu(machine: Machine) -> Iterator[Check]:
    has = machine.features
    found = f"{machine.system}, {machine.cpu}"
    if has is None:
        yield Check("cpu", "warning", found, "its instructions are not told; measure with `onnx-gpt bench`")
    elif has & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}:
        yield Check("cpu", "ok", f"{found}: {', '.join(sorted(has))}")
    elif "avx2" in has:
        slow = "integer products are slower than with VNNI; quantize symmetrically, as is the default"
        yield Check("cpu", "warning", f"{found}: {', '.join(sorted(has))}", slow)
    else:
        yield Check(
            "cpu",
            "warning",
            found,
            "quantized kernels have no instructions of their own here; measure with `onnx-gpt bench`",
        )
    yield Check("threads", "ok", f"{machine.threads} that this process may use")


def _room(machine: Machine) -> Iterator[Check]:
    if machine.memory is None or machine.available is None:
        yield Check("memory", "warning", "not told by the system", "leave 2 GB free to compare with PyTorch")
    else:
        found = f"{machine.available / 1e9:.1f} GB free of {machine.memory / 1e9:.1f}"
        enough = machine.available >= MEMORY
        remedy = "" if enough else "close other programs, or use --no-parity: weights stream through"
        yield Check("memory", "ok" if enough else "warning", found, remedy)
    for name, folder in (
        ("disk here", Path.cwd()),
        ("disk for temporary files", Path(tempfile.gettempdir())),
    ):
        free = free_disk(folder)
        remedy = (
            ""
            if free >= DISK
            else "free some: a bundle takes up to 4 bytes a parameter, and as much while it is made"
        )
        yield Check(name, "ok" if free >= DISK else "warning", f"{free / 1e9:.1f} GB free", remedy)
