"""Measurements kept in a file of JSON lines, so that a job that was killed goes on where it was.

A line is appended when its measurement is done, so the last one may be cut off; it is then measured again.
"""

from __future__ import annotations

import json
from pathlib import Path


class Ledger:
    """Numbers by key. A key says everything that the number depends on.

    Args:
        file: made when the first number is put; its folder too.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._known: dict[str, float] = {}
        self._whole = True
        if file.exists():
            text = file.read_text("utf-8")
            self._whole = text.endswith("\n") or not text
            for line in text.splitlines():
                self._take(line)

    def get(self, key: str) -> float | None:
        return self._known.get(key)

    def put(self, key: str, value: float) -> float:
        """Keep a number; gives it back."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"key": key, "value": value}) + "\n"
        with self.file.open("a", encoding="utf-8") as file:
            file.write(line if self._whole else f"\n{line}")
        self._whole = True
        self._known[key] = value
        return value

    def _take(self, line: str) -> None:
        try:
            entry = json.loads(line)
            self._known[str(entry["key"])] = float(entry["value"])
        except (ValueError, KeyError, TypeError):
            return  # cut off by a kill
