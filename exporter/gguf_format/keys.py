"""Metadata of one architecture, read so that nothing is overlooked: a key that nobody asks for is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from exporter.errors import OnnxGptError, unsupported
from exporter.gguf_format.reader import Header

OFF: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "tensor_data_layout": ("Meta AI original pth",),  # llama's q and k permuted, as the architecture expects
}
"""Features that an architecture need not know while they are turned off."""

SIZE_LIMIT = 1 << 24
"""Heads, layers or channels: far above any model's, and small enough to count to."""


class Keys:
    """The keys ``<architecture>.…`` of a header. Remembers which have been asked for.

    Attributes:
        header: where they are.
        architecture: llama.cpp's name of it.
    """

    def __init__(self, header: Header) -> None:
        self.header = header
        self.architecture = header.text("general.architecture")
        self._asked: set[str] = set()

    def integer(self, name: str, default: int | None = None) -> int:
        return self.header.integer(self._key(name), default)

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number from 1 to `SIZE_LIMIT`."""
        value = self.integer(name, default)
        if not 1 <= value <= SIZE_LIMIT:
            raise self.header.invalid(f"{self.architecture}.{name} is {value}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        return self.header.number(self._key(name), default)

    def flag(self, name: str, default: bool) -> bool:
        return self.header.flag(self._key(name), default)

    def text(self, name: str, default: str | None = None) -> str:
        return self.header.text(self._key(name), default)

    def pattern(self, name: str, count: int, period: int) -> list[bool]:
        """Of each of ``count`` layers, whether it is of the kind that most are.

        Args:
            period: each how many-th one is not, where the file does not say; 0 for none. A file says it so, or layer by
                layer.
        """
        value = self.header.metadata.get(self._key(name), period)
        if isinstance(value, np.ndarray):
            if len(value) != count or value.dtype.kind not in "biu" or not np.isin(value, (0, 1)).all():
                raise self.header.invalid(
                    f"{self.architecture}.{name} is no yes or no for each of {count} layers"
                )
            return [bool(of_layer) for of_layer in value]
        every = self.integer(name, period)
        return [every == 0 or (i + 1) % every != 0 for i in range(count)]

    def only(self, name: str, *allowed: Any) -> None:
        """A key that may be absent, or have one of these values (a feature turned off).

        Raises:
            OnnxGptError: ``gguf-key-unsupported`` (exit 3).
        """
        key = self._key(name)
        value = self.header.metadata.get(key)
        if value is not None and not _is_one_of(value, allowed):
            raise self.unsupported([f"{key} = {str(value)[:80]}"])

    def inert(self, *names: str) -> None:
        """Keys that no forward pass reads."""
        self._asked.update(f"{self.architecture}.{name}" for name in names)

    def unread(self) -> list[str]:
        """Keys that nobody has asked for, with their values; those in `OFF` are left out."""
        prefix = f"{self.architecture}."
        return [
            f"{key} = {str(value)[:80]}"
            for key, value in self.header.metadata.items()
            if key.startswith(prefix)
            and key not in self._asked
            and not _is_one_of(value, OFF.get(key.removeprefix(prefix), ()))
        ]

    def unsupported(self, findings: list[str]) -> OnnxGptError:
        return unsupported(
            "gguf-key-unsupported",
            f"{self.header.path.name}: the {self.architecture} model has features that are not implemented",
            "use a model without them",
            tuple(findings),
        )

    def _key(self, name: str) -> str:
        key = f"{self.architecture}.{name}"
        self._asked.add(key)
        return key


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """True is not 1 here, and an array equals nothing."""
    return any(type(value) is type(good) and value == good for good in allowed)
