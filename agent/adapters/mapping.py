"""Files mapped into memory one behind the other, as one buffer, without a copy.

Python's own `mmap` cannot put a mapping at a place of one's choice, so the C library is asked.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_INT = ctypes.c_int
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, _INT, _INT, _INT, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, _INT]
_MAP_FIXED = 0x10
_PROT_NONE = 0
_FAILED = ctypes.c_void_p(-1).value


def can_join(sizes: Sequence[int]) -> bool:
    """Tell whether files of `sizes` bytes can be mapped as one buffer on this system."""
    return all(size > 0 for size in sizes) and all(s % mmap.PAGESIZE == 0 for s in sizes[:-1])


class MappedFiles:
    """Files of `sizes` bytes (`can_join` holds) mapped read-only, one behind the other.

    `array` is their bytes; it keeps the mapping alive.

    Raises:
        StoreError: if a file cannot be opened or mapped, or is shorter than its size.
    """

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int]) -> None:
        self._length = sum(sizes)
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._address = _map(None, self._length, _PROT_NONE, private, -1)
        position = 0
        for path, size in zip(paths, sizes, strict=True):
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise StoreError(f"{path} cannot be read: {error.strerror}") from error
            try:
                if os.fstat(descriptor).st_size != size:
                    raise StoreError(f"{path} does not have its {size} bytes")
                flags = mmap.MAP_PRIVATE | _MAP_FIXED
                _map(self._address + position, size, mmap.PROT_READ, flags, descriptor)
            finally:
                os.close(descriptor)
            position += size

    @property
    def array(self) -> NDArray[np.uint8]:
        """All bytes, read-only."""
        buffer: Any = (ctypes.c_uint8 * self._length).from_address(self._address)
        buffer.mapping = self
        array = np.frombuffer(buffer, np.uint8)
        array.flags.writeable = False
        return array

    def drop_pages(self) -> None:
        """Give the memory back to the system; what is read again comes from the files."""
        _LIBC.madvise(self._address, self._length, mmap.MADV_DONTNEED)

    def __del__(self) -> None:
        if hasattr(self, "_address"):
            _LIBC.munmap(self._address, self._length)


def trim_heap() -> None:
    """Give freed heap memory back to the system, where the C library can (glibc)."""
    trim = getattr(_LIBC, "malloc_trim", None)
    if trim is not None:
        trim(0)


def _map(address: int | None, length: int, protection: int, flags: int, descriptor: int) -> int:
    mapped = _LIBC.mmap(address, length, protection, flags, descriptor, 0)
    if mapped is None or mapped == _FAILED:
        raise StoreError(f"cannot map {length} bytes: {os.strerror(ctypes.get_errno())}")
    return int(mapped)
