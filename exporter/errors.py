"""The one kind of failure a user sees: a code, what happened, why, and what to do about it.

An exit status is a contract with scripts and pipelines, so it is part of the error and not of the command line.
"""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """Process exit statuses; documented in docs/errors.md."""

    DONE = 0
    INTERNAL = 1
    USAGE = 2
    UNSUPPORTED = 3
    REJECTED = 4
    PARITY = 5
    VERIFICATION = 6
    RESOURCES = 7
    ENVIRONMENT = 8
    NETWORK = 9
    EXISTS = 10


class OnnxGptError(Exception):
    """A refusal that a user can act on.

    Args:
        code: stable kebab-case identifier, e.g. ``weights-mismatch``.
        cause: one sentence, naming the file, key, tensor or node.
        remedy: what the user can do, imperative.
        exit: exit status of the process.
        details: further findings, one line each (all missing tensors, say).
    """

    def __init__(
        self, code: str, cause: str, remedy: str, *, exit: Exit = Exit.REJECTED, details: tuple[str, ...] = ()
    ) -> None:
        super().__init__(cause)
        self.code = code
        self.cause = cause
        self.remedy = remedy
        self.exit = exit
        self.details = details

    def __str__(self) -> str:
        lines = [
            f"[{self.code}] {self.cause}",
            *(f"  - {line}" for line in self.details),
            f"  → {self.remedy}",
        ]
        return "\n".join(lines)


def unsupported(code: str, cause: str, remedy: str, details: tuple[str, ...] = ()) -> OnnxGptError:
    """A well-formed input that asks for something this version does not do."""
    return OnnxGptError(code, cause, remedy, exit=Exit.UNSUPPORTED, details=details)


def rejected(code: str, cause: str, remedy: str, details: tuple[str, ...] = ()) -> OnnxGptError:
    """A malformed, inconsistent or hostile input."""
    return OnnxGptError(code, cause, remedy, exit=Exit.REJECTED, details=details)


def first_line(error: Exception) -> str:
    """What an exception says, in one line; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
