"""What this machine has: instructions of its CPU, threads that a process may use, memory and disk. Nothing is timed."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import subprocess
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Instructions that onnxruntime's kernels for integers choose by, as Linux calls them."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Facts of a machine.

    Attributes:
        cpu: its name, as the system tells it.
        features: those of `FEATURES` that it has; None where the system does not tell.
        threads: that this process may use, a container's quota counted.
        memory: bytes that this process may have, a container's limit counted; None where the system does not tell.
        available: bytes of that which are free; None as above.
    """

    system: str
    cpu: str
    features: frozenset[str] | None
    threads: int
    memory: int | None
    available: int | None


def this_machine() -> Machine:
    """Ask the system."""
    text = _read(Path("/proc/cpuinfo"))
    total, available = memory_of(
        _read(Path("/proc/meminfo")), _read(CGROUP / "memory.max"), _read(CGROUP / "memory.current")
    )
    return Machine(
        f"{platform.system()} {platform.machine()}",
        _field(text, "model name") or platform.processor() or platform.machine(),
        features_of(text) if text else _apple_features(),
        threads_of(_allowed(), _read(CGROUP / "cpu.max")),
        total,
        available,
    )


def features_of(cpuinfo: str) -> frozenset[str] | None:
    """Instructions of the first processor of a /proc/cpuinfo, x86 (``flags``) or Arm (``Features``)."""
    flags = _field(cpuinfo, "flags") or _field(cpuinfo, "Features")
    return frozenset(flags.split()) & frozenset(FEATURES) if flags else None


def threads_of(allowed: int, cpu_max: str) -> int:
    """Threads of a process that may run on so many processors, under a cgroup's ``quota period`` in microseconds."""
    quota, _, period = cpu_max.strip().partition(" ")
    if quota.isdecimal() and period.isdecimal() and int(period):
        return max(1, min(allowed, int(quota) // int(period)))
    return max(1, allowed)


def memory_of(meminfo: str, limit: str, used: str) -> tuple[int | None, int | None]:
    """Bytes in all and free, of a /proc/meminfo (kB) and a cgroup's limit and use (bytes, or ``max``)."""
    total, available = (_kilobytes(meminfo, key) for key in ("MemTotal", "MemAvailable"))
    if limit.strip().isdecimal() and used.strip().isdecimal():
        most = int(limit)
        free = max(0, most - int(used))
        total = most if total is None else min(total, most)
        available = free if available is None else min(available, free)
    return total, available


def free_disk(folder: Path) -> int:
    """Bytes free where a folder is."""
    return shutil.disk_usage(folder).free


def _kilobytes(meminfo: str, key: str) -> int | None:
    value = _field(meminfo, key).removesuffix("kB").strip()
    return int(value) * 1024 if value.isdecimal() else None


def _field(text: str, key: str) -> str:
    """The value of the first line ``key : value``."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _allowed() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _apple_features() -> frozenset[str] | None:
    """macOS tells by names of its own; its Arm processors all have the dot product."""
    if platform.system() != "Darwin":
        return None
    if platform.machine() == "arm64":
        return frozenset({"asimddp"})
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.leaf7_features"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.lower().split()
    return frozenset(said) & frozenset(FEATURES)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
