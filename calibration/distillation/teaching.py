"""What a teacher says of a text, kept on disk: its most likely tokens at each position, and how likely they are.

A vocabulary of 50,000 says little beyond its first few hundred tokens: KL of the top 512 is KL enough (Muralidharan et
al. 2024, Minitron). The others are kept as **one bucket**. Renormalising what is kept would leave the student free to
put any probability on the others; a bucket says how much belongs there and not where. KL of distributions that are
summed up in buckets is never larger than that of the whole ones.

A folder is one teacher on one text: `tokens.npy`, `log_probabilities.npy`, `rest.npy`, and `residual.npy` where hidden
states are compared. Windows are filled in their order, and `filled` says how many are, so that a job that was killed
goes on there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from calibration.distillation.running import Weights, device, has_bfloat16, logits, mixed_precision, residual
from exporter.decoder import Decoder

KEPT = 512
"""Tokens of each position, where the vocabulary has as many."""
SMALLEST = -80.0
"""Of a logarithm of a probability: float32 holds no smaller one."""

Report = Callable[[int, int, str], None]
"""Told how many of how many of what are done."""


class Said:
    """What a teacher said, in memory-mapped files.

    Args:
        folder: made where it is missing.
        windows: int64 ``[N, S]``.
        vocab_size: V.
        hidden_size: E of the residual stream; None where it is not kept.
    """

    def __init__(self, folder: Path, windows: np.ndarray, vocab_size: int, hidden_size: int | None) -> None:
        self.folder, self.vocab_size = folder, vocab_size
        self.windows = np.ascontiguousarray(windows)
        kept = min(KEPT, vocab_size)
        shapes: dict[str, tuple[type, tuple[int, ...]]] = {
            "tokens": (np.uint16 if vocab_size <= 1 << 16 else np.uint32, (kept,)),
            "log_probabilities": (np.float16, (kept,)),
            "rest": (np.float32, ()),
        }
        if hidden_size is not None:
            shapes["residual"] = (np.float32, (hidden_size,))
        folder.mkdir(parents=True, exist_ok=True)
        self._files = {
            name: _mapped(folder / f"{name}.npy", dtype, (*windows.shape, *shape))
            for name, (dtype, shape) in shapes.items()
        }

    @property
    def kept(self) -> int:
        return int(self._files["tokens"].shape[-1])

    @property
    def nbytes(self) -> int:
        """On disk."""
        return sum(file.nbytes for file in self._files.values())

    @property
    def filled(self) -> int:
        """Windows that have been run."""
        try:
            return int((self.folder / "filled").read_text("ascii"))
        except (FileNotFoundError, ValueError):
            return 0

    @property
    def rest(self) -> float:
        """Mean probability of the tokens that are not kept."""
        return 0.0 if self.kept == self.vocab_size else float(np.exp(self._files["rest"]).mean())

    def of(self, rows: Sequence[int]) -> Told:
        """Of some windows."""

        def taken(name: str) -> Tensor:
            array = self._files[name][list(rows)]
            return torch.from_numpy(array.astype(np.int64 if name == "tokens" else np.float32)).to(device())

        whole = self.kept == self.vocab_size
        return Told(
            torch.from_numpy(self.windows[list(rows)]).to(device()),
            taken("tokens"),
            taken("log_probabilities"),
            None if whole else taken("rest"),
            taken("residual") if "residual" in self._files else None,
        )

    def fill(self, decoder: Decoder, weights: Weights, temperature: float, report: Report) -> None:
        """Run the teacher on the windows that are left.

        Args:
            temperature: logits are divided by it.
        """
        for i in range(self.filled, len(self.windows)):
            with torch.no_grad():
                found = self._heard(decoder, weights, temperature, i)
            for name, file in self._files.items():
                file[i] = found[name].cpu().numpy().astype(file.dtype)
            self._keep(i + 1)
            report(i + 1, len(self.windows), "windows that the teacher reads")

    def _heard(self, decoder: Decoder, weights: Weights, temperature: float, i: int) -> dict[str, Tensor]:
        """What the files hold of a window."""
        with mixed_precision():
            x = residual(decoder, weights, torch.from_numpy(self.windows[i : i + 1]).to(device()))[0]
            scaled = logits(decoder, weights, x) / temperature
        top, tokens = scaled.topk(self.kept)
        total = scaled.logsumexp(-1)
        rest = scaled.scatter_(-1, tokens, -torch.inf).logsumexp(-1) - total
        return {
            "tokens": tokens,
            "log_probabilities": top - total[:, None],
            "rest": rest.clamp(min=SMALLEST),
            "residual": x,
        }

    def _keep(self, filled: int) -> None:
        for file in self._files.values():
            file.flush()
        new = self.folder / f"filled.{os.getpid()}"  # another student's run may ask the same teacher
        new.write_text(str(filled), "ascii")
        new.replace(self.folder / "filled")


class Told:
    """Of B windows of S tokens, K kept of V.

    Attributes:
        windows: int64 ``[B, S]``, the text.
        tokens: int64 ``[B, S, K]``.
        log_probabilities: ``[B, S, K]``, of probabilities that sum to 1 with the rest's.
        rest: ``[B, S]`` likewise, of all others together; None where none is left.
        residual: ``[B, S, E]``, or None.
    """

    def __init__(
        self,
        windows: Tensor,
        tokens: Tensor,
        log_probabilities: Tensor,
        rest: Tensor | None,
        residual: Tensor | None,
    ) -> None:
        self.windows, self.tokens, self.residual = windows, tokens, residual
        total = log_probabilities.logsumexp(-1)  # float16 on disk: brought back to a sum of 1
        if rest is not None:
            total = torch.logaddexp(total, rest)
        self.log_probabilities = log_probabilities - total[..., None]
        self.rest = None if rest is None else rest - total


def digest_of(decoder: Decoder, weights: Weights, windows: np.ndarray, temperature: float) -> str:
    """Of everything that decides what a teacher says."""
    digest = hashlib.sha256(repr((decoder, temperature, KEPT, has_bfloat16(), windows.shape)).encode())
    digest.update(np.ascontiguousarray(windows, "<i8").tobytes())
    for role in sorted(weights):
        digest.update(role.encode())
        digest.update(weights[role].detach().cpu().numpy().data.cast("B"))
    return digest.hexdigest()


def _mapped(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    if path.exists():
        try:
            known: np.memmap = np.lib.format.open_memmap(path, "r+")
            if known.dtype == dtype and known.shape == shape:
                return known
        except (ValueError, EOFError):
            pass  # cut off by a kill
    (path.parent / "filled").unlink(missing_ok=True)
    return np.lib.format.open_memmap(path, "w+", dtype=dtype, shape=shape)
