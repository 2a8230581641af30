"""One virtual environment for each peer, under benchmarks/.envs/.

    python -m benchmarks.environment [genai optimum ...]

Each is benchmarks/requirements/NAME.txt, pinned, then NAME.no-deps.txt without dependencies, if there is one.
torch goes in first and alone: an open range of a later package would otherwise bring gigabytes of CUDA.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.measure import say
from benchmarks.paths import ENVIRONMENTS, REQUIREMENTS

NO_DEPS = ".no-deps.txt"


class NotHereError(RuntimeError):
    """A runtime is not installed on this machine."""


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment, made if it is missing or its requirements have changed."""
    folder = ENVIRONMENTS / name
    files = [REQUIREMENTS / f"{name}.txt", REQUIREMENTS / f"{name}{NO_DEPS}"]
    wanted = {file: file.read_text("utf-8") for file in files if file.exists()}
    stamp, content = folder / ".ready", "".join(wanted.values())
    if not stamp.exists() or stamp.read_text("utf-8") != content:
        _make(folder, wanted)
        stamp.write_text(content, "utf-8")
    return folder / "bin" / "python"


def names() -> list[str]:
    return sorted(file.stem for file in REQUIREMENTS.glob("*.txt") if not file.name.endswith(NO_DEPS))


def _make(folder: Path, wanted: dict[Path, str]) -> None:
    say(f"making the environment {folder.name}")
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    lines = "".join(wanted.values()).splitlines()
    for torch in (line for line in lines if line.startswith("torch==")):
        _pip(folder, torch)
    for file in wanted:
        _pip(folder, *(["--no-deps"] if file.name.endswith(NO_DEPS) else []), "-r", str(file))


def _pip(folder: Path, *what: str) -> None:
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", *what], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    for name in sys.argv[1:] or names():
        print(python_of(name))
