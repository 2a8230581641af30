"""Outputs appear whole or not at all: built beside their place, renamed into it at the end."""

from __future__ import annotations

import contextlib
import errno
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from exporter.errors import Exit, OnnxGptError

REMEDY = "check permissions and the path of -o"


def require_absent(out: Path) -> None:
    """Raise ``output-exists`` (exit 10) where there is something already, ``output-unwritable`` (exit 8) for a bad name
    and where nothing can be made."""
    with _explained(out, out.absolute().parent):
        there = out.exists() or out.is_symlink()
    if there:
        raise OnnxGptError(
            "output-exists", f"{out} exists already", "choose another -o, or remove it", exit=Exit.EXISTS
        )
    place = _existing_parent(out)
    if not place.is_dir():
        raise _unwritable(out, f"{place} is no folder")
    with _explained(out, place), tempfile.TemporaryFile(dir=place):
        pass


def write_file(out: Path, text: str) -> None:
    """Write a small file of results, and make the folder for it.

    Raises:
        OnnxGptError: ``output-exists`` (exit 10), ``disk-full`` (exit 7), ``output-unwritable`` (exit 8).
    """
    folder = out.absolute().parent
    partial = folder / f".{out.name}.{secrets.token_hex(4)}.partial"
    try:
        with _explained(out, folder):
            folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, "utf-8", newline="\n")
            require_absent(out)  # another run may have been quicker
            partial.rename(out)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def kept_folder(folder: Path) -> Path:
    """A folder for what is kept between runs, made where it is not there.

    Raises:
        OnnxGptError: ``disk-full`` (exit 7), ``output-unwritable`` (exit 8).
    """
    with _explained(
        folder, Path(folder.absolute().anchor), "name another with --work, or by the variable ONNX_GPT_CACHE"
    ):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def require_space(out: Path, nbytes: int) -> None:
    """Raise ``disk-full`` (exit 7) before anything is written that cannot fit."""
    free = shutil.disk_usage(_existing_parent(out)).free
    if nbytes > free:
        raise disk_full(out, f"{nbytes / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")


def disk_full(out: Path, why: str) -> OnnxGptError:
    return OnnxGptError(
        "disk-full",
        f"{out} cannot be written: {why}",
        "free disk space or choose another -o",
        exit=Exit.RESOURCES,
    )


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A directory to build in, which becomes ``out`` when the block ends well and vanishes when it does not.

    Raises:
        OnnxGptError: ``output-exists`` (exit 10), ``disk-full`` (exit 7), ``output-unwritable`` (exit 8).
    """
    require_absent(out)
    parent = out.absolute().parent
    # Named before it is made: a signal between making and naming would leave it behind.
    stage = parent / f".{out.name}.{secrets.token_hex(4)}.partial"
    try:
        with _explained(out, parent):
            parent.mkdir(parents=True, exist_ok=True)
            stage.mkdir()
        with _explained(out, stage):
            yield stage
            require_absent(out)  # another run may have been quicker
            stage.rename(out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def scratch(out: Path) -> Iterator[Path]:
    """Where a folder for what a job needs on the way may be made, on the disk of ``out``; it goes with the block."""
    folder = out.absolute().parent / f".{out.name}.{secrets.token_hex(4)}.scratch"
    try:
        with _explained(out, folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` for work that outlives a kill.

    It goes with the block, which may end well or with an error; where that is killed or interrupted it stays, and is
    what the next one for this output is given.

    Raises:
        OnnxGptError: ``output-busy`` (exit 10) where another process is in such a block.
    """
    folder = out.absolute().parent / f".{out.name}.unfinished"
    with _explained(out, folder), only_run(out, folder):
        try:
            yield folder
        except (KeyboardInterrupt, SystemExit) as stopped:
            stopped.add_note(f"the same command goes on from what is kept in {folder}")
            raise
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        else:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def only_run(out: Path, folder: Path) -> Iterator[None]:
    """A folder of what ``out`` is made from, made and held for this process alone.

    Raises:
        OnnxGptError: ``output-busy`` (exit 10) where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OnnxGptError(
            "output-busy",
            f"another run is making {out}",
            "wait for it, or choose another -o",
            exit=Exit.EXISTS,
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _explained(out: Path, place: Path, remedy: str = REMEDY) -> Iterator[None]:
    """Errors of writing below ``place``, explained. Others, of reading the source say, pass through."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise disk_full(out, str(error.strerror)) from error
        if error.filename is None or not Path(str(error.filename)).absolute().is_relative_to(place):
            raise
        raise _unwritable(out, str(error), remedy) from error


def _unwritable(out: Path, why: str, remedy: str = REMEDY) -> OnnxGptError:
    return OnnxGptError("output-unwritable", f"{out} cannot be written: {why}", remedy, exit=Exit.ENVIRONMENT)
