"""What a pass gives back."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How often a pass fired, and where it nearly did.

    Attributes:
        fired: rewrites made.
        refused: ``"place: condition that failed"``, one for each rewrite that nearly applied.
    """

    fired: int
    refused: tuple[str, ...] = ()
