"""Exports at size: a full run, then an incremental one after changes, up to the files before delivery (OP-53).

IDs come into a new installation by an ID sync; members of the segments are written into its index directly, as an
evaluation would. DuckDB writes the same rows from tables in memory, and the files must be equal byte by byte.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from pyroaring import BitMap

from openaudience.bench import generator, measure
from openaudience.bench.measure import Clock, Taken
from openaudience.bench.peers import missing
from openaudience.bench.segments import Measure
from openaudience.errors import SystemFailure, UsageError
from openaudience.exports.generation import Generated, generate
from openaudience.exports.look import Look
from openaudience.home import Home
from openaudience.ordinals import bitmap_of, ordinals_of
from openaudience.outbound.model import SyncMode
from openaudience.profiles.index import changes
from openaudience.runs.site import Site
from openaudience.runs.world import DEVICES, Draft

SEGMENTS = (3100, 3205, 3350, 3999)
MEMBERS = 0.75
"""Share of the users in each segment."""
CHANGED = 0.01
"""Share of the users who change sides in every segment between the two runs."""
TRAIT = 8001
DESTINATION = 7301

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What to measure; ``users`` are the sizes."""

    users: tuple[int, ...] = (1_000_000,)
    runs: int = 3
    seed: int = 2026

    def checked(self) -> ExportPlan:
        """The same; UsageError names what is wrong."""
        if not self.users or min(*self.users, self.runs) < 1:
            raise UsageError("bench: users and runs must be whole numbers from 1 on")
        return self


def measure_exports(plan: ExportPlan, say: Say) -> list[Measure]:
    """Every size one after the other, each in a temporary folder, which is removed afterwards."""
    plan.checked()
    results: list[Measure] = []
    for users in plan.users:
        with tempfile.TemporaryDirectory(prefix="openaudience-bench-") as name:
            results += _Size(plan, users, Path(name), say).measured()
    return results


def workspace() -> str:
    """A workspace file (JSON): the key source, the segments, and a destination of the default format with them all."""
    source = generator.ID_SOURCE
    partner = {
        "pid": generator.PARTNER,
        "name": "bench",
        "dataSources": [{"dataSourceId": source, "name": "Users", "idType": "COOKIE", "outboundS2S": True}],
        "traits": [
            {
                "sid": TRAIT,
                "name": "Any",
                "traitType": "ON_BOARDED_TRAIT",
                "dataSourceId": source,
                "traitRule": 'any == "1"',
            }
        ],
        "segments": [
            {"sid": sid, "name": f"Segment {sid}", "dataSourceId": source, "segmentRule": f"{TRAIT}T"}
            for sid in SEGMENTS
        ],
        "destinationServers": [{"serverId": 1, "name": "Nowhere", "type": "LOCAL", "directory": "/nowhere"}],
        "destinations": [
            {
                "destinationId": DESTINATION,
                "name": "Recipient",
                "destinationType": "S2S",
                "dataSourceId": source,
                "userIdKey": source,
                "serverId": 1,
                "mappings": [{"sid": sid, "startDate": "2020-01-01"} for sid in SEGMENTS],
            }
        ],
    }
    return json.dumps({"partners": [partner]})


def prepare(folder: Path, users: int, seed: int) -> None:
    """Makes an installation ``home`` in the folder, with an ID of the key source for each user, by our own commands."""

    def command(*arguments: str) -> None:
        program = (sys.executable, "-c", "from openaudience.cli import run; run()")
        measure.run([*program, *arguments], {**os.environ, "OPENAUDIENCE_HOME": str(folder / "home")})

    (folder / "workspace.json").write_text(workspace())
    command("init")
    command("workspace", "apply", str(folder / "workspace.json"))
    sync = generator.write_sync(folder, users, seed)
    command("ingest", str(sync))
    sync.unlink()


