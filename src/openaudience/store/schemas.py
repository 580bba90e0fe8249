"""Columns of the open tables (design 2.3). All but ``loads`` are partitioned by ``dpid``."""

from __future__ import annotations

import pyarrow as pa

_INSTANT = pa.timestamp("us", tz="UTC")

SCHEMAS: dict[str, pa.Schema] = {
    # This ID has this number.
    "ids": pa.schema(
        [("dpid", pa.int32()), ("ord", pa.int64()), ("id", pa.string()), ("load", pa.int64()), ("at", _INSTANT)]
    ),
    # A file row or call asserted ID → device, or customer → hashed e-mail; seq is its place among the load's rows.
    "links": pa.schema(
        [
            ("dpid", pa.int32()),
            ("ord", pa.int64()),
            ("to_dpid", pa.int32()),
            ("to_ord", pa.int64()),
            ("load", pa.int64()),
            ("line", pa.int64()),
            ("first_at", _INSTANT),
            ("last_at", _INSTANT),
            ("state", pa.int8()),
            ("origin", pa.int8()),
            ("seq", pa.int64()),
        ]
    ),
    # op +1: realised n times between the two instants; op −1: removed.
    "realizations": pa.schema(
        [
            ("dpid", pa.int32()),
            ("ord", pa.int64()),
            ("sid", pa.int32()),
            ("load", pa.int64()),
            ("op", pa.int8()),
            ("n", pa.int32()),
            ("first_at", _INSTANT),
            ("last_at", _INSTANT),
            ("line", pa.int64()),
        ]
    ),
    # The load reached this ID: 0 file row, 1 call, 2 gone.
    "touches": pa.schema(
        [("dpid", pa.int32()), ("ord", pa.int64()), ("load", pa.int64()), ("kind", pa.int8()), ("at", _INSTANT)]
    ),
    # Joined (+1) or left (−1) the segment.
    "memberships": pa.schema(
        [
            ("dpid", pa.int32()),
            ("ord", pa.int64()),
            ("sid", pa.int32()),
            ("op", pa.int8()),
            ("load", pa.int64()),
            ("at", _INSTANT),
        ]
    ),
    # Opted out, by key, because the text may have to go.
    "optouts": pa.schema(
        [
            ("pid", pa.int32()),
            ("dpid", pa.int32()),
            ("k1", pa.int64()),
            ("k2", pa.int64()),
            ("load", pa.int64()),
            ("at", _INSTANT),
        ]
    ),
    # Copy of the catalog for outside readers: a row for each time a load comes in force or is withdrawn.
    "loads": pa.schema(
        [
            ("load", pa.int64()),
            ("job", pa.int64()),
            ("position", pa.int64()),
            ("kind", pa.string()),
            ("dpid", pa.int32()),
            ("target", pa.int32()),
            ("batch", pa.int64()),
            ("at", _INSTANT),
            ("event", pa.string()),
            ("since", _INSTANT),
        ]
    ),
}

NULLABLE: dict[str, frozenset[str]] = {
    "links": frozenset({"line", "first_at", "last_at", "state"}),
    "realizations": frozenset({"first_at", "last_at", "line"}),
    "loads": frozenset({"dpid", "target", "batch"}),
}
"""Columns that may be null. A null ``first_at`` or ``last_at`` means the instant of the row's load."""

SORTED_BY: dict[str, str] = {"optouts": "k1", "loads": "load"}
"""The column a file is sorted by; ``ord`` for the tables not named here."""


def partitioned(table: str) -> bool:
    """Whether the files of a table lie in one folder for each ``dpid``."""
    return table != "loads"


def part_schema(table: str) -> pa.Schema:
    """The columns inside a file: without ``dpid`` where the folder says it."""
    schema = SCHEMAS[table]
    return schema.remove(schema.get_field_index("dpid")) if partitioned(table) else schema


def sort_column(table: str) -> str:
    """The column by which the rows of a file are ordered."""
    return SORTED_BY.get(table, "ord")
