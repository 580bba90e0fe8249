"""SQL over the tables: which rows it sees, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from openaudience.errors import InputError
from openaudience.store.query import sql
from openaudience.store.schemas import part_schema
from openaudience.store.tables import Tables

FIRST = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
SECOND = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
OWN = datetime(2026, 2, 1, 0, 0, tzinfo=UTC)


def put(tables: Tables, table: str, dpid: int | None, *rows: Mapping[str, Any]) -> None:
    whole = [dict.fromkeys(part_schema(table).names) | dict(row) for row in rows]
    data = pa.Table.from_pylist(whole, schema=part_schema(table))
    tables.commit(table, tables.write_part(table, dpid, data, tables.root / "work"))


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    """Three loads: 1 and 2 decided, 1 withdrawn and restored once, 3 of an attempt that failed."""
    tables = Tables(tmp_path)

    def load(number: int, at: datetime, event: str, since: datetime) -> dict[str, Any]:
        return {
            "load": number,
            "job": number,
            "position": number,
            "kind": "data",
            "at": at,
            "event": event,
            "since": since,
        }

    put(tables, "loads", None, load(1, FIRST, "in_force", FIRST), load(2, SECOND, "in_force", SECOND))
    put(tables, "loads", None, load(1, FIRST, "withdrawn", SECOND))
    put(tables, "loads", None, load(1, FIRST, "in_force", SECOND.replace(hour=9)))
    fact = {"sid": 901, "op": 1, "n": 1}
    put(
        tables,
        "realizations",
        7007,
        {"ord": 4, "load": 1, "line": 2, **fact},
        {"ord": 4, "load": 2, "first_at": OWN, "last_at": OWN, **fact},
        {"ord": 5, "load": 3, **fact},
    )
    link = {"to_dpid": 0, "to_ord": 9, "origin": 0, "seq": 0}
    put(tables, "links", 7007, {"ord": 4, "load": 2, **link}, {"ord": 5, "load": 3, **link})
    put(tables, "touches", 7007, *({"ord": 4, "load": load, "kind": 0, "at": FIRST} for load in (1, 2, 3)))
    put(
        tables,
        "ids",
        7007,
        {"ord": 4, "id": "anna", "load": 1, "at": FIRST},
        {"ord": 5, "id": "ben", "load": 3, "at": FIRST},
    )
    return tables


@pytest.mark.rule("OP-21")
def test_only_loads_in_force_are_seen(tables: Tables) -> None:
    def loads(view: str, force: list[int]) -> list[int]:
        return sql(f"SELECT load FROM {view} ORDER BY load", tables, force)["load"].to_list()

    for view in ("realizations", "touches", "loads"):
        assert loads(view, [1, 2]) == [1, 2]
        assert loads(view, [2]) == [2]
        assert loads(view, []) == []
    assert loads("links", [1, 2]) == [2]
    assert loads("ids", []) == [1, 3]


@pytest.mark.rule("OP-21")
def test_instants_left_out_are_the_loads(tables: Tables) -> None:
    answer = sql("SELECT load, first_at, last_at FROM realizations ORDER BY load", tables, [1, 2])
    assert answer.rows() == [(1, FIRST, FIRST), (2, OWN, OWN)]
    assert sql("SELECT first_at, last_at FROM links", tables, [2]).rows() == [(SECOND, SECOND)]


def test_a_load_that_was_just_decided_counts_before_its_row_is_there(tables: Tables) -> None:
    answer = sql("SELECT ord, first_at FROM realizations", tables, [3])
    assert answer.rows() == [(5, None)]


@pytest.mark.rule("OP-21")
def test_joins_groups_and_names(tables: Tables) -> None:
    text = """
        WITH held AS (SELECT dpid, ord, count(*) AS n FROM realizations GROUP BY dpid, ord)
        SELECT ids.id, held.n FROM held JOIN ids ON held.ord = ids.ord AND held.dpid = ids.dpid; -- all of them
    """
    assert sql(text, tables, [1, 2]).rows() == [("anna", 2)]
    names = sql("show tables", tables, [])["name"].to_list()
    assert names == ["ids", "links", "loads", "memberships", "realizations", "touches"]
    assert sql("(SELECT event FROM loads WHERE load = 1)", tables, [1]).rows() == [("in_force",)]
    assert sql("SELECT 'a;b -- read' AS t", tables, []).rows() == [("a;b -- read",)]


@pytest.mark.rule("OP-21")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "query is empty"),
        ("-- nothing", "query is empty"),
        ("DELETE FROM ids", "begins with SELECT, WITH or SHOW, not with DELETE"),
        ("/* SELECT */ drop table ids", "not with DROP"),
        ("INSERT INTO ids VALUES (1)", "not with INSERT"),
        ("CREATE TABLE x AS SELECT * FROM ids", "not with CREATE"),
        ("TRUNCATE TABLE ids", "not with TRUNCATE"),
        ("%", "not with '%'"),
        ("SELECT 1; SELECT 2", "one statement"),
        ("SELECT 1; DROP TABLE ids;", "one statement"),
        ("WITH a AS (SELECT 1) DELETE FROM ids", "could not be carried out"),
        ("SELECT * INTO x FROM ids", "could not be carried out"),
        ("SELECT * FROM read_csv('/etc/hostname')", "read_csv is not allowed"),
        ("SELECT * FROM \"read_csv\" /* ' */ ('/etc/hostname')", "read_csv is not allowed"),
        ("SELECT * FROM '/etc/hostname'", "could not be carried out"),
        ("SELECT * FROM optouts", "'optouts' was not found. Tables: realizations, links"),
        ("SELECT nothing FROM ids", "nothing"),
        ("SELECT * FROM ids WHERE", "could not be carried out"),
        ("SELECT CAST(id AS INT) FROM ids", "could not be carried out"),
        ("SELECT regexp_like(id, '(') FROM ids", "could not be carried out"),
    ],
)
def test_what_does_not_read_or_cannot_be_done_is_refused(tables: Tables, text: str, message: str) -> None:
    before = tables.versions()
    with pytest.raises(InputError) as refused:
        sql(text, tables, [1, 2])
    assert message in str(refused.value)
    assert tables.versions() == before
    assert sql("SELECT count(*) AS n FROM ids", tables, [1]).rows() == [(2,)]
