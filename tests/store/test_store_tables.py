"""Tables: what is written comes back, files are left out by statistics, crashes and packing lose nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from openaudience.errors import SystemFailure
from openaudience.store import tables as tables_module
from openaudience.store.parts import PartWriter, remove_parts
from openaudience.store.schemas import NULLABLE, SCHEMAS, part_schema, partitioned
from openaudience.store.tables import Tables

AT = datetime(2026, 3, 2, 11, 4, 9, tzinfo=UTC)


class Killed(BaseException):
    """The process ends here."""


def rows_of(table: str, count: int, load: int = 1, start: int = 0) -> pa.Table:
    """Made-up rows with every column filled, nullable ones in part."""
    columns: dict[str, list[Any]] = {}
    for field in part_schema(table):
        if pa.types.is_timestamp(field.type):
            values: list[Any] = [AT + timedelta(seconds=number) for number in range(count)]
        elif pa.types.is_string(field.type):
            values = [f"ü{number}" for number in range(count)]
        else:
            values = [(start + number) % 120 for number in range(count)]
        if field.name in ("ord", "k1"):
            values = [start + number for number in range(count)]
        if field.name == "load":
            values = [load] * count
        if field.name in NULLABLE.get(table, ()):
            values = [None if number % 3 == 0 else value for number, value in enumerate(values)]
        columns[field.name] = values
    return pa.table(columns, schema=part_schema(table))


def add(tables: Tables, table: str, dpid: int | None, rows: pa.Table) -> int:
    return tables.commit(table, tables.write_part(table, dpid, rows, tables.root / "work"))


def ords(frame: pl.LazyFrame) -> list[int]:
    return sorted(frame.collect()["ord"].to_list())


@pytest.mark.parametrize("table", list(SCHEMAS))
def test_every_table_is_empty_first_and_gives_back_what_it_got(tmp_path: Path, table: str) -> None:
    tables = Tables(tmp_path)
    types = tables.scan(table).collect_schema()
    assert types.names() == SCHEMAS[table].names
    assert tables.scan(table).collect().is_empty()
    dpid = 5001 if partitioned(table) else None
    rows = rows_of(table, 10)
    assert add(tables, table, dpid, rows) == 1
    found = Tables(tmp_path).scan(table)
    assert found.collect_schema() == types
    expected = pl.from_arrow(rows)
    assert isinstance(expected, pl.DataFrame)
    assert found.select(rows.column_names).collect().equals(expected)
    if dpid is not None:
        assert found.select("dpid").unique().collect().to_series().to_list() == [5001]
        assert tables.scan(table, 7).collect().is_empty()
        assert tables.scan(table, 7).collect_schema() == types


def test_outside_readers_see_the_same(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    add(tables, "realizations", 5001, rows_of("realizations", 10))
    add(tables, "realizations", 0, rows_of("realizations", 5, load=2))
    names = SCHEMAS["realizations"].names
    outside = pl.scan_delta(str(tables.path("realizations"))).select(names).sort(names).collect()
    assert outside.equals(tables.scan("realizations").sort(names).collect())


def test_a_file_is_packed_as_designed(tmp_path: Path) -> None:
    parts = Tables(tmp_path / "tables").write_part(
        "realizations", 7, rows_of("realizations", 300_000), tmp_path / "work"
    )
    assert len(parts) == 1
    assert parts[0].path.parent == tmp_path / "work"
    assert parts[0].rows == 300_000
    assert parts[0].size == parts[0].path.stat().st_size
    assert parts[0].stats == {"ord": (0, 299_999), "load": (1, 1)}
    metadata = pq.read_metadata(parts[0].path)
    assert [metadata.row_group(number).num_rows for number in range(3)] == [131_072, 131_072, 37_856]
    column = metadata.row_group(0).column(0)
    assert column.path_in_schema == "ord"
    assert column.compression == "ZSTD"
    assert "DELTA_BINARY_PACKED" in column.encodings


def test_rows_are_sorted_stably(tmp_path: Path) -> None:
    rows = rows_of("touches", 4).set_column(0, "ord", pa.array([3, 1, 3, 1]))
    rows = rows.set_column(2, "kind", pa.array([0, 1, 2, 0], pa.int8()))
    tables = Tables(tmp_path)
    add(tables, "touches", 7, rows)
    assert tables.scan("touches").select("ord", "kind").collect().rows() == [(1, 1), (1, 0), (3, 0), (3, 2)]


def test_pieces_become_files_of_at_most_so_many_rows(tmp_path: Path) -> None:
    tables = Tables(tmp_path / "tables")
    with PartWriter("touches", 7, tmp_path / "work", most_rows=250) as writer:
        for start in (0, 199, 450, 700):
            writer.append(rows_of("touches", 200, start=start))
        writer.append(rows_of("touches", 0))
    assert [part.rows for part in writer.parts] == [250, 250, 250, 50]
    tables.commit("touches", writer.parts)
    assert ords(tables.scan("touches")) == sorted([*range(200), *range(199, 399), *range(450, 650), *range(700, 900)])


def test_rows_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    tables = Tables(tmp_path / "tables")

    def refused(rows: pa.Table, message: str, table: str = "touches", dpid: int | None = 7) -> None:
        with pytest.raises(SystemFailure, match=message):
            tables.write_part(table, dpid, rows, tmp_path / "work")

    good = rows_of("touches", 2)
    refused(good.drop_columns(["kind"]), "lack or have too much: kind")
    refused(good.append_column("dpid", pa.array([7, 7])), "lack or have too much: dpid")
    refused(good.set_column(1, "load", pa.array([1, None])), "have nothing in load")
    refused(good.set_column(2, "kind", pa.array([1, 300])), "do not fit")
    refused(good, "partitioned by dpid", dpid=None)
    refused(rows_of("loads", 2), "not partitioned", table="loads", dpid=7)
    with pytest.raises(SystemFailure, match="out of order: 0 after 1"), PartWriter("touches", 7, tmp_path) as writer:  # noqa: PT012
        writer.append(good)
        writer.append(good)
    with pytest.raises(SystemFailure, match="holds rows of touches, not of ids"):
        tables.commit("ids", tables.write_part("touches", 7, good, tmp_path / "work"))


def test_no_rows_no_commit(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    assert tables.write_part("touches", 7, rows_of("touches", 0), tmp_path / "work") == []
    assert tables.commit("touches", []) == 0


def test_all_parts_of_a_run_are_one_version_with_statistics(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    parts = [
        part
        for dpid in (5001, 5002)
        for part in tables.write_part("links", dpid, rows_of("links", 9, load=dpid, start=dpid), tmp_path / "work")
    ]
    assert tables.commit("links", parts, run="run 4") == 1
    assert tables.versions() == {name: int(name == "links") for name in SCHEMAS}
    log = DeltaTable(str(tables.path("links")))
    assert log.history()[0]["run"] == "run 4"
    assert list((tmp_path / "work").iterdir()) == []
    assert [(file.dpid, file.rows, file.stats) for file in tables.files("links")] == [
        (dpid, 9, {"ord": (dpid, dpid + 8), "load": (dpid, dpid)}) for dpid in (5001, 5002)
    ]
    assert tables.files("links", version=0) == []


def test_scan_leaves_out_files_and_keeps_only_the_rows_asked_for(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    for load in range(4):
        add(tables, "touches", 7, rows_of("touches", 100, load=load, start=100 * load))
    add(tables, "touches", 8, rows_of("touches", 100, load=9))
    assert len(tables.files("touches", 7, ords=(150, 220))) == 2
    assert ords(tables.scan("touches", 7, ords=(150, 220))) == list(range(150, 221))
    assert len(tables.files("touches", loads={3, 9, 77})) == 2
    assert ords(tables.scan("touches", loads={3, 77})) == list(range(300, 400))
    assert tables.scan("touches", 7, loads=()).collect().is_empty()
    assert ords(tables.scan("touches", version=1)) == list(range(100))


def test_filters_reach_the_files(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    for dpid in (7, 8):
        add(tables, "touches", dpid, rows_of("touches", 100, start=dpid))
    plan = tables.scan("touches").filter((pl.col("ord") == 50) & (pl.col("load") == 1)).explain()
    assert plan.count("SELECTION") == 2
    found = tables.scan("touches").filter((pl.col("ord") == 50) & (pl.col("dpid") == 8)).collect()
    assert found.select("dpid", "ord").rows() == [(8, 50)]


def test_any_home_but_one_with_a_percent_sign(tmp_path: Path) -> None:
    tables = Tables(tmp_path / "dpid=3" / "a b [x]* é")
    add(tables, "touches", 7, rows_of("touches", 3))
    assert tables.scan("touches").select("dpid", "ord").collect().rows() == [(7, 0), (7, 1), (7, 2)]
    with pytest.raises(SystemFailure, match="no '%'"):
        Tables(tmp_path / "a%20b")


def test_a_reader_that_was_open_sees_later_commits(tmp_path: Path) -> None:
    reader, writer = Tables(tmp_path), Tables(tmp_path)
    assert reader.version("touches") == 0
    add(writer, "touches", 7, rows_of("touches", 3))
    assert ords(reader.scan("touches")) == [0, 1, 2]


@pytest.mark.parametrize(
    ("point", "occurrence", "seen"),
    [("touches.part", 1, 0), ("touches.part", 2, 0), ("touches.moved", 1, 0), ("touches.committed", 1, 6)],
)
def test_after_a_crash_a_commit_is_whole_or_not_there(tmp_path: Path, point: str, occurrence: int, seen: int) -> None:
    left = occurrence

    def fault(reached: str) -> None:
        nonlocal left
        left -= reached == point
        if not left:
            raise Killed

    add(Tables(tmp_path), "touches", 7, rows_of("touches", 1, start=1000))
    tables = Tables(tmp_path, fault)
    work = tmp_path / "work"
    parts = [part for dpid in (7, 8) for part in tables.write_part("touches", dpid, rows_of("touches", 3), work)]
    with pytest.raises(Killed):
        tables.commit("touches", parts)
    after = Tables(tmp_path)
    assert after.scan("touches").collect().height == 1 + seen
    swept = after.sweep_unreferenced("touches")
    assert len(swept) == (0 if seen else 2 if point == "touches.moved" else occurrence)
    assert after.scan("touches").collect().height == 1 + seen
    assert len(list(after.path("touches").rglob("*.parquet"))) == len(after.files("touches"))
    remove_parts(parts)
    if not seen:
        for dpid in (7, 8):
            add(after, "touches", dpid, rows_of("touches", 3))
        assert after.scan("touches").collect().height == 7


def test_sweeping_waits_for_whoever_is_about_to_commit(tmp_path: Path) -> None:
    swept: list[list[str]] = []

    def fault(reached: str) -> None:
        if reached == "touches.moved":
            swept.append(Tables(tmp_path).sweep_unreferenced("touches"))

    add(Tables(tmp_path, fault), "touches", 7, rows_of("touches", 3))
    assert swept == [[]]
    assert ords(Tables(tmp_path).scan("touches")) == [0, 1, 2]


def fill(tables: Tables, table: str, dpid: int | None, files: int) -> pl.DataFrame:
    random = np.random.default_rng(4)
    for load in range(files):
        rows = rows_of(table, 20, load=load)
        if "ord" in rows.column_names:
            rows = rows.set_column(0, "ord", pa.array(np.sort(random.integers(0, 5000, 20))))
        add(tables, table, dpid, rows)
    return everything(tables, table)


def everything(tables: Tables, table: str) -> pl.DataFrame:
    return tables.scan(table).sort(pl.all()).collect()


@pytest.mark.parametrize("table", ["realizations", "optouts", "loads"])
def test_packing_changes_no_row(tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = Tables(tmp_path)
    dpid = 7 if partitioned(table) else None
    fill(tables, table, dpid, 32)
    assert tables.pack(table, dpid, tmp_path / "work") == 0
    add(tables, table, dpid, rows_of(table, 20, load=99))
    if dpid is not None:
        add(tables, table, 8, rows_of(table, 20))
    before = everything(tables, table)
    version = tables.version(table)
    # Small figures, so that a few rows make several ranges and several files.
    monkeypatch.setattr(tables_module, "PIECE_ROWS", 100)
    monkeypatch.setattr(tables_module, "PACKED_ROWS", 250)
    assert tables.pack(table, dpid, tmp_path / "work") == 33
    assert tables.version(table) == version + 1
    assert everything(tables, table).equals(before)
    packed = tables.files(table, dpid)
    assert [file.rows for file in sorted(packed, key=lambda file: -file.rows)] == [250, 250, 160]
    if table == "realizations":
        bounds = sorted(file.stats["ord"] for file in packed)
        assert all(one[1] <= other[0] for one, other in pairwise(bounds))
    assert tables.pack(table, dpid, tmp_path / "work") == 0


@pytest.mark.parametrize("point", ["touches.packed", "touches.part", "touches.moved", "touches.committed"])
def test_a_crash_while_packing_loses_and_doubles_nothing(tmp_path: Path, point: str) -> None:
    before = fill(Tables(tmp_path), "touches", 7, 34)
    armed = True

    def fault(reached: str) -> None:
        if armed and reached == point:
            raise Killed

    with pytest.raises(Killed):
        Tables(tmp_path, fault).pack("touches", 7, tmp_path / "work")
    tables = Tables(tmp_path)
    assert everything(tables, "touches").equals(before)
    tables.sweep_unreferenced("touches")
    assert everything(tables, "touches").equals(before)
    assert tables.pack("touches", 7, tmp_path / "work") == (0 if point == "touches.committed" else 34)
    assert everything(tables, "touches").equals(before)


def test_what_was_packed_stays_for_readers_until_vacuum(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    before = fill(tables, "touches", 7, 33)
    reader = tables.scan("touches")
    tables.pack("touches", 7, tmp_path / "work")
    assert tables.sweep_unreferenced("touches") == []
    assert tables.vacuum("touches") == []
    assert reader.sort(pl.all()).collect().equals(before)
    assert len(tables.vacuum("touches", hours=0)) == 33
    assert len(list(tables.path("touches").rglob("*.parquet"))) == 1
    assert everything(Tables(tmp_path), "touches").equals(before)


def test_files_can_be_replaced_in_one_version(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    add(tables, "touches", 7, rows_of("touches", 5))
    add(tables, "touches", 7, rows_of("touches", 5, start=50))
    old: Sequence[Any] = tables.files("touches", ords=(0, 4))
    parts = tables.write_part("touches", 7, rows_of("touches", 2), tmp_path / "work")
    assert tables.replace("touches", parts, old) == 3
    assert ords(tables.scan("touches")) == [0, 1, 50, 51, 52, 53, 54]
    tables.replace("touches", [], tables.files("touches"))
    assert ords(tables.scan("touches")) == []
    assert tables.vacuum("touches") == []


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    Tables(tmp_path)
    (tmp_path / "ids" / "_delta_log" / f"{0:020d}.json").write_text("{")
    with pytest.raises(SystemFailure, match="ids is damaged"):
        Tables(tmp_path).scan("ids")


def test_many_commits_leave_checkpoints_and_lose_nothing(tmp_path: Path) -> None:
    tables = Tables(tmp_path)
    for load in range(105):
        add(tables, "touches", 7, rows_of("touches", 1, load=load, start=load))
    assert list((tables.path("touches") / "_delta_log").glob("*.checkpoint*.parquet"))
    assert ords(Tables(tmp_path).scan("touches")) == list(range(105))
