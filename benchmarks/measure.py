"""Shared measuring: a command as a child, interleaved runs, medians, and results for people and for programs.

Only the standard library is imported here, and by make_time: Linux starts a child's peak memory at the size
of the process that forked it, so the measuring process has to stay small.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from benchmarks.peers.protocol import THREADS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

Row = dict[str, Any]
T = TypeVar("T")


class ChildFailedError(RuntimeError):
    """A measured command exited with a status other than 0."""


@dataclass(frozen=True)
class Child:
    """What one finished child took: wall and processor seconds, peak resident bytes, and what it printed on stdout."""

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    stdout: str

    def document(self) -> Any:
        """The JSON document on the last line of stdout."""
        return json.loads(self.stdout.strip().splitlines()[-1])


def run(command: Sequence[str | Path]) -> Child:
    """Run a command from the repository's root and measure it from outside, start-up included.

    Raises:
        ChildFailedError: with the end of its stderr.
    """
    argv = [str(part) for part in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        child = subprocess.Popen(
            argv, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            raise ChildFailedError(f"exit {child.returncode}: {' '.join(argv)}\n{_text(err)[-3000:]}")
        unit = 1 if sys.platform == "darwin" else 1024
        return Child(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, _text(out))


def environment() -> dict[str, str]:
    """A child's environment: THREADS threads for every library, no network, and modules compiled once, as usual."""
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ONEDNN_NUM_THREADS")
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return usual | offline | dict.fromkeys(threads, str(THREADS)) | {"TOKENIZERS_PARALLELISM": "false"}


def interleave(
    contenders: Mapping[str, Callable[[], T]], rounds: int
) -> tuple[dict[str, list[T]], dict[str, str]]:
    """Run A B C A B C …, so that a slow minute of the machine hits all of them.

    Returns:
        The samples of those that ran, and why the others failed, by name.
    """
    samples: dict[str, list[T]] = {name: [] for name in contenders}
    failed: dict[str, str] = {}
    for turn in range(rounds):
        for name in list(samples):
            say(f"round {turn + 1}/{rounds}: {name}")
            try:
                samples[name].append(contenders[name]())
            except ChildFailedError as error:
                failed[name] = str(error)
                del samples[name]
    return samples, failed


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def say(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def size_of(path: Path) -> int:
    """Bytes of a file, or of the model files in a folder (tokenizers and configurations not counted)."""
    if path.is_file():
        return path.stat().st_size
    model = (".onnx", ".data", ".onnx_data", ".bin", ".safetensors")
    return sum(file.stat().st_size for file in path.rglob("*") if file.name.endswith(model))


def fresh(path: Path) -> Path:
    """The path, with nothing at it and its parent there."""
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def machine() -> Row:
    """What a reader needs to know to judge a timing."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def table(rows: Sequence[Row]) -> str:
    """Rows as an aligned markdown table; the first row's keys are the columns."""
    columns = [[name, *(_cell(row.get(name)) for row in rows)] for name in rows[0]]
    padded = [[text.ljust(max(map(len, column))) for text in column] for column in columns]
    rule = "|".join("-" * (len(column[0]) + 2) for column in padded)
    lines = [f"| {' | '.join(line)} |" for line in zip(*padded, strict=True)]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def publish(name: str, document: Row, *, as_json: bool, partial: bool) -> int:
    """Print a benchmark's document, or its tables; keep it as results/NAME.json unless it is partial.

    Returns:
        The exit status: 1 where the document says that something ``failed``.
    """
    tables: dict[str, list[Row]] = document["tables"]
    failed: dict[str, str] = document.get("failed", {})
    text = json.dumps({"benchmark": name, "machine": machine(), **document}, indent=1)
    if not partial:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}.json").write_text(text + "\n", "utf-8")
    for contender, message in failed.items():
        say(f"{contender} failed: {message}")
    print(text if as_json else "\n\n".join(table(rows) for rows in tables.values() if rows))
    return 1 if failed else 0


def parser(
    doc: str | None, *, rounds: int | None = None, only: str = "", remake: str = ""
) -> argparse.ArgumentParser:
    """What every benchmark command takes, and what several do.

    Args:
        rounds: --rounds, this many by default.
        only: --only, of what.
        remake: --remake, which does this.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="print the JSON document instead of tables")
    if rounds is not None:
        made.add_argument("--rounds", type=int, default=rounds, help=f"samples of each ({rounds})")
    if only:
        made.add_argument("--only", action="append", help=f"the {only} whose name has this in it")
    if remake:
        made.add_argument("--remake", action="store_true", help=remake)
    return made


def holding(parts: Sequence[str] | None) -> Callable[[str], bool]:
    """Whether a name has one of some parts in it; any name where there are none."""
    return lambda name: not parts or any(part in name for part in parts)


def file_name(name: str) -> str:
    """A name as files are called."""
    return "".join(character if character.isalnum() else "-" for character in name.lower())


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode("utf-8", "replace")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
