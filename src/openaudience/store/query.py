"""Read-only SQL over the open tables, only rows of loads in force (OP-21, design 2.2)."""

from __future__ import annotations

import re
from collections.abc import Collection

import polars as pl
from polars.exceptions import PanicException, PolarsError

from openaudience.errors import InputError
from openaudience.store.tables import Tables

VIEWS = ("realizations", "links", "ids", "touches", "memberships", "loads")
"""Names that a query may use."""

_HIDDEN = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/", re.DOTALL)
_READER = re.compile(r"\b((?:read|scan)_\w+)\"?(?:\s|/\*.*?\*/|--[^\n]*\n)*\(", re.IGNORECASE | re.DOTALL)


def sql(
    text: str,
    tables: Tables,
    loads_in_force: Collection[int],
    loads_ever: Collection[int] | None = None,
    evaluations: Collection[int] = (),
) -> pl.DataFrame:
    """The answer of one SELECT, WITH or SHOW statement.

    Views: ``realizations``, ``links``, ``touches``, ``loads`` (one row a load, its latest event) of the loads in force;
    ``ids`` of the loads that were ever in force (``loads_ever``; None: all rows); ``memberships`` of the decided
    ``evaluations``. ``first_at`` and ``last_at`` are
    filled from the load's ``at`` where a row leaves them out. Reads no clock: the present instant is a literal of the
    query. Raises ``InputError`` for anything else than such a
    statement, or one that cannot be carried out.
    """
    check_read_only(text)
    context = pl.SQLContext(views(tables, loads_in_force, loads_ever, evaluations))
    try:
        return context.execute(text).collect(engine="streaming")
    except (PolarsError, PanicException, ValueError, TypeError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"the query could not be carried out: {reason}. Tables: {', '.join(VIEWS)}.") from error


def check_read_only(statement: str) -> None:
    """Raises ``InputError`` unless the text is one statement that only reads the tables."""
    bare = _HIDDEN.sub(" ", statement).strip().rstrip(";").strip()
    if not bare:
        raise InputError("the query is empty. Give one SELECT statement.")
    word = re.match(r"[\s(]*(\w*)", bare)
    first = word.group(1).upper() if word else ""
    if first not in {"SELECT", "WITH", "SHOW"}:
        raise InputError(f"a query begins with SELECT, WITH or SHOW, not with {first or repr(bare[:20])}.")
    if ";" in bare:
        raise InputError("one statement at a time: leave out ';' and what follows it.")
    # Sought in the text as it is: no way of quoting may hide a function that reads other files.
    if reader := _READER.search(statement):
        raise InputError(f"{reader.group(1)} is not allowed: a query reads the tables {', '.join(VIEWS)}.")


def views(
    tables: Tables,
    loads_in_force: Collection[int],
    loads_ever: Collection[int] | None = None,
    evaluations: Collection[int] = (),
) -> dict[str, pl.LazyFrame]:
    """The views of ``sql`` as lazy frames; filters on them reach the files."""
    force = sorted(loads_in_force)
    loads = (
        tables.scan("loads", loads=force).sort("since", maintain_order=True).unique("load", keep="last").sort("load")
    )
    # A load decided a moment ago may not have its row in `loads` yet: its rows count all the same.
    instants = pl.LazyFrame({"load": force}, schema={"load": pl.Int64}).join(
        loads.select("load", pl.col("at").alias("load_at")), on="load", how="left"
    )

    def counting(table: str) -> pl.LazyFrame:
        frame = tables.scan(table)
        names = frame.collect_schema().names()
        rows = frame.join(instants, on="load", how="inner")
        filled = [pl.coalesce(name, "load_at").alias(name) for name in ("first_at", "last_at") if name in names]
        return rows.with_columns(filled).select(names)

    return {
        "realizations": counting("realizations"),
        "links": counting("links"),
        "ids": tables.scan("ids", loads=loads_ever),
        "touches": counting("touches"),
        "memberships": tables.scan("memberships", loads=sorted(evaluations)),
        "loads": loads,
    }
