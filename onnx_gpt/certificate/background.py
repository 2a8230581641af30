"""Work that goes on beside a job: hashing leaves the interpreter's lock, and a core is free while passes run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def begin(work: Callable[[], T]) -> Future[T]:
    """Start ``work`` in a thread of its own, which does not keep a process that ends from ending.

    Returns:
        Its result to come, or what it raised.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # it is the caller's, wherever it was raised
            future.set_exception(error)
        else:
            future.set_result(result)

    Thread(target=run, daemon=True).start()
    return future
