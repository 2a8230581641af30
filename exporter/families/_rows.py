"""Linear maps out of the rows of others: where a family keeps several in one tensor, or rows in another order."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from exporter.decoder import Attention, Linear, Part


def slices(whole: Linear, *sizes: int) -> list[Linear]:
    """Linear maps that are stored one under the other as one, with ``sizes`` rows each."""
    ends = itertools.accumulate(sizes)
    return [rows_of(whole, np.arange(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def thirds(whole: Linear, groups: int) -> list[Linear]:
    """Three maps out of one whose rows lie as ``[groups, 3, …]``: q, k and v by head, say."""
    rows = np.arange(whole.weight.shape[0]).reshape(groups, 3, -1)
    return [rows_of(whole, rows[:, which].reshape(-1)) for which in range(3)]


def rows_of(whole: Linear, rows: np.ndarray) -> Linear:
    """A map of some outputs of another, in the order given."""

    def part(of: Part) -> Part:
        held = np.concatenate([np.arange(start, stop) for start, stop in of.rows or ((0, of.shape[0]),)])
        shape = (len(rows), *of.shape[1:])
        return dataclasses.replace(of, shape=shape, stored=of.stored_shape, rows=_runs(held[rows]))

    return Linear(part(whole.weight), None if whole.bias is None else part(whole.bias))


def _runs(rows: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Ranges of rows that follow each other."""
    breaks = np.flatnonzero(np.diff(rows) != 1)
    starts, lasts = rows[[0, *(breaks + 1)]], rows[[*breaks, -1]]
    return tuple(zip(starts.tolist(), (lasts + 1).tolist(), strict=True))


def pairs_apart(attention: Attention) -> Attention:
    """Attention of a family that keeps rotary pairs together (GPT-J), its rows of q and k taken apart.

    In each head the first ones of pairs come first, then the second ones, then those that do not rotate, as in all
    other families. Scores do not change.
    """
    if attention.rope is None:
        return attention
    size, rotated = attention.head_dim, attention.rope.rotated
    order = [*range(0, rotated, 2), *range(1, rotated, 2), *range(rotated, size)]

    def apart(whole: Linear, heads: int) -> Linear:
        return rows_of(whole, np.arange(heads * size).reshape(heads, size)[:, order].reshape(-1))

    q, k = apart(attention.q, attention.heads), apart(attention.k, attention.kv_heads)
    return dataclasses.replace(attention, q=q, k=k)