class _Size:
    """An installation with the users of one size, and the two exports."""

    def __init__(self, plan: ExportPlan, users: int, folder: Path, say: Say) -> None:
        self._plan = plan
        self._users = users
        self._folder = folder
        self._say = say
        self._random = np.random.default_rng(plan.seed)
        self._before: dict[int, BitMap] = {}
        self._members: dict[int, BitMap] = {}
        self._results: list[Measure] = []
        say(f"{users:,} users: preparing an installation")
        prepare(folder, users, plan.seed)

    def measured(self) -> list[Measure]:
        with Home.open(self._folder / "home") as home:
            site = Site(home, "production")
            try:
                self._change(site, {sid: self._some(MEMBERS) for sid in SEGMENTS})
                first = self._exported(site, "full", None, len(BitMap.union(*self._members.values())))
                changed = self._some(CHANGED)
                self._change(site, dict.fromkeys(SEGMENTS, changed))
                after = self._exported(site, "iter", first.baseline, len(changed))
                self._duckdb(site, {"full": first, "iter": after})
            finally:
                site.close()
        return self._results

    def _some(self, share: float) -> BitMap:
        """A share of the users, by chance."""
        return bitmap_of(np.flatnonzero(self._random.random(self._users) < share))

    def _change(self, site: Site, turned: dict[int, BitMap]) -> None:
        """Of those, members leave and the others join; published as an evaluation is."""
        self._before = self._members or {sid: BitMap() for sid in turned}
        self._members = {sid: self._before[sid] ^ users for sid, users in turned.items()}
        base = site.generations.current()
        draft = Draft(site.generations, base)
        joined = {sid: users - self._before[sid] for sid, users in turned.items()}
        left = {sid: users & self._before[sid] for sid, users in turned.items()}
        draft.put_members(DEVICES, changes(joined, left))
        site.generations.write(draft.generation(base.as_of, base.table_versions))
        site.generations.publish(draft.number)

    def _exported(self, site: Site, mode: SyncMode, baseline: Path | None, rows: int) -> Generated:
        """The last of the runs; a wrong number of rows ends the benchmark."""
        folder = self._folder / mode
        taken = []
        for turn in range(self._plan.runs):
            self._say(f"{self._users:,} users: {mode} export, run {turn + 1}")
            shutil.rmtree(folder, ignore_errors=True)
            clock = Clock()
            look = Look(site, site.now())
            made = generate(look, look.audiences.destinations[DESTINATION], mode, look.now * 1000, baseline, folder)
            taken.append(clock.taken())
            if made.records != rows:
                raise SystemFailure(f"bench: the {mode} export has {made.records} rows instead of {rows}")
        self._put(mode, "export", taken, made)
        return made

    def _put(self, mode: SyncMode, runner: str, taken: Sequence[Taken], made: Generated) -> None:
        seconds = statistics.median(one.seconds for one in taken)
        processor = statistics.median(one.processor for one in taken)
        speed = made.records / seconds / 1e6
        about = f"{made.records:,} rows, {made.files.bytes / 1e6:.1f} MB: {speed:.2f} M rows/s"
        self._results.append(Measure(self._users, f"{mode} export", runner, seconds, processor, about))

    # ---- DuckDB --------------------------------------------------------------------------------------------------

    def _duckdb(self, site: Site, made: dict[SyncMode, Generated]) -> None:
        if why := missing("duckdb"):
            self._results.append(Measure(self._users, "all", "duckdb", None, None, why))
            return
        import duckdb

        self._say(f"{self._users:,} users: DuckDB, loading")
        with duckdb.connect() as connection:
            connection.execute("SET threads = 2; SET enable_progress_bar = false")
            _, world = site.current()
            customers, devices, _, _ = world.links(generator.ID_SOURCE).pairs()
            blob, offs = world.ids(generator.ID_SOURCE).texts(customers)
            texts = pa.LargeStringArray.from_buffers(customers.size, pa.py_buffer(offs), pa.py_buffer(blob))
            _load(connection, "ids", pa.table({"device": devices, "id": texts}))
            _load(connection, "before", _memberships(self._before))
            _load(connection, "members", _memberships(self._members))
            for mode, run in made.items():
                self._one(connection, mode, SQL[mode], run)

    def _one(self, connection: Any, mode: SyncMode, sql: str, made: Generated) -> None:
        file = self._folder / f"{mode}.txt"
        taken = []
        for turn in range(self._plan.runs):
            self._say(f"{self._users:,} users: DuckDB, {mode} export, run {turn + 1}")
            clock = Clock()
            connection.execute(f"COPY ({sql}) TO '{file}' (FORMAT csv, HEADER false, QUOTE '', ESCAPE '')")
            taken.append(clock.taken())
        if file.read_bytes() != b"".join(part.path.read_bytes() for part in made.files.data):
            raise SystemFailure(f"bench: DuckDB writes other rows than the {mode} export")
        file.unlink()
        self._put(mode, "duckdb", taken, made)


SQL: dict[SyncMode, str] = {
    "full": """
    SELECT id || ' ' || string_agg(segment::VARCHAR, ',' ORDER BY segment) || ' '
    FROM before JOIN ids USING (device) GROUP BY id ORDER BY id
    """,
    "iter": """
    WITH added AS (SELECT * FROM members EXCEPT SELECT * FROM before),
    removed AS (SELECT * FROM before EXCEPT SELECT * FROM members),
    changed AS (SELECT *, true AS here FROM added UNION ALL SELECT *, false AS here FROM removed)
    SELECT id || ' ' || coalesce(string_agg(segment::VARCHAR, ',' ORDER BY segment) FILTER (here), '')
        || ' ' || coalesce(string_agg(segment::VARCHAR, ',' ORDER BY segment) FILTER (NOT here), '')
    FROM changed JOIN ids USING (device) GROUP BY id ORDER BY id
    """,
}
"""The files' rows from tables (device, id) and (device, segment): ``before`` the change and after it."""


def _memberships(members: dict[int, BitMap]) -> pa.Table:
    """Rows (device, segment), segment by segment."""
    devices = [ordinals_of(bitmap) for bitmap in members.values()]
    segments = np.repeat(np.array(list(members), np.uint32), [some.size for some in devices])
    return pl.DataFrame({"device": np.concatenate(devices), "segment": segments}).to_arrow()


def _load(connection: Any, name: str, rows: pa.Table) -> None:
    connection.register("rows", rows)
    connection.execute(f"CREATE TABLE {name} AS SELECT * FROM rows")
    connection.unregister("rows")


def told(plan: ExportPlan) -> str:
    """What was measured, for the sentence about the machine."""
    return (
        f"medians of {plan.runs} runs, {len(SEGMENTS)} segments with {MEMBERS:.0%} of the users each, "
        f"{CHANGED:.0%} of the users changed in all of them, seed {plan.seed}"
    )
