"""Generations: what readers see at every step, and what sweeping keeps."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from openaudience.errors import SystemFailure
from openaudience.store.generations import Generation, Generations

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


class Killed(BaseException):
    """The process ends here."""


def layer(generations: Generations, component: str, number: int) -> str:
    name = generations.new_file_name(component, number)
    path = generations.path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)
    return name


def publish(generations: Generations, number: int, layers: dict[str, list[str]], at: datetime = NOW) -> None:
    generations.write(Generation(number=number, layers=layers))
    generations.publish(number)
    names = [file for files in layers.values() for file in files]
    stamp(generations, at, *names, f"gen-{number}.json", "CURRENT")


def stamp(generations: Generations, at: datetime, *names: str) -> None:
    """Gives files the time they were written at in the story of a test."""
    for name in names:
        os.utime(generations.path(name), (at.timestamp(), at.timestamp()))


def test_before_the_first_there_is_an_empty_one(tmp_path: Path) -> None:
    assert Generations(tmp_path / "index").current() == Generation()
    assert Generation().number == 0


def test_a_manifest_comes_back_and_publishing_twice_is_once(tmp_path: Path) -> None:
    generations = Generations(tmp_path / "index")
    name = layer(generations, "ids/5001", 1)
    written = Generation(
        number=1,
        layers={"ids/5001": [name]},
        counters={"5001": 12},
        as_of="2026-03-02T00:00:00Z",
        table_versions={"ids": 3},
        notes={"drained": 7},
    )
    generations.write(written)
    assert generations.current() == Generation()
    generations.publish(1)
    before = (generations.folder / "CURRENT").stat().st_ino
    generations.publish(1)
    assert (generations.folder / "CURRENT").stat().st_ino == before
    assert Generations(tmp_path / "index").current() == written


def test_it_never_goes_back(tmp_path: Path) -> None:
    generations = Generations(tmp_path)
    for number in (1, 2):
        generations.write(Generation(number=number))
        generations.publish(number)
    with pytest.raises(SystemFailure, match="2 already is"):
        generations.publish(1)
    with pytest.raises(SystemFailure, match="2 is already published"):
        generations.write(Generation(number=2))
    with pytest.raises(SystemFailure, match="no usable manifest"):
        generations.publish(3)


def test_an_attempt_that_was_not_published_is_replaced(tmp_path: Path) -> None:
    generations = Generations(tmp_path)
    generations.write(Generation(number=1, counters={"x": 1}))
    generations.write(Generation(number=1, counters={"x": 2}))
    generations.publish(1)
    assert generations.current().counters == {"x": 2}


def test_a_manifest_names_only_files_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(SystemFailure, match=r"ids\.00000001, which is not there"):
        Generations(tmp_path).write(Generation(number=1, layers={"ids": ["ids.00000001"]}))


@pytest.mark.parametrize("text", ["", "gen-x.json", "../gen-1.json", "gen-9.json", "\udcff"])
def test_a_damaged_pointer_is_named(tmp_path: Path, text: str) -> None:
    generations = Generations(tmp_path)
    generations.write(Generation(number=1))
    (tmp_path / "CURRENT").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SystemFailure, match=r"Restore a backup"):
        generations.current()


@pytest.mark.parametrize("content", [b"", b"{", b'{"number": 2}', b'{"number": "1"}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    generations = Generations(tmp_path)
    generations.write(Generation(number=1))
    generations.publish(1)
    (tmp_path / "gen-1.json").write_bytes(content)
    with pytest.raises(SystemFailure, match=r"gen-1\.json"):
        generations.current()


@pytest.mark.parametrize(
    ("point", "seen"),
    [("manifest.written", 1), ("publish.checked", 1), ("file.written", 1), ("file.renamed", 2), ("publish.done", 2)],
)
def test_after_a_crash_readers_see_one_whole_generation(tmp_path: Path, point: str, seen: int) -> None:
    publish(Generations(tmp_path), 1, {})
    armed = True

    def fault(reached: str) -> None:
        if armed and reached == point:
            raise Killed

    generations = Generations(tmp_path, fault)
    with pytest.raises(Killed):  # noqa: PT012 (either step may be the one that ends)
        generations.write(Generation(number=2, counters={"x": 5}))
        generations.publish(2)
    assert Generations(tmp_path).current().number == seen
    armed = False
    if point == "manifest.written":
        generations.write(Generation(number=2, counters={"x": 5}))
    generations.publish(2)
    assert Generations(tmp_path).current().counters == {"x": 5}


def test_names_are_never_given_twice(tmp_path: Path) -> None:
    generations = Generations(tmp_path)
    names = {generations.new_file_name("traits/5001/0", 4) for _ in range(5)}
    assert len(names) == 5
    layer(generations, "ids", 4)
    assert Generations(tmp_path).new_file_name("ids", 4) != "ids.00000004"
    for wrong in ("", "/x", "../x", "x//y", "a b"):
        with pytest.raises(ValueError, match="no component name"):
            generations.new_file_name(wrong, 1)


def test_sweep_keeps_what_a_reader_may_still_open(tmp_path: Path) -> None:
    generations = Generations(tmp_path)
    base = layer(generations, "ids", 1)
    publish(generations, 1, {"ids": [base]}, NOW - timedelta(days=9))
    packed = layer(generations, "ids", 2)
    publish(generations, 2, {"ids": [packed]}, NOW - timedelta(minutes=9))
    # The base is nine days old, but a reader may have taken generation 1 a moment before it was replaced.
    assert generations.sweep((), NOW) == []
    deleted = generations.sweep((), NOW + timedelta(minutes=2))
    assert sorted(deleted) == ["gen-1.json", base]
    assert generations.current().layers == {"ids": [packed]}
    assert generations.path(packed).is_file()
    assert generations.sweep((), NOW + timedelta(minutes=2)) == []


def test_sweep_keeps_a_backups_generation(tmp_path: Path) -> None:
    generations = Generations(tmp_path)
    names = [layer(generations, "ids", number) for number in (1, 2, 3)]
    for number, name in enumerate(names, 1):
        publish(generations, number, {"ids": [name]}, NOW - timedelta(days=5 - number))
    assert sorted(generations.sweep({1}, NOW)) == ["gen-2.json", names[1]]
    assert generations.load(1).layers == {"ids": [names[0]]}
    assert generations.path(names[0]).is_file()


def test_sweep_keeps_a_decided_generation_and_drops_a_crashes_leftovers(tmp_path: Path) -> None:
    generations = Generations(tmp_path)
    publish(generations, 1, {}, NOW - timedelta(days=1))
    decided = layer(generations, "ids", 2)
    generations.write(Generation(number=2, layers={"ids": [decided]}))
    orphan = layer(generations, "traits/7", 3)
    temporary = tmp_path / ".ids.00000009.ab.tmp"
    temporary.write_text("half")
    stamp(generations, NOW - timedelta(minutes=5), decided, orphan, temporary.name, "gen-2.json")
    assert generations.sweep((), NOW) == []
    assert sorted(generations.sweep((), NOW + timedelta(minutes=6))) == [temporary.name, orphan]
    generations.publish(2)
    assert generations.current().layers == {"ids": [decided]}


def test_a_sweep_may_be_cut_anywhere(tmp_path: Path) -> None:
    for occurrence in (1, 2, 3):
        left = occurrence

        def fault(point: str) -> None:
            nonlocal left
            left -= point == "sweep.deleted"
            if not left:
                raise Killed

        folder = tmp_path / str(occurrence)
        generations = Generations(folder)
        for number in (1, 2, 3):
            name = layer(generations, "ids", number)
            publish(generations, number, {"ids": [name]}, NOW - timedelta(days=5 - number))
        with pytest.raises(Killed):
            Generations(folder, fault).sweep((), NOW)
        for number in generations.numbers():
            assert all(generations.path(file).is_file() for file in generations.load(number).layers["ids"])
        generations.sweep((), NOW)
        assert generations.numbers() == [3]
        assert {path.name for path in folder.iterdir()} == {"CURRENT", "gen-3.json", "ids.00000003"}
