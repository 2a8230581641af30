"""What a long job tells its caller while it runs. The command line draws it; Python callers hear nothing by default."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives progress."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def advance(self, done: int, total: int, what: str) -> None:
        """Within the stage, ``done`` of ``total`` have been reached."""


class Silent:
    """Hears and says nothing."""

    def stage(self, name: str) -> None: ...

    def advance(self, done: int, total: int, what: str) -> None: ...
