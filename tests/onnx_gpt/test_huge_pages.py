"""Memory moved to huge pages: which, and that nothing else about it changes."""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_gpt.generation.huge_pages import PAGE, anonymous, collapse, on_huge_pages, without

RANGES = st.lists(st.integers(0, 60), unique=True, max_size=12).map(
    lambda ends: list(zip(*[iter(sorted(ends))] * 2, strict=False))
)


@given(st.tuples(st.integers(0, 30), st.integers(31, 60)), RANGES)
def test_what_is_taken_is_left_out(region: tuple[int, int], taken: list[tuple[int, int]]) -> None:
    expected = set(range(*region)).difference(*(range(*other) for other in taken))
    parts = list(without(region, taken))
    assert [place for part in parts for place in range(*part)] == sorted(expected)
    assert all(start < end for start, end in parts)


@pytest.fixture
def memory() -> mmap.mmap:
    """Eight huge pages' worth of private memory, all but its second half written."""
    memory = mmap.mmap(-1, 8 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[: 4 * PAGE] = bytes(range(256)) * (4 * PAGE // 256)
    return memory


def address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def kilobytes(at: int, field: str) -> int:
    """A field of the mapping that has an address, in /proc/self/smaps."""
    inside = False
    for line in Path("/proc/self/smaps").read_text("utf-8", errors="replace").splitlines():
        if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(head[1], 16) <= at < int(head[2], 16)
        elif inside and line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise AssertionError(f"{at:x} is not mapped")


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked of Linux")
def test_written_memory_moves_and_keeps_its_values(memory: mmap.mmap) -> None:
    at = address(memory)
    assert any(start <= at < end for start, end in anonymous())
    before = kilobytes(at, "Rss")
    collapse([(at, at + 8 * PAGE)])
    if not kilobytes(at, "AnonHugePages"):
        pytest.skip("this kernel moves nothing")
    assert kilobytes(at, "AnonHugePages") >= 3 * PAGE // 1024
    assert kilobytes(at, "Rss") <= before + 2 * PAGE // 1024  # what was never written is not mapped
    assert memory[: 4 * PAGE] == bytes(range(256)) * (4 * PAGE // 256)
    assert not any(memory[4 * PAGE :])


def test_memory_that_is_gone_does_no_harm(memory: mmap.mmap) -> None:
    at = address(memory)
    memory.close()
    collapse([(at, at + 8 * PAGE)])


def test_a_block_that_allocates_little_starts_nothing() -> None:
    before = threading.active_count()
    with on_huge_pages():
        pass
    assert threading.active_count() == before
