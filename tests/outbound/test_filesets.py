"""Files of a run: names, parts, receipts, compression, and calls cut short (40 §8)."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import shutil
import subprocess
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openaudience.errors import InputError, StoreUnavailable
from openaudience.outbound.filesets import Files, FileSet
from openaudience.outbound.model import FileFormat, Rendered
from outbound.consumer import blocks, plain, received, rendered

PLAIN = FileFormat("", "")


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        yield


Name = Callable[[str], str]


def numbered(split: str) -> str:
    return f"s3_7301_52011_acct-77_full_1709992800000{split}.sync"


def fixed(name: str) -> Name:
    """A file name without SPLITNUM."""
    return lambda split: name


def write(
    folder: Path,
    rows: list[bytes],
    format: FileFormat = PLAIN,
    name: Name = numbered,
    header: bytes = b"",
    size: int = 3,
) -> Files:
    files = FileSet(folder, format, name, header).write(blocks(rows, size))
    assert {path.name for path in folder.iterdir()} == {file.name for file in files}
    assert list(folder.parent.iterdir()) == [folder], "nothing temporary is left"
    for file in files:
        content = file.path.read_bytes()
        assert (file.path, file.bytes) == (folder / file.name, len(content))
        assert file.md5 == hashlib.md5(content).hexdigest()
    return files


# The example of 40 §8 ------------------------------------------------------------------------------------------------

HEADER = b"user\tsegments"
ROWS = [b"crm-A9\t3100,3205,3350", b"crm-B4\t3100,3205,3350", b"crm-C7\t3100"]
INFO = """\
{
  "Files": [
    {
      "FileByteSize": 36,
      "FileLineCount": 2,
      "FileName": "s3_7301_52011_acct-77_full_1709992800000001.sync",
      "FileSequenceNumber": 1,
      "md5": "41b2ecb49b1dc289c5e6332375bb99dd"
    },
    {
      "FileByteSize": 48,
      "FileLineCount": 3,
      "FileName": "s3_7301_52011_acct-77_full_1709992800000002.sync",
      "FileSequenceNumber": 2,
      "md5": "96f7ed925f863c51f874fb5e3bbdb475"
    }
  ],
  "Totals": {
    "FileName": "s3_7301_52011_acct-77_full_1709992800000.sync",
    "TotalByteSize": 84,
    "TotalNumberFiles": 2,
    "TotalNumberLines": 5
  }
}
"""


@pytest.mark.rule("OB-184", "OB-185", "OB-190", "OB-191", "OB-192", "OB-194")
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_example(tmp_path: Path, size: int) -> None:
    files = write(tmp_path / "run", ROWS, replace(PLAIN, max_file_size=50), header=HEADER, size=size)
    assert [file.name for file in files] == [
        "s3_7301_52011_acct-77_full_1709992800000001.sync",
        "s3_7301_52011_acct-77_full_1709992800000002.sync",
        "s3_7301_52011_acct-77_full_1709992800000.info",
    ]
    assert files.files[2].path.read_text() == INFO
    assert [(file.kind, file.records, file.lines, file.sequence) for file in files] == [
        ("data", 1, 2, 1),
        ("data", 2, 3, 2),
        ("info", 24, 24, 0),
    ]
    assert (files.bytes, files.lines, files.records) == (84, 5, 3)
    assert files.files[1].path.read_bytes() == b"user\tsegments\ncrm-B4\t3100,3205,3350\ncrm-C7\t3100\n"


@pytest.mark.rule("OB-349")
@pytest.mark.parametrize(
    ("most", "sizes", "lines", "info"),
    [(50, [36, 48], 5, 24), (70, [70], 4, 17), (36, [36, 36, 26], 6, 31), (20, [36, 36, 26], 6, 31)],
)
def test_split_sizes(tmp_path: Path, most: int, sizes: list[int], lines: int, info: int) -> None:
    files = write(tmp_path / "run", ROWS, replace(PLAIN, max_file_size=most), header=HEADER)
    assert [file.bytes for file in files.data] == sizes
    numbers = [f"{place:03d}" for place in range(1, len(sizes) + 1)] if len(sizes) > 1 else [""]
    assert [file.name for file in files.data] == [numbered(number) for number in numbers]
    assert (files.bytes, files.lines, files.records) == (sum(sizes), lines, 3)
    assert files.files[-1].lines == files.files[-1].path.read_bytes().count(b"\n") == info


@pytest.mark.rule("OB-350")
def test_parts_of_one_row(tmp_path: Path) -> None:
    name = "ftp_1_52011_iter_1709992800000{}.sync".format
    format = replace(PLAIN, max_file_size=10)
    files = write(tmp_path / "run", [b"b1 3100 ", b"c1 3100 ", b"d1 3100 "], format, name)
    assert [(file.name, file.bytes, file.records) for file in files.data] == [
        (name(number), 9, 1) for number in ("001", "002", "003")
    ]
    rows = [b"a1  3100", b"b1 3100 ", b"c1 3100 ", b"d1 3100 "]
    files = write(tmp_path / "run", rows, format, name)
    assert len(files.data) == 4
    assert files.files[-1].lines == 38


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.rule("OB-182", "OB-186", "OB-190")
@pytest.mark.parametrize(
    ("compression", "name", "one", "parts", "info", "total"),
    [
        ("none", "x.sync", "x.sync", ["x-1.sync", "x-2.sync"], "x.info", "x.sync"),
        ("gz", "x.sync", "x.sync.gz", ["x-1.sync.gz", "x-2.sync.gz"], "x.info", "x.sync"),
        ("gz", "x.sync.gz", "x.sync.gz", ["x-1.sync.gz", "x-2.sync.gz"], "x.info", "x.sync"),
        ("gz", "x.gz", "x.gz", ["x-1.gz", "x-2.gz"], "x.info", "x"),
        ("zip", "x.csv", "x.csv.zip", ["x-1.csv.zip", "x-2.csv.zip"], "x.info", "x.csv"),
        ("none", "x.gz", "x.gz", ["x-1.gz", "x-2.gz"], "x.info", "x.gz"),
        ("none", "x", "x", ["x-1", "x-2"], "x.info", "x"),
        ("none", "a.b.c", "a.b.c", ["a.b-1.c", "a.b-2.c"], "a.b.info", "a.b.c"),
        ("none", "a__b é.sync", "a__b é.sync", ["a__b é-1.sync", "a__b é-2.sync"], "a__b é.info", "a__b é.sync"),
    ],
)
def test_names_without_a_split_number(
    tmp_path: Path, compression: Any, name: str, one: str, parts: list[str], info: str, total: str
) -> None:
    format = replace(PLAIN, compression=compression)
    assert [file.name for file in write(tmp_path / "run", ROWS, format, fixed(name))] == [one, info]
    assert json.loads((tmp_path / "run" / info).read_text())["Totals"]["FileName"] == total
    files = write(tmp_path / "run", ROWS, replace(format, max_file_size=34), fixed(name))
    assert [file.name for file in files] == [*parts, info]
    assert json.loads((tmp_path / "run" / info).read_text())["Totals"]["FileName"] == total


@pytest.mark.rule("OB-185")
def test_a_thousand_parts(tmp_path: Path) -> None:
    rows = [b"%d" % number for number in range(1001)]
    files = write(tmp_path / "run", rows, replace(PLAIN, max_file_size=1), "out_17_{}.txt".format, size=100)
    names = [file.name for file in files.data]
    assert (names[0], names[99], names[-1]) == ("out_17_001.txt", "out_17_100.txt", "out_17_1001.txt")
    assert files.files[-1].name == "out_17_.info"
    assert [file.path.read_bytes() for file in files.data] == [row + b"\n" for row in rows]


@pytest.mark.rule("OB-183")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        (fixed(""), "empty"),
        (fixed("a/b.sync"), "'/'"),
        (fixed("../b.sync"), "'/'"),
        (fixed("a\\b"), r"'\\\\'"),
        (fixed("a\tb"), r"'\\t'"),
        (fixed("a\0b"), r"'\\x00'"),
        (fixed("a\x85b"), r"'\\x85'"),
        (fixed("a\x7fb"), r"'\\x7f'"),
        (fixed("x" * 252 + ".sync"), "257 bytes"),
        (fixed("é" * 126 + ".sync"), "257 bytes"),
        (fixed("a\udc80b"), "Unicode"),
        (fixed(".."), "folder"),
        (fixed("x.info"), "receipt"),
    ],
)
def test_refused_names(tmp_path: Path, name: Name, why: str) -> None:
    with pytest.raises(InputError, match=why):
        FileSet(tmp_path / "run", PLAIN, name, b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.rule("OB-183")
def test_the_longest_names(tmp_path: Path) -> None:
    long = "x" * 250 + ".sync"
    assert max(len(file.name) for file in write(tmp_path / "run", ROWS, name=fixed(long))) == 255
    with pytest.raises(InputError, match="258 bytes"):
        FileSet(tmp_path / "run", replace(PLAIN, compression="gz"), fixed(long), b"")
    with pytest.raises(InputError, match=r"'': it is empty"):
        FileSet(tmp_path / "run", replace(PLAIN, compression="gz"), fixed(".gz"), b"")
    with pytest.raises(InputError, match="receipt"):
        FileSet(tmp_path / "run", replace(PLAIN, md5_receipt=True), fixed("x.md5"), b"")


@pytest.mark.rule("OB-183")
@pytest.mark.parametrize("bad", ["a/b", "a\nb", "x" * 256])
@pytest.mark.parametrize("number", ["001", "002", "010"])
def test_a_part_that_cannot_be_named_ends_the_run(tmp_path: Path, number: str, bad: str) -> None:
    """Nothing is there to be delivered, not even the parts before."""
    format = replace(PLAIN, max_file_size=1)
    files = FileSet(tmp_path / "run", format, lambda split: bad if split == number else numbered(split), b"")
    with pytest.raises(InputError, match="file name"):
        files.write(blocks([b"r"] * 12, 5))
    assert list(tmp_path.iterdir()) == []


# Parts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.rule("OB-184")
@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.binary(max_size=12).map(lambda row: row.replace(b"\n", b" ")), max_size=40),
    most=st.integers(1, 60),
    header=st.sampled_from([b"", b"h", b"id\nsegments"]),
    cuts=st.tuples(st.integers(1, 45), st.integers(1, 45)),
    compression=st.sampled_from(["none", "gz", "zip"]),
)
def test_parts_hold_what_fits(
    rows: list[bytes], most: int, header: bytes, cuts: tuple[int, int], compression: Any
) -> None:
    head = header + b"\n" if header else b""
    format = replace(PLAIN, max_file_size=most, compression=compression)
    contents = []
    with TemporaryDirectory() as folder:
        for place, cut in enumerate(cuts):
            files = write(Path(folder) / str(place) / "run", rows, format, header=header, size=cut)
            contents.append({file.name: file.path.read_bytes() for file in files})
            parts = [plain(file.path) for file in files.data]
            assert [file.lines for file in files.data] == [part.count(b"\n") for part in parts]
            assert [file.records for file in files.data] == [part.count(b"\n") - head.count(b"\n") for part in parts]
    assert contents[0] == contents[1], "how rows come in blocks changes nothing"
    assert all(part.startswith(head) for part in parts)
    assert b"".join(part[len(head) :] for part in parts) == b"".join(row + b"\n" for row in rows)
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        held = part[len(head) :].count(b"\n")
        assert len(part) <= most or held <= 1
        if following is not None:
            assert held >= 1
            assert len(part) + following[len(head) :].index(b"\n") + 1 > most, "the next row would have fitted"


@pytest.mark.rule("OB-188", "OB-192")
@pytest.mark.parametrize(("header", "lines"), [(b"", 0), (b"id", 1), (b"id\n", 2)])
@pytest.mark.parametrize("compression", ["none", "gz", "zip"])
def test_a_run_without_rows(tmp_path: Path, header: bytes, lines: int, compression: Any) -> None:
    format = replace(PLAIN, compression=compression)
    files = write(tmp_path / "run", [], format, header=header)
    assert [file.kind for file in files] == ["data", "info"]
    assert plain(files.files[0].path) == (header + b"\n" if header else b"")
    assert (files.files[0].lines, files.records, files.files[1].lines) == (lines, 0, 17)
    assert list(write(tmp_path / "run", [], replace(format, skip_empty=True, md5_receipt=True), header=header)) == []
    assert len(write(tmp_path / "run", [b"r"], replace(format, skip_empty=True), header=header)) == 2


@pytest.mark.rule("OB-192", "OB-193")
def test_lines_inside_rows_are_counted(tmp_path: Path) -> None:
    rows = [b"a\n1", b"b\n\n2"]
    block = Rendered(b"a\n1\nb\n\n2\n", rendered([b"abc", b"abcd"]).ends)
    files = FileSet(tmp_path / "run", replace(PLAIN, max_file_size=8), numbered, b"h\n").write([block])
    assert [(file.lines, file.records) for file in files.data] == [(4, 1), (5, 1)]
    assert files.data[1].path.read_bytes() == b"h\n\n" + rows[1] + b"\n"


# Receipts ------------------------------------------------------------------------------------------------------------


@pytest.mark.rule("OB-191", "OB-194", "OB-195")
def test_the_md5_receipt(tmp_path: Path) -> None:
    format = replace(PLAIN, max_file_size=50, md5_receipt=True)
    files = write(tmp_path / "run", ROWS, format, header=HEADER)
    assert [file.kind for file in files] == ["data", "data", "md5", "info"]
    assert files.files[2].name == "s3_7301_52011_acct-77_full_1709992800000.md5"
    assert files.files[2].path.read_bytes() == (
        b"41b2ecb49b1dc289c5e6332375bb99dd  s3_7301_52011_acct-77_full_1709992800000001.sync\n"
        b"96f7ed925f863c51f874fb5e3bbdb475  s3_7301_52011_acct-77_full_1709992800000002.sync\n"
    )
    assert files.files[3].path.read_text() == INFO
    assert (files.bytes, files.lines) == (84, 5)
    without = write(tmp_path / "run", ROWS, replace(format, info_receipt=False, md5_receipt=False), header=HEADER)
    assert [file.kind for file in without] == ["data", "data"]


@pytest.mark.rule("OB-195")
def test_md5sum_reads_the_receipt(tmp_path: Path) -> None:
    if not (program := shutil.which("md5sum")):
        pytest.skip("md5sum is not installed")
    files = write(tmp_path / "run", ROWS, replace(PLAIN, md5_receipt=True, compression="gz"))
    subprocess.run([program, "--check", "--strict", files.files[1].name], cwd=tmp_path / "run", check=True)


# Compression ---------------------------------------------------------------------------------------------------------


def many_rows(count: int) -> list[bytes]:
    return [b"crm-%d %d,%d " % (number * 7919 % 1_000_003, number % 97, number % 89) for number in range(count)]


@pytest.mark.rule("OB-182")
def test_equal_content_gives_equal_gzip(tmp_path: Path) -> None:
    rows = many_rows(150_000)  # 3 MB: several pieces
    format = replace(PLAIN, compression="gz")
    (first, _) = write(tmp_path / "a" / "run", rows, format, size=150_000)
    (second, _) = write(tmp_path / "b" / "run", rows, format, fixed("other"), size=1_777)
    content = first.path.read_bytes()
    assert content == second.path.read_bytes()
    assert content[:4] == b"\x1f\x8b\x08\x00", "no flag: no name, no comment"
    assert content[4:8] == bytes(4), "time 0"
    assert gzip.decompress(content) == b"".join(row + b"\n" for row in rows)
    assert len(content) < 0.6 * sum(len(row) + 1 for row in rows)


@pytest.mark.parametrize("most", [None, 10**9])
def test_a_zip_is_read_by_others(tmp_path: Path, most: int | None) -> None:
    rows = many_rows(150_000)
    format = replace(PLAIN, compression="zip", max_file_size=most)
    (first, _) = write(tmp_path / "a" / "run", rows, format, size=150_000)
    (second, _) = write(tmp_path / "b" / "run", rows, format, size=1_777)
    assert first.path.read_bytes() == second.path.read_bytes()
    with zipfile.ZipFile(first.path) as archive:
        (entry,) = archive.infolist()
        assert (entry.filename, entry.date_time) == (numbered(""), (1980, 1, 1, 0, 0, 0))
        assert archive.testzip() is None
    if program := shutil.which("unzip"):
        subprocess.run([program, "-t", str(first.path)], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("name", [numbered, fixed("é.sync"), lambda split: f"{'' if split else 'all'}{split}.sync"])
def test_each_zip_names_its_part(tmp_path: Path, name: Name) -> None:
    """The first part's entry is named when a second part begins, in front of what was written already."""
    format = replace(PLAIN, compression="zip", max_file_size=30)
    files = write(tmp_path / "run", ROWS, format, name)
    assert len(files.data) == 3
    assert [plain(file.path) for file in files.data] == [row + b"\n" for row in ROWS]
    if program := shutil.which("unzip"):
        for file in files.data:
            subprocess.run([program, "-t", str(file.path)], check=True, stdout=subprocess.DEVNULL)


