"""Work side by side, with one thread of BLAS in each of ours.

BLAS with threads of its own keeps them spinning for a while after each product, on the very cores that onnxruntime or
the next step wants; half of calibration's processor time went there. And how it cuts a sum depends on their number,
so that codes would depend on the machine.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from threadpoolctl import threadpool_limits

T = TypeVar("T")
U = TypeVar("U")

MOST_WORKERS = 4
"""Each holds what it works on, so their number bounds memory."""


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Products of matrices take one thread within the block, in all threads of the process."""
    with threadpool_limits(1, user_api="blas"):
        yield


def in_order(work: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """What ``work`` makes of each item, in their order; a few are worked on at once, and no more are waiting."""
    workers = min(os.cpu_count() or 1, MOST_WORKERS)
    pending: collections.deque[Future[U]] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
