"""Documents of a file or a folder, one after the other; nothing is held but the one that is read.

.txt and .md are one document each, which comes in pieces of `PIECE`. A row of .jsonl, .parquet or .arrow is one: its
``text`` field, or its chat ``messages`` as the model's own template writes them. A .npy holds tokens. A folder is its
files by name, but for hidden ones, which editors and file systems leave there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from exporter.errors import Exit, OnnxGptError, rejected

Document: TypeAlias = str | np.ndarray
"""Text, or int64 tokens ``[T]``."""

Render: TypeAlias = Callable[[Sequence[Mapping[str, Any]]], str]
"""Chat messages to text."""

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet", ".arrow", ".npy")
FIELDS = ("text", "messages", "conversations")
"""Fields of a row that are read, the first that is there."""
ARROW_FILE = b"ARROW1"
ENCODING = "utf-8-sig"
"""Windows' tools begin a file with a mark of its byte order."""
PIECE = 1 << 20
"""Characters of a text that are held at once; a multiple of `calibration.data.windows.SLICE`, so that tokens of a long
text do not depend on it."""


def files_of(path: Path) -> list[Path]:
    """The files behind a path, in the order of their names.

    Raises:
        OnnxGptError: ``calibration-missing``; ``calibration-format`` for a file, or a folder without one, that is of
            none of `SUFFIXES`.
    """
    if not path.exists():
        raise rejected(
            "calibration-missing", f"there is no {path}", "name a file or a folder of calibration text"
        )
    found = [file for file in sorted(path.rglob("*")) if _shown(file, path)] if path.is_dir() else [path]
    files = [file for file in found if _suffix(file) in SUFFIXES and file.is_file()]
    if not files:
        device = found == [path] and not path.is_file()
        raise rejected(
            "calibration-format",
            f"{path} is {'not a regular file' if device else 'no text that calibration can read'}",
            f"give a file, or a folder with files, of {', '.join(SUFFIXES)}",
        )
    return files


def _shown(file: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _suffix(file: Path) -> str:
    return file.suffix.lower()


def digests_of(path: Path) -> dict[str, str]:
    """sha256 of the files behind a path, in hexadecimal, by where they lie in the folder or by the one file's name."""
    folder = path if path.is_dir() else path.parent
    digests = {}
    for file in files_of(path):
        with file.open("rb") as stream:
            name = file.relative_to(folder).as_posix()
            digests[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def documents_of(file: Path, render: Render | None) -> Iterator[Document]:
    """The documents of one file; empty ones are left out.

    Args:
        render: None where the model has no chat template.

    Raises:
        OnnxGptError: ``calibration-unreadable``, ``calibration-not-utf8``, ``calibration-row``,
            ``calibration-needs-pyarrow`` (exit 8).
    """
    try:
        if _suffix(file) == ".npy":
            yield _tokens(file)
        elif _suffix(file) in (".txt", ".md"):
            with file.open(encoding=ENCODING) as stream:
                yield from filter(str.strip, iter(lambda: stream.read(PIECE), ""))
        else:
            rows = _lines(file) if _suffix(file) == ".jsonl" else enumerate(_table(file), 1)
            yield from (text for number, row in rows if (text := _text(row, file, number, render)).strip())
    except UnicodeDecodeError as error:
        raise rejected(
            "calibration-not-utf8", f"{file}: {error}", "convert the file to UTF-8, for example with iconv"
        ) from error
    except OSError as error:
        raise rejected("calibration-unreadable", f"{file}: {error}", "give a readable file") from error


def _tokens(file: Path) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:  # numpy goes on to say how a pickle could be run
        why = str(error).partition(".")[0]
        raise rejected(
            "calibration-unreadable", f"{file} is no array of numbers: {why:.200}", "save it with numpy.save"
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
        held = getattr(array, "dtype", "an archive of arrays")
        raise rejected(
            "calibration-unreadable",
            f"{file} holds {held}, not token ids",
            "give an array of integers",
        )
    flat: np.ndarray = array.reshape(-1)
    return flat


def _lines(file: Path) -> Iterator[tuple[int, Any]]:
    """Rows by the number of their line."""
    with file.open(encoding=ENCODING) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:  # an integer of thousands of digits is a plain one
                raise _bad_row(file, f"line {number} is not JSON: {error}") from error


def _table(file: Path) -> Iterator[Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise OnnxGptError(
            "calibration-needs-pyarrow",
            f"reading {file.suffix} takes pyarrow, which is not installed",
            "pip install 'onnx-gpt[data]', or give the text as .jsonl",
            exit=Exit.ENVIRONMENT,
        ) from error
    try:
        if _suffix(file) == ".parquet":
            with pq.ParquetFile(file) as table:
                wanted = [name for name in FIELDS if name in table.schema_arrow.names]
                for batch in table.iter_batches(batch_size=256, columns=wanted):
                    yield from batch.to_pylist()
        else:
            with pa.memory_map(str(file)) as source:
                for batch in _batches(pa, source):
                    yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise rejected("calibration-unreadable", f"{file}: {error}", "give a whole file") from error


def _batches(pa: Any, source: Any) -> Iterator[Any]:
    """Batches of either of Arrow's two forms: a stream, as `datasets` writes, or a file with an index at its end."""
    if source.read(len(ARROW_FILE)) == ARROW_FILE:
        reader = pa.ipc.open_file(source)
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        source.seek(0)
        yield from pa.ipc.open_stream(source)


def _text(row: Any, file: Path, number: int, render: Render | None) -> str:
    if isinstance(row, Mapping):
        if isinstance(row.get("text"), str):
            return str(row["text"])
        messages = row.get("messages", row.get("conversations"))
        if isinstance(messages, list) and all(isinstance(m, Mapping) and "role" in m for m in messages):
            if render is None:
                raise rejected(
                    "chat-template-missing",
                    f"{file} holds chat messages, and the model has no chat template",
                    "give the conversations as plain text",
                )
            try:
                return render(messages)
            except OnnxGptError as error:
                raise rejected(error.code, f"{file}: row {number}: {error.cause}", error.remedy) from error
    raise _bad_row(file, f"row {number} has neither a text nor chat messages with roles")


def _bad_row(file: Path, why: str) -> OnnxGptError:
    return rejected(
        "calibration-row", f"{file}: {why}", 'give rows such as {"text": "…"} or {"messages": [{"role": …}]}'
    )
