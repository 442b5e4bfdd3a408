"""Folders of rigs: each is locked while its rig lives, so those of killed ones can be told."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "halomq-rig-"
LOCK = "alive.lock"


@contextmanager
def rig_folder(base: Path | None = None) -> Iterator[Path]:
    """Make a folder that is removed at the end, or by `remove_leftovers` if that is not reached."""
    base = base or Path(tempfile.gettempdir())
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX, dir=base, ignore_cleanup_errors=True) as name,
        (Path(name) / LOCK).open("w", encoding="ascii") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(name)


def remove_leftovers(base: Path | None = None) -> list[Path]:
    """Remove the folders of rigs that were killed; return them.

    A killed rig leaves nothing else: its processes end with it, and the kernel removes network
    namespaces that nobody is in.
    """
    base = base or Path(tempfile.gettempdir())
    left = [folder for folder in base.glob(f"{PREFIX}*") if _is_left(folder)]
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
    return left


def _is_left(folder: Path) -> bool:
    try:
        with (folder / LOCK).open("r", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # in use, or being made just now
        return False
    return True