# Cut short -----------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here: nothing that handles errors may run."""


def kill_at(point: str) -> Callable[[str], None]:
    def fault(reached: str) -> None:
        if reached == point:
            raise Killed

    return fault


FORMATS = [replace(PLAIN, max_file_size=50, compression=compression) for compression in ("none", "gz", "zip")]


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.compression)
def test_rows_that_fail_leave_nothing(tmp_path: Path, format: FileFormat) -> None:
    def failing() -> Iterator[Rendered]:
        yield rendered(ROWS)
        raise ValueError("no more rows")

    with pytest.raises(ValueError, match="no more rows"):
        FileSet(tmp_path / "run", format, numbered, HEADER).write(failing())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("point", ["rows", "files.written", "files.replaced", "files.placed"])
@pytest.mark.parametrize("earlier", [0, 30])
def test_a_killed_call_leaves_all_or_nothing(tmp_path: Path, point: str, earlier: int) -> None:
    def rows() -> Iterator[Rendered]:
        yield from blocks(ROWS, 1)
        if point == "rows":
            raise Killed

    folder = tmp_path / "run"
    if earlier:
        write(folder, [b"x" * 30] * earlier, FORMATS[0], header=HEADER)
    before = sorted(path.name for path in folder.iterdir()) if earlier else []
    files = FileSet(folder, FORMATS[0], numbered, HEADER)
    with pytest.raises(Killed):
        files.write(rows(), kill_at(point))
    found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    after = sorted([numbered("001"), numbered("002"), numbered("").replace(".sync", ".info")])
    expected = {"files.replaced": [], "files.placed": after}.get(point, before)
    assert found == expected
    assert all(path.name.endswith(".tmp") for path in tmp_path.iterdir() if path != folder)
    assert len(write(folder, ROWS, FORMATS[0], header=HEADER)) == 3  # looks itself that nothing else is left


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.compression)
def test_a_full_disk_is_worth_another_try(tmp_path: Path, format: FileFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", refuse)
        with pytest.raises(StoreUnavailable, match="the disk is full"):
            FileSet(tmp_path / "run", format, numbered, HEADER).write([rendered(ROWS)])
    assert not (tmp_path / "run").exists()
    assert len(write(tmp_path / "run", ROWS, format, header=HEADER)) == 3


def test_what_is_placed_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("/proc is not there to say which file a handle is of")
    synced: list[str] = []
    monkeypatch.setattr("os.fsync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").readlink().name))
    at: dict[str, int] = {}

    def note(point: str) -> None:
        at[point] = len(synced)

    format = replace(FORMATS[0], md5_receipt=True)
    FileSet(tmp_path / "run", format, numbered, HEADER).write(blocks(ROWS, 1), note)
    written = synced[: at["files.written"]]
    assert written[-5:] == [
        "part",
        "part",
        numbered("").replace(".sync", ".md5"),
        numbered("").replace(".sync", ".info"),
        "files",
    ]
    assert synced[at["files.replaced"] :] == [tmp_path.name], "the name of the folder, last"


@pytest.mark.parametrize("compression", ["none", "gz", "zip"])
def test_memory_is_for_one_block(tmp_path: Path, compression: Any) -> None:
    block = rendered(many_rows(50_000))  # about 1 MB
    tracemalloc.start()
    try:
        FileSet(tmp_path / "run", replace(PLAIN, compression=compression), numbered, b"").write(
            block for _ in range(24)
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * len(block.data)


def test_the_consumer_reads_what_is_written(tmp_path: Path) -> None:
    write(tmp_path / "run", ROWS, replace(PLAIN, compression="zip", max_file_size=30))
    assert received(tmp_path / "run") == ROWS
