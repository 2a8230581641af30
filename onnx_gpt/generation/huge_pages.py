"""What a session has allocated, moved to huge pages (Linux 6.1 and later; elsewhere nothing happens).

A step of decoding reads every weight once. A hundred megabytes in pages of 4 KiB are more translations than a core
keeps, and the hardware's prefetchers stop at the end of each page. In pages of 2 MiB a step is 1.05 to 1.08 times as
fast (`python -m benchmarks.huge_pages`). onnxruntime allocates by malloc and cannot be told where, so the kernel is
asked to move what is there: ``MADV_COLLAPSE``, see madvise(2). Addresses and values stay as they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

PAGE = 2 << 20
MADV_COLLAPSE = 25
Range = tuple[int, int]
"""Addresses, the last one excluded."""


@contextlib.contextmanager
def on_huge_pages() -> Iterator[None]:
    """Moves what the block allocates, in a thread, since it takes 2 ms a megabyte."""
    before = anonymous()
    yield
    moved = [part for region in anonymous() for part in without(region, before)]
    if any(end - start >= PAGE for start, end in moved):
        threading.Thread(target=collapse, args=(moved,), daemon=True).start()


def anonymous() -> list[Range]:
    """Memory of this process that is its own and no file's, ascending."""
    if sys.platform != "linux":
        return []
    regions = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
            addresses, access, _, _, inode, *name = line.split(maxsplit=5)
            if access == "rw-p" and inode == "0" and not "".join(name).startswith("[stack"):
                start, end = (int(address, 16) for address in addresses.split("-"))
                regions.append((start, end))
    return regions


def without(region: Range, taken: Sequence[Range]) -> Iterator[Range]:
    """The parts of a region that are in none of ``taken`` (ascending)."""
    start, end = region
    for other_start, other_end in taken:
        if other_end > start and other_start < end:
            if other_start > start:
                yield start, other_start
            start = max(start, other_end)
    if start < end:
        yield start, end


def collapse(ranges: Sequence[Range]) -> None:
    """Move the whole huge pages inside ranges. Parts never written, or unmapped meanwhile, are left by the kernel."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in ranges:
        first, last = -(-start // PAGE) * PAGE, end // PAGE * PAGE
        if first < last:
            madvise(first, last - first, MADV_COLLAPSE)  # a kernel that cannot has lost nothing
