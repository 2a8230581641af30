"""What a bundle may cost: ``size=90MB``, ``kl=0.03``, ``decode=150``, or several of them."""

from __future__ import annotations

import dataclasses
import math
import re

from exporter.errors import Exit, OnnxGptError

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@dataclasses.dataclass(frozen=True)
class Budget:
    """Limits; None is no limit.

    Attributes:
        size: bytes of ``model.onnx`` and its weights, at most.
        kl: mean KL from the float model, nats a token, at most: the smallest file that stays below is looked for.
            Without it, the nearest to the model within the other limits is.
        decode: tokens a second after 512 tokens on this machine, at least.
    """

    size: float | None = None
    kl: float | None = None
    decode: float | None = None


def parse_budget(text: str) -> Budget:
    """Read ``size=90MB,decode=150``.

    Raises:
        OnnxGptError: ``budget-invalid`` (exit 2).
    """
    limits: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = item.partition("=")
        found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e-?\d+)?)\s*([A-Za-z]*)", value.strip())
        scale = None
        if found is not None:
            scale = UNITS.get(found[2]) if name == "size" else {"": 1}.get(found[2])
        fields = [field.name for field in dataclasses.fields(Budget)]
        if found is None or scale is None or name not in fields or name in limits:
            raise _invalid(item)
        limits[name] = float(found[1]) * scale
        if not 0 < limits[name] < math.inf:
            raise _invalid(item)
    if not limits:
        raise _invalid(text)
    return Budget(**limits)


def _invalid(item: str) -> OnnxGptError:
    return OnnxGptError(
        "budget-invalid",
        f"{item!r} is no budget",
        "write size=90MB, kl=0.03 or decode=150 (tokens a second), several with commas between",
        exit=Exit.USAGE,
    )
