"""How far a walk over the pieces of a model has come, kept in a folder: a run that was killed goes on there.

After each piece one small file is written anew, whole or not at all: how many pieces are done, what was found for them,
and which files hold the stream behind them. Files that the stream feeds are never written over before the next piece is
done (`collecting.Stream`), so at any moment the folder holds all that the last entry says.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibration.collecting import Stream

FILE = "journal.json"


class Journal:
    """The journal of a folder; one that is there of another job goes, with all that it speaks of.

    Args:
        folder: made where it is not there.
        key: says everything that the results depend on.

    Attributes:
        done: pieces that are.
        found: what is known of them, as JSON holds it.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._file, self._key = folder / FILE, key
        entry = self._read()
        if entry and entry.get("key") != key:
            shutil.rmtree(folder)
            entry = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.done: int = entry.get("done", 0)
        self.found: dict[str, Any] = entry.get("found", {})
        self._stream: list[list[Any]] = entry.get("stream", [])

    def resume(self, stream: Stream) -> Stream:
        """A new stream brought to where the last entry was written."""
        stream.restore(self._stream)
        return stream

    def note(self, found: Mapping[str, Any], stream: Stream) -> None:
        """One more piece is done."""
        self.done += 1
        self.found |= found
        entry = {"key": self._key, "done": self.done, "found": self.found, "stream": stream.state()}
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(entry), "utf-8")
        partial.replace(self._file)

    def _read(self) -> dict[str, Any]:
        try:
            entry = json.loads(self._file.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return entry if isinstance(entry, dict) else {}
