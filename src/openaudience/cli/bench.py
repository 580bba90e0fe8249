"""``openaudience bench`` (OP-23, OP-50)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import cast

from openaudience.bench import generator, harness
from openaudience.clock import system_clock
from openaudience.errors import UsageError


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
    results = harness.measure_all(plan, lambda text: print(text, file=sys.stderr, flush=True))
    now = system_clock()
    if append is not None:
        harness.record(append, plan, results, now)
    if as_json:
        print(json.dumps(harness.documents(results)))
    else:
        print(f"{harness.surroundings(plan, now)}\n\n{harness.table(results)}", end="")
    return 0


def _listed(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())
