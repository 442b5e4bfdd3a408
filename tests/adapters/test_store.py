"""The blob store: what it keeps, what it evicts, and how it notices damage."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from hashlib import sha256
from pathlib import Path

import pytest

from agent.adapters.store import BlobStore, MemoryBlobs, WrongDigestError
from agent.errors import StoreError

PAGE = mmap.PAGESIZE


def content(text: str, nbytes: int = 100) -> bytes:
    return (text.encode() * nbytes)[:nbytes]


def name(blob: bytes) -> str:
    return sha256(blob).hexdigest()


A, B, C, D = (content(text) for text in "abcd")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "blobs"


def filled(folder: Path, *blobs: bytes, limit: int = 1000) -> BlobStore:
    store = BlobStore(folder, limit)
    for number, blob in enumerate(blobs):
        store.put(name(blob), blob)
        # The order of use outlives the process by the files' times; make them differ.
        os.utime(folder / name(blob), (number, number))
    return store


def held(store: BlobStore, *blobs: bytes) -> list[bytes]:
    return [blob for blob in blobs if name(blob) in store]


def test_what_was_put_is_read(folder: Path) -> None:
    store = filled(folder, A, B, b"")
    assert bytes(store.read(name(A))) == A
    assert bytes(store.read(name(b""))) == b""
    assert [store.size(name(blob)) for blob in (A, B, b"")] == [100, 100, 0]
    assert store.used_bytes == 200


def test_a_reading_cannot_be_written(folder: Path) -> None:
    store = filled(folder, A)
    assert store.read(name(A)).readonly
    assert not store.map([name(A)]).array.flags.writeable


def test_blobs_outlive_the_process(folder: Path) -> None:
    filled(folder, A)
    again = BlobStore(folder, 1000)
    assert bytes(again.read(name(A))) == A
    assert again.used_bytes == 100


def test_a_blob_with_another_digest_is_refused(folder: Path) -> None:
    store = BlobStore(folder, 1000)
    with pytest.raises(WrongDigestError, match="wrong bytes"):
        store.put(name(A), B)
    assert name(A) not in store
    assert list(folder.iterdir()) == []


def test_a_blob_that_is_here_is_not_written_again(folder: Path) -> None:
    store = filled(folder, A)
    before = (folder / name(A)).stat().st_ino
    store.put(name(A), A)
    assert (folder / name(A)).stat().st_ino == before
    assert store.used_bytes == 100


def test_an_unknown_blob_is_an_error_that_names_it(folder: Path) -> None:
    with pytest.raises(StoreError, match=f"{name(A)[:12]} is not in"):
        BlobStore(folder, 1000).read(name(A))


def test_missing_tells_what_is_not_here(folder: Path) -> None:
    store = filled(folder, A)
    assert store.missing({name(A): 100, name(B): 100}) == {name(B): 100}


# The limit --------------------------------------------------------------------------------------


def test_the_least_recently_used_blob_makes_room(folder: Path) -> None:
    store = filled(folder, A, B, C, limit=300)
    store.read(name(A))
    store.put(name(D), D)
    assert held(store, A, B, C, D) == [A, C, D]
    assert not (folder / name(B)).exists()
    assert store.used_bytes == 300


def test_as_many_blobs_make_room_as_are_needed(folder: Path) -> None:
    store = filled(folder, A, B, C, limit=300)
    large = content("large", 150)
    store.put(name(large), large)
    assert held(store, A, B, C, large) == [C, large]


def test_the_order_of_use_outlives_the_process(folder: Path) -> None:
    filled(folder, A, B, C).read(name(A))
    again = BlobStore(folder, 300)
    again.put(name(D), D)
    assert held(again, A, B, C, D) == [A, C, D]


def test_pinned_blobs_stay(folder: Path) -> None:
    store = filled(folder, A, B, C, limit=300)
    store.pin([name(A), name(B)])
    store.put(name(D), D)
    assert held(store, A, B, C, D) == [A, B, D]


def test_a_store_full_of_pinned_blobs_refuses_and_says_what_to_do(folder: Path) -> None:
    store = filled(folder, A, B, limit=200)
    store.pin([name(A), name(B)])
    with pytest.raises(StoreError, match=r"limit of 200 bytes.*store\.limit_mb"):
        store.put(name(C), C)
    assert held(store, A, B, C) == [A, B]
    store.pin([])
    store.put(name(C), C)
    assert held(store, A, B, C) == [B, C]


def test_a_mapping_outlives_the_eviction_of_its_blob(folder: Path) -> None:
    store = filled(folder, A, limit=100)
    reading = store.read(name(A))
    store.put(name(B), B)
    assert name(A) not in store
    assert bytes(reading) == A


# Damage -----------------------------------------------------------------------------------------


def test_a_damaged_file_is_found_by_the_next_process(folder: Path) -> None:
    filled(folder, A)
    (folder / name(A)).write_bytes(B)
    again = BlobStore(folder, 1000)
    with pytest.raises(WrongDigestError, match="damaged"):
        again.read(name(A))
    assert name(A) not in again
    assert not (folder / name(A)).exists()
    again.put(name(A), A)
    assert bytes(again.read(name(A))) == A


@pytest.mark.parametrize("length", [0, 50])
def test_a_truncated_file_is_found_by_the_next_process(folder: Path, length: int) -> None:
    filled(folder, A)
    (folder / name(A)).write_bytes(A[:length])
    again = BlobStore(folder, 1000)
    with pytest.raises(StoreError, match=name(A)[:12]):
        again.read(name(A))
    assert name(A) not in again


def test_a_truncated_file_is_missing(folder: Path) -> None:
    filled(folder, A)
    (folder / name(A)).write_bytes(A[:50])
    again = BlobStore(folder, 1000)
    assert again.missing({name(A): 100}) == {name(A): 100}
    assert again.used_bytes == 0


def test_what_is_damaged_is_removed_before_it_is_needed(folder: Path) -> None:
    filled(folder, A, B, C)
    (folder / name(A)).write_bytes(B)
    (folder / name(B)).write_bytes(B[:50])
    again = BlobStore(folder, 1000)
    blobs = {name(blob): len(blob) for blob in (A, B, C)}
    assert not again.has_read(blobs)
    assert again.remove_damaged(blobs) == [name(A), name(B)]
    assert again.missing(blobs).keys() == {name(A), name(B)}
    assert again.has_read({name(C): len(C)})
    assert not again.has_read({name(C): len(C) + 1})
    for blob in (A, B):
        again.put(name(blob), blob)
    assert again.has_read(blobs)
    assert again.remove_damaged(blobs) == []


def test_what_is_no_blob_is_left_alone(folder: Path) -> None:
    filled(folder, A)
    (folder / "notes").write_bytes(b"?")
    (folder / name(B)).mkdir()
    again = BlobStore(folder, 1000)
    assert again.used_bytes == 100
    assert name(B) not in again
    with pytest.raises(StoreError, match=r"choose another data_dir"):
        again.put(name(B), B)
    assert bytes(again.read(name(A))) == A


def test_a_file_that_vanished_is_an_error_and_forgotten(folder: Path) -> None:
    store = filled(folder, A)
    (folder / name(A)).unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        store.read(name(A))
    assert name(A) not in store


def test_leftovers_of_a_broken_write_are_removed(folder: Path) -> None:
    filled(folder, A)
    (folder / f"{name(B)}.tmp").write_bytes(B[:10])
    again = BlobStore(folder, 1000)
    assert sorted(path.name for path in folder.iterdir()) == [name(A)]
    assert again.used_bytes == 100


def test_a_full_disk_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(folder, A)

    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), len(data))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StoreError, match=r"the disk is full.*choose another data_dir"):
            store.put(name(B), B)
    assert sorted(path.name for path in folder.iterdir()) == [name(A)]
    assert name(B) not in store
    store.put(name(B), B)
    assert bytes(store.read(name(B))) == B


def test_a_folder_that_cannot_be_used_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="data_dir"):
        BlobStore(tmp_path / "file" / "blobs", 1000)


# Several blobs as one ---------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(PAGE, 2 * PAGE, 10), (10, 20), (0, PAGE), (PAGE,), (7,)])
def test_consecutive_blobs_are_one_array(folder: Path, sizes: tuple[int, ...]) -> None:
    blobs = [content(text, size) for text, size in zip("xyz", sizes, strict=False)]
    store = filled(folder, *blobs, limit=10 * PAGE)
    mapped = store.map([name(blob) for blob in blobs])
    assert mapped.array.tobytes() == b"".join(blobs)
    mapped.drop_pages()
    assert mapped.array.tobytes() == b"".join(blobs)


def test_an_array_keeps_its_files_mapped(folder: Path) -> None:
    parts = [content("x", PAGE), content("y", 10)]
    store = filled(folder, *parts, limit=10 * PAGE)
    array = store.map([name(part) for part in parts]).array
    for part in parts:
        store.discard(name(part))
    assert array.tobytes() == b"".join(parts)


def test_a_damaged_part_is_found(folder: Path) -> None:
    filled(folder, A, B)
    (folder / name(B)).write_bytes(C)
    again = BlobStore(folder, 1000)
    with pytest.raises(WrongDigestError):
        again.map([name(A), name(B)])
    assert held(again, A, B) == [A]


# Threads ----------------------------------------------------------------------------------------


def test_readers_and_writers_do_not_disturb_one_another(folder: Path) -> None:
    store = filled(folder, A, limit=1000)
    store.pin([name(A)])
    others = [content(chr(200 + n)) for n in range(30)]
    wrong: list[object] = []

    def read() -> None:
        assert all(bytes(store.read(name(A))) == A for _ in range(60))

    def write() -> None:
        for other in others:
            store.put(name(other), other)

    def guarded(work: object) -> None:
        try:
            assert callable(work)
            work()
        except Exception as error:  # noqa: BLE001 - whatever happens in a thread is a failure here
            wrong.append(error)

    threads = [
        threading.Thread(target=guarded, args=(work,)) for work in (read, read, write, write)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert wrong == []
    assert store.used_bytes <= 1000
    assert name(A) in store


# In memory --------------------------------------------------------------------------------------


def test_memory_blobs_are_verified_and_read() -> None:
    blobs = MemoryBlobs({name(A): A})
    blobs.put(name(B), B)
    with pytest.raises(WrongDigestError):
        blobs.put(name(C), D)
    assert bytes(blobs.read(name(B))) == B
    assert blobs.map([name(A), name(B)]).array.tobytes() == A + B
    assert blobs.missing({name(A): 100, name(C): 100}) == {name(C): 100}
    assert blobs.size(name(A)) == 100
    assert name(C) not in blobs
    with pytest.raises(KeyError):
        blobs.read(name(C))
