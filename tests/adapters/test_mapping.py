"""Files mapped one behind the other."""

from __future__ import annotations

import gc
import mmap
from typing import TYPE_CHECKING

import numpy as np
import pytest

from agent.adapters.mapping import MappedFiles, can_join
from agent.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path


def files(folder: Path, *sizes: int) -> list[Path]:
    random = np.random.default_rng(0)
    paths = [folder / str(number) for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(random.bytes(size))
    return paths


def test_joined_files_read_as_one(tmp_path: Path) -> None:
    sizes = [2 * mmap.PAGESIZE, mmap.PAGESIZE, 77]
    paths = files(tmp_path, *sizes)
    array = MappedFiles(paths, sizes).array
    gc.collect()
    assert array.tobytes() == b"".join(path.read_bytes() for path in paths)
    assert not array.flags.writeable


def test_pages_that_were_dropped_come_back(tmp_path: Path) -> None:
    paths = files(tmp_path, mmap.PAGESIZE)
    mapped = MappedFiles(paths, [mmap.PAGESIZE])
    before = mapped.array.tobytes()
    mapped.drop_pages()
    assert mapped.array.tobytes() == before


def test_only_the_last_file_may_end_within_a_page() -> None:
    assert can_join([mmap.PAGESIZE, 5])
    assert not can_join([5, mmap.PAGESIZE])
    assert not can_join([0])


def test_a_file_that_is_shorter_than_it_should_be_is_refused(tmp_path: Path) -> None:
    paths = files(tmp_path, 10)
    with pytest.raises(StoreError, match="does not have its 20 bytes"):
        MappedFiles(paths, [20])


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        MappedFiles([tmp_path / "none"], [1])
