"""One virtual environment for each peer, under benchmarks/.envs/.

    python -m benchmarks.environment [genai mobius openvino llama_cpp optimum]

Each is benchmarks/requirements/NAME.txt, pinned. torch goes in first and alone: an open range of a later package would
otherwise bring gigabytes of CUDA.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.measure import say
from benchmarks.paths import ENVIRONMENTS, REQUIREMENTS

STAMP = ".ready"


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment, which is made if it is missing or its requirements have changed."""
    folder = ENVIRONMENTS / name
    requirements = REQUIREMENTS / f"{name}.txt"
    stamp = folder / STAMP
    if not stamp.exists() or stamp.read_text("utf-8") != requirements.read_text("utf-8"):
        _make(folder, requirements)
        stamp.write_text(requirements.read_text("utf-8"), "utf-8")
    return folder / "bin" / "python"


def names() -> list[str]:
    return sorted(file.stem for file in REQUIREMENTS.glob("*.txt"))


def _make(folder: Path, requirements: Path) -> None:
    say(f"making the environment {folder.name}")
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    lines = requirements.read_text("utf-8").splitlines()
    for torch in (line for line in lines if line.startswith("torch==")):
        _pip(folder, torch)
    _pip(folder, "-r", str(requirements))


def _pip(folder: Path, *what: str) -> None:
    command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what]
    subprocess.run(command, check=True, stdout=sys.stderr)


if __name__ == "__main__":
    for name in sys.argv[1:] or names():
        print(python_of(name))
