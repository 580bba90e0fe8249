"""Arrays and bitmaps: round trips, damaged files, crashes between the steps of a write."""

from __future__ import annotations

import errno
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyroaring import BitMap

from openaudience.errors import StoreUnavailable, SystemFailure
from openaudience.store.arrays import read_arrays, write_arrays
from openaudience.store.bitmaps import BitmapFile, write_bitmaps
from openaudience.store.files import move_file, replace_file, replace_text


class Killed(BaseException):
    """The process ends here: nothing that handles errors may run."""


def kill_at(point: str, occurrence: int = 1) -> Any:
    seen = 0

    def fault(reached: str) -> None:
        nonlocal seen
        if reached == point:
            seen += 1
            if seen == occurrence:
                raise Killed

    return fault


DTYPES = ("u1", "i1", "<u2", "<i4", "<u4", "<i8", "<u8", "<f8", "?", "<M8[s]", "S5", ">i4")


@st.composite
def arrays(draw: st.DrawFn) -> NDArray[Any]:
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 7), max_size=3)))
    count = int(np.prod(shape, dtype=int)) * dtype.itemsize
    content = bytes(byte & 1 for byte in draw(st.binary(min_size=count, max_size=count)))
    return np.frombuffer(content, dtype).reshape(shape) if count else np.empty(shape, dtype)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=6), arrays(), max_size=5))
def test_arrays_come_back(given_arrays: dict[str, NDArray[Any]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "deep" / "layer"
        write_arrays(path, given_arrays)
        found = read_arrays(path)
    assert list(found) == list(given_arrays)
    for name, array in given_arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
        assert not found[name].flags.writeable
        assert type(found[name]) is np.ndarray


def test_arrays_are_aligned_and_outlive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    write_arrays(path, {"a": np.arange(3, dtype=np.uint8), "b": np.arange(1000, dtype=np.uint64)[::2]})
    found = read_arrays(path)
    assert all(array.ctypes.data % 64 == 0 for array in found.values())
    path.unlink()
    assert found["b"].tolist() == list(range(0, 1000, 2))


def test_objects_are_not_stored(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="array 'x'"):
        write_arrays(tmp_path / "layer", {"x": np.array([None])})
    assert list(tmp_path.iterdir()) == []


def write_sample_arrays(path: Path) -> None:
    write_arrays(path, {"numbers": np.arange(50)})


def write_sample_bitmaps(path: Path) -> None:
    write_bitmaps(path, {1: BitMap([1, 2, 3]), 7: BitMap(range(0, 400_000, 3))})


@pytest.mark.parametrize("kind", ["arrays", "bitmaps"])
@pytest.mark.parametrize("damage", ["missing", "empty", "foreign", "cut", "longer", "header"])
def test_damaged_files_are_named(tmp_path: Path, kind: str, damage: str) -> None:
    path = tmp_path / "layer"
    (write_sample_arrays if kind == "arrays" else write_sample_bitmaps)(path)
    content = path.read_bytes()
    damaged = {
        "missing": b"",
        "empty": b"",
        "foreign": b"PK\x03\x04" + content[4:],
        "cut": content[:-1],
        "longer": content + b"x",
        "header": content[:40] + bytes([content[40] ^ 1]) + content[41:],
    }
    path.write_bytes(damaged[damage])
    if damage == "missing":
        path.unlink()
    with pytest.raises(SystemFailure, match="layer is not a whole"):
        read_arrays(path) if kind == "arrays" else BitmapFile(path)


@pytest.mark.parametrize("length", range(0, 160, 7))
def test_any_truncation_is_seen(tmp_path: Path, length: int) -> None:
    for write in (write_sample_arrays, write_sample_bitmaps):
        path = tmp_path / "layer"
        write(path)
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(SystemFailure):
            read_arrays(path) if write is write_sample_arrays else BitmapFile(path)


ordinals = st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1), st.integers(65_500, 65_600))


@st.composite
def bitmaps(draw: st.DrawFn) -> BitMap:
    """Bitmaps with array, run and bitset containers."""
    bitmap = BitMap(draw(st.lists(ordinals, max_size=30)))
    for start, length in draw(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 70_000)), max_size=3)):
        bitmap |= BitMap(range(start, start + length, draw(st.sampled_from([1, 2, 3, 17]))))
    return bitmap


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.integers(-(2**63), 2**63 - 1), bitmaps(), max_size=6), st.lists(ordinals, max_size=40))
def test_bitmaps_come_back(given_bitmaps: dict[int, BitMap], asked: list[int]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "layer"
        write_bitmaps(path, given_bitmaps)
        found = BitmapFile(path)
    assert found.keys() == sorted(given_bitmaps)
    assert len(found) == len(given_bitmaps)
    for key, bitmap in given_bitmaps.items():
        assert key in found
        assert found.get(key) == bitmap
        assert found.cardinality(key) == len(bitmap)
        edges = {value + step for value in list(bitmap)[:50] + list(bitmap)[-5:] for step in (-1, 0, 1)}
        for ordinal in {*asked, *edges}:
            if 0 <= ordinal < 2**32:
                assert found.contains(key, ordinal) == (ordinal in bitmap), (key, ordinal)


def test_a_key_that_is_not_there_is_empty(tmp_path: Path) -> None:
    write_bitmaps(tmp_path / "layer", {5: BitMap([9]), 8: BitMap()})
    file = BitmapFile(tmp_path / "layer")
    assert 6 not in file
    assert file.get(6) == BitMap()
    assert file.cardinality(6) == 0
    assert not file.contains(6, 9)
    assert 8 in file
    assert not file.contains(8, 9)


def test_changing_what_was_got_changes_nothing(tmp_path: Path) -> None:
    write_bitmaps(tmp_path / "layer", {5: BitMap([9])})
    file = BitmapFile(tmp_path / "layer")
    file.get(5).add(10)
    assert file.get(5) == BitMap([9])


@pytest.mark.parametrize("kind", ["arrays", "bitmaps"])
@pytest.mark.parametrize("point", ["file.written", "file.renamed"])
def test_a_crash_leaves_the_old_file_or_the_new_one(tmp_path: Path, kind: str, point: str) -> None:
    path = tmp_path / "layer"
    for number, fault in ((1, kill_at("never")), (2, kill_at(point))):
        try:
            if kind == "arrays":
                write_arrays(path, {"a": np.full(9, number)}, fault)
            else:
                write_bitmaps(path, {0: BitMap([number])}, fault)
        except Killed:
            assert number == 2
    found = read_arrays(path)["a"][0] if kind == "arrays" else BitmapFile(path).get(0)[0]
    assert found == (1 if point == "file.written" else 2)


def test_a_full_disk_is_worth_another_try(tmp_path: Path) -> None:
    def write(file: IO[bytes]) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreUnavailable, match=r"layer could not be written: the disk is full"):
        replace_file(tmp_path / "layer", write)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_moved_over_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("os.rename", refuse)
    replace_text(tmp_path / "a", "content")
    move_file(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b").read_text() == "content"
