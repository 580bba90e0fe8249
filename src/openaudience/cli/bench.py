"""``openaudience bench`` (OP-23, OP-50, OP-53)."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from openaudience.bench import edge, exports, generator, harness, segments
from openaudience.clock import system_clock
from openaudience.errors import UsageError

PROFILES = "1000000,10000000"
USERS = "1000000"
PROCESSES = "1,2"


def bench(
    sizes: str = "1,4,16",
    runs: int = 3,
    peers: str = ",".join(harness.RUNNERS),
    forms: str = ",".join(generator.FORMS),
    known: int = 1_000_000,
    seed: int = 2026,
    records: int | None = None,
    append: Path | None = None,
    as_json: bool = False,
) -> int:
    """Measure our ingest and its peers on generated data; print the table, return the exit status.

    Lists are separated by commas. ``records`` replaces the records of size 1; ``append`` is a Markdown file
    (docs/benchmarks.md) that gets the table with machine, versions, date and seed.
    """
    try:
        factors = tuple(int(size) for size in _listed(sizes))
    except ValueError:
        raise UsageError(f"bench: --sizes must be whole numbers separated by commas, not {sizes!r}") from None
    plan = harness.Plan(
        sizes=factors,
        runs=runs,
        runners=_listed(peers),
        forms=cast(tuple[generator.Form, ...], _listed(forms)),
        known=known,
        seed=seed,
        records=records,
    ).checked()
    results = harness.measure_all(plan, _say)
    return _shown(harness.told(plan), harness.table(results), harness.documents(results), append, as_json)


def bench_segments(
    profiles: str = PROFILES,
    runs: int = 3,
    seed: int = 2026,
    append: Path | None = None,
    as_json: bool = False,
) -> int:
    """Measure segments and overlaps beside DuckDB on generated traits (OP-53); otherwise as ``bench``."""
    plan = segments.SegmentPlan(_numbers("profiles", profiles), runs=runs, seed=seed).checked()
    results = segments.measure_segments(plan, _say)
    return _shown(segments.told(plan), segments.table(results), [asdict(one) for one in results], append, as_json)


def bench_exports(
    users: str = USERS,
    runs: int = 3,
    seed: int = 2026,
    append: Path | None = None,
    as_json: bool = False,
) -> int:
    """Measure exports before delivery beside DuckDB on generated users (OP-53); otherwise as ``bench``."""
    plan = exports.ExportPlan(_numbers("users", users), runs=runs, seed=seed).checked()
    results = exports.measure_exports(plan, _say)
    return _shown(exports.told(plan), segments.table(results), [asdict(one) for one in results], append, as_json)


def bench_edge(
    processes: str = PROCESSES,
    runs: int = 3,
    seed: int = 2026,
    append: Path | None = None,
    as_json: bool = False,
) -> int:
    """Measure calls to the edge and its store, beside a server that answers nothing (OP-52); otherwise as ``bench``."""
    plan = edge.EdgePlan(_numbers("processes", processes), runs=runs, seed=seed).checked()
    results = edge.measure_edge(plan, _say)
    return _shown(edge.told(plan), edge.table(results), edge.documents(results), append, as_json)


def _numbers(what: str, sizes: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in _listed(sizes))
    except ValueError:
        raise UsageError(f"bench: --sizes must be whole numbers of {what}, by comma, not {sizes!r}") from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _shown(what: str, tables: str, documents: list[dict[str, Any]], append: Path | None, as_json: bool) -> int:
    now = system_clock()
    if append is not None:
        harness.record(append, what, tables, now)
    if as_json:
        print(json.dumps(documents))
    else:
        print(f"{harness.surroundings(what, now)}\n\n{tables}", end="")
    return 0


def _listed(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())
