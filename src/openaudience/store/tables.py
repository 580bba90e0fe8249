"""The Delta tables: what is added is added whole, by one commit; readers see versions (design 2.3, 2.8).

One process writes at a time (the applier); any number read. A crash before a commit leaves files that no version
names: ``sweep_unreferenced`` deletes them.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from openaudience.errors import StoreUnavailable, SystemFailure
from openaudience.store.files import (
    TEMPORARY,
    Fault,
    locked,
    make_folder,
    move_file,
    no_fault,
    storing,
    sync_file,
    sync_folder,
)
from openaudience.store.parts import Part, PartWriter, write_parts
from openaudience.store.schemas import SCHEMAS, part_schema, partitioned, sort_column

SMALL_ROWS = 1 << 20
"""A file with fewer rows is small: packing may merge it. The parts of a large file are not."""
SMALL_FILES = 32
"""Packing waits until a table and namespace has more small files than this."""
PACKED_ROWS = 16 << 20
"""Rows of a file that packing writes."""
PIECE_ROWS = 2 << 20
"""About how many rows packing holds in memory."""

CONFIGURATION = {
    "delta.checkpointInterval": "100",
    "delta.logRetentionDuration": "interval 7 days",
    "delta.deletedFileRetentionDuration": "interval 2 days",
}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of one version: ``path`` is relative to the table's folder, ``stats`` as in ``Part``."""

    path: str
    dpid: int | None
    rows: int
    size: int
    stats: dict[str, tuple[int, int]]

    def may_hold(self, name: str, low: int, high: int) -> bool:
        """Whether the file may have rows with ``low ≤ name ≤ high``."""
        least, greatest = self.stats.get(name, (low, high))
        return least <= high and low <= greatest

    def may_hold_any(self, name: str, values: Sequence[int]) -> bool:
        """Whether the file may have rows with one of ``values``, which are ascending."""
        if not values:
            return False
        least, greatest = self.stats.get(name, (values[0], values[-1]))
        place = bisect_left(values, least)
        return place < len(values) and values[place] <= greatest


def address(path: Path) -> str:
    """The table's folder as a URL."""
    return path.absolute().as_uri()


@contextmanager
def delta(path: Path) -> Iterator[None]:
    """Turns errors of the Delta library about the table in ``path`` into ours."""
    try:
        yield
    except (CommitFailedError, OSError) as error:
        raise StoreUnavailable(
            f"table {path} could not be used: {in_one_line(error)}. Mend that, then run the command again."
        ) from error
    except DeltaError as error:
        raise SystemFailure(f"table {path} is damaged: {in_one_line(error)}. Restore a backup.") from error


def in_one_line(error: Exception) -> str:
    """The library's message without the colours and arrows it draws for terminals."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).replace("↳", ":")
    return " ".join(plain.split()).replace(" :", ":").rstrip(". ")


class Tables:
    """The tables below one folder; those that are missing are created, empty. ``fault`` is for kill tests."""

    def __init__(self, root: Path, fault: Fault = no_fault) -> None:
        if "%" in str(root.absolute()):
            # The Delta library decodes such a path in one place and not in another.
            raise SystemFailure(f"tables cannot lie in {root.absolute()}: choose a home whose path has no '%'")
        self.root = root
        self._fault = fault
        self._opened: dict[str, DeltaTable] = {}
        for name in SCHEMAS:
            self._create(name)

    def path(self, table: str) -> Path:
        """The folder of a table."""
        return self.root / table

    def version(self, table: str) -> int:
        """The newest version; 0 is the empty table."""
        return int(self._table(table).version())

    def versions(self) -> dict[str, int]:
        """The newest version of every table."""
        return {name: self.version(name) for name in SCHEMAS}

    def write_part(self, table: str, dpid: int | None, rows: pa.Table, folder: Path) -> list[Part]:
        """Rows as durable Parquet files in the staging ``folder``: one, more above 64 M rows, none for no rows.

        ``rows`` has the columns of ``part_schema(table)``; they are sorted by ``ord`` here unless they are.
        ``PartWriter`` does the same piece by piece.
        """
        return write_parts(table, dpid, rows, folder)

    def commit(self, table: str, parts: Sequence[Part], run: str | None = None) -> int:
        """Moves the parts into the table and adds them by one commit; returns the version.

        No parts: no commit. ``run`` is noted in the table's history. Raises ``StoreUnavailable``.
        """
        return self.replace(table, parts, (), run=run) if parts else self.version(table)

    def replace(
        self,
        table: str,
        parts: Sequence[Part],
        removed: Sequence[DataFile],
        *,
        same_rows: bool = False,
        run: str | None = None,
    ) -> int:
        """One commit that adds parts and takes files out; returns the version. ``same_rows``: only packed anew.

        Files taken out stay on disk until ``vacuum``.
        """
        with self._lock(fcntl.LOCK_SH):
            return self._replace(table, parts, removed, same_rows, run)

    def _replace(
        self, table: str, parts: Sequence[Part], removed: Sequence[DataFile], same_rows: bool, run: str | None
    ) -> int:
        path = self.path(table)
        added = [self._placed(table, part) for part in parts]
        for folder in {(path / action.path).parent for action in added}:
            with storing(folder):
                sync_folder(folder)
        self._fault(f"{table}.moved")
        with storing(path):
            # Vacuum compares with the system's clock, so the system stamps: the folder gets the present instant.
            os.utime(path)
            instant = int(os.path.getmtime(path) * 1000)
        gone = [
            RemoveAction(
                file.path,
                data_change=not same_rows,
                deletion_timestamp=instant,
                size=file.size,
                partition_values={} if file.dpid is None else {"dpid": str(file.dpid)},
            )
            for file in removed
        ]
        if same_rows:
            added = [AddAction(a.path, a.size, a.partition_values, a.modification_time, False, a.stats) for a in added]
        opened = self._table(table)
        with delta(path):
            opened.create_write_transaction(
                [*added, *gone],
                mode="append",
                schema=SCHEMAS[table],
                partition_by=["dpid"] if partitioned(table) else None,
                commit_properties=None if run is None else CommitProperties(custom_metadata={"run": run}),
                post_commithook_properties=PostCommitHookProperties(create_checkpoint=True),
            )
            opened.update_incremental()
            version = int(opened.version())
        with storing(path):
            log = path / "_delta_log"
            entry = log / f"{version:020d}.json"
            if entry.exists():
                sync_file(entry)
            sync_folder(log)
        self._fault(f"{table}.committed")
        return version

    def files(
        self,
        table: str,
        dpid: int | None = None,
        *,
        ords: tuple[int, int] | None = None,
        loads: Collection[int] | None = None,
        version: int | None = None,
    ) -> list[DataFile]:
        """Files of the newest (or a given) version, as far as their statistics say that they may hold such rows.

        ``ords``: least and greatest ordinal; ``loads``: any of these.
        """
        opened = self._table(table) if version is None else self._at(table, version)
        with delta(self.path(table)):
            actions = pa.table(opened.get_add_actions(flatten=True)).to_pylist()
        found = [data_file(table, action) for action in actions]
        if dpid is not None and partitioned(table):
            found = [file for file in found if file.dpid == dpid]
        if ords is not None:
            found = [file for file in found if file.may_hold("ord", *ords)]
        if loads is not None:
            wanted = sorted(loads)
            found = [file for file in found if file.may_hold_any("load", wanted)]
        return sorted(found, key=lambda file: (file.dpid if file.dpid is not None else -1, file.path))

    def scan(
        self,
        table: str,
        dpid: int | None = None,
        *,
        ords: tuple[int, int] | None = None,
        loads: Collection[int] | None = None,
        version: int | None = None,
    ) -> pl.LazyFrame:
        """All columns of a table, ``dpid`` included, of one namespace or all.

        ``ords`` (least, greatest) and ``loads`` keep only such rows and leave out whole files by their statistics;
        filters added to the frame reach the files' row groups. The frame stays readable for 48 hours.
        """
        files = self.files(table, dpid, ords=ords, loads=loads, version=version)
        frame = self.frame(table, files)
        if dpid is not None and not partitioned(table):
            frame = frame.filter(pl.col("dpid") == dpid)
        if ords is not None:
            frame = frame.filter(pl.col("ord").is_between(*ords))
        if loads is not None:
            frame = frame.filter(pl.col("load").is_in(sorted(loads)))
        return frame

    def frame(self, table: str, files: Sequence[DataFile]) -> pl.LazyFrame:
        """The rows of some files of a table, ``dpid`` included."""
        names = SCHEMAS[table].names
        by_dpid: dict[int | None, list[str]] = {}
        for file in files:
            by_dpid.setdefault(file.dpid, []).append(str(self.path(table) / file.path))
        frames: list[pl.LazyFrame] = []
        for dpid, paths in by_dpid.items():
            # The namespace comes from the log, not from the path: folders above the table may look like partitions.
            frame = pl.scan_parquet(paths, glob=False, hive_partitioning=False)
            if partitioned(table):
                frame = frame.with_columns(pl.lit(dpid, pl.Int32).alias("dpid"))
            frames.append(frame.select(names))
        return pl.concat(frames) if frames else empty(table).lazy()

    def pack(self, table: str, dpid: int | None, folder: Path) -> int:
        """Merges the small files of a namespace when there are more than 32, rows unchanged, in one commit.

        New files are written in ``folder`` and cover ranges of ordinals. Returns how many files were merged.
        """
        small = [file for file in self.files(table, dpid) if file.rows < SMALL_ROWS]
        if len(small) <= SMALL_FILES:
            return 0
        column = sort_column(table)
        frame = self.frame(table, small).select(part_schema(table).names)
        with PartWriter(table, dpid if partitioned(table) else None, folder, PACKED_ROWS) as writer:
            for low, high in self._ranges(table, small):
                piece = frame.filter(pl.col(column).is_between(low, high)).collect()
                if piece.height:
                    order = list(dict.fromkeys([column, "load"]))
                    writer.append(piece.sort(order, maintain_order=True).to_arrow())
        if sum(part.rows for part in writer.parts) != sum(file.rows for file in small):
            raise SystemFailure(f"packing {self.path(table)} lost rows; nothing was changed. Run `openaudience check`.")
        self._fault(f"{table}.packed")
        self.replace(table, writer.parts, small, same_rows=True, run="pack")
        return len(small)

    def rewrite(
        self,
        table: str,
        dpid: int | None,
        held: pl.Expr,
        folder: Path,
        *,
        ords: tuple[int, int] | None = None,
        change: Callable[[pl.DataFrame], pl.DataFrame] | None = None,
    ) -> int:
        """Erases rows for good (RT-1908): those for which ``held`` is true go, or become what ``change`` makes of them.

        Only files that hold such rows are written anew, in one commit, and the old ones are deleted at once: whoever
        still reads an older version may miss them. Gives how many rows there were. Raises ``StoreUnavailable``.
        """
        names = part_schema(table).names
        touched: list[tuple[DataFile, int]] = []
        for file in self.files(table, dpid, ords=ords):
            count = self.frame(table, [file]).filter(held).select(pl.len()).collect().item()
            if count:
                touched.append((file, count))
        parts: list[Part] = []
        for file, _ in touched:
            frame = self.frame(table, [file]).select(names)
            with PartWriter(table, file.dpid, folder, PACKED_ROWS) as writer:
                for low, high in self._ranges(table, [file]):
                    piece = frame.filter(pl.col(sort_column(table)).is_between(low, high)).collect()
                    rest = piece.filter(~held)
                    if change is not None:
                        rest = pl.concat([rest, change(piece.filter(held)).select(names)])
                    writer.append(rest.to_arrow())
            parts += writer.parts
        if touched:
            self.replace(table, parts, [file for file, _ in touched], run="erase")
            for file, _ in touched:
                path = self.path(table) / file.path
                with storing(path):
                    path.unlink(missing_ok=True)
        return sum(count for _, count in touched)

    def vacuum(self, table: str, hours: int = 48) -> list[str]:
        """Deletes files taken out of the table longer than ``hours`` ago; returns their names.

        Never during a backup.
        """
        opened = self._table(table)
        with delta(self.path(table)):
            removed = opened.vacuum(retention_hours=hours, dry_run=False, enforce_retention_duration=False)
            opened.update_incremental()
        return sorted(removed)

    def sweep_unreferenced(self, table: str) -> list[str]:
        """Deletes data files that no version names: what a crash before a commit left; returns their names.

        Does nothing while any process is between moving files into a table and committing them.
        """
        with self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB) as free:
            return self._swept(table) if free else []

    def _swept(self, table: str) -> list[str]:
        path = self.path(table)
        opened = self._table(table)
        with delta(path):
            # Files taken out may still be read; vacuum deletes them in time.
            named = set(opened.vacuum(retention_hours=0, dry_run=True, enforce_retention_duration=False))
        named.update(file.path for file in self.files(table))
        swept: list[str] = []
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path).as_posix()
            if name.startswith("_delta_log/") or not file.is_file():
                continue
            if (file.suffix == ".parquet" and name not in named) or name.endswith(TEMPORARY):
                with storing(file):
                    file.unlink(missing_ok=True)
                swept.append(name)
        return swept

    @contextmanager
    def _lock(self, kind: int) -> Iterator[bool]:
        """Holds the folder's lock, shared for commits, alone for sweeping; gives whether it was free.

        A process that lost its lease and wakes up between moving and committing must find its files: a version
        that names deleted ones could not be read any more.
        """
        with locked(self.root / "tables.lock", kind, 0o644) as free:
            yield free

    def _create(self, name: str) -> None:
        path = self.path(name)
        if DeltaTable.is_deltatable(address(path)):
            return
        with storing(path):
            make_folder(path)
        with delta(path):
            DeltaTable.create(
                address(path),
                SCHEMAS[name],
                mode="ignore",
                partition_by=["dpid"] if partitioned(name) else None,
                configuration=dict(CONFIGURATION),
            )
        with storing(path):
            log = path / "_delta_log"
            sync_file(log / f"{0:020d}.json")
            sync_folder(log)
            sync_folder(path)

    def _table(self, name: str) -> DeltaTable:
        """The table at its newest version."""
        path = self.path(name)
        with delta(path):
            opened = self._opened.get(name)
            if opened is None:
                opened = self._opened[name] = DeltaTable(address(path))
            else:
                opened.update_incremental()
        return opened

    def _at(self, name: str, version: int) -> DeltaTable:
        with delta(self.path(name)):
            return DeltaTable(address(self.path(name)), version=version)

    def _placed(self, table: str, part: Part) -> AddAction:
        """Moves a part into its partition's folder."""
        if part.table != table:
            raise SystemFailure(f"{part.path} holds rows of {part.table}, not of {table}")
        relative = part.path.name if part.dpid is None else f"dpid={part.dpid}/{part.path.name}"
        target = self.path(table) / relative
        with storing(target):
            make_folder(target.parent)
            move_file(part.path, target)
            changed = int(os.path.getmtime(target) * 1000)
        self._fault(f"{table}.part")
        stats = {
            "numRecords": part.rows,
            "minValues": {name: low for name, (low, _) in part.stats.items()},
            "maxValues": {name: high for name, (_, high) in part.stats.items()},
            "nullCount": dict.fromkeys(part.stats, 0),
        }
        values = {} if part.dpid is None else {"dpid": str(part.dpid)}
        return AddAction(relative, part.size, values, changed, True, json.dumps(stats))

    def _ranges(self, table: str, files: Sequence[DataFile]) -> list[tuple[int, int]]:
        """Ranges of the sort column, ascending, that together hold all rows, each about ``PIECE_ROWS``."""
        column = sort_column(table)
        groups: list[tuple[int, int, int]] = []
        for file in files:
            metadata = pq.read_metadata(self.path(table) / file.path)
            place = metadata.schema.names.index(column)
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                bounds = group.column(place).statistics
                groups.append((int(bounds.min), int(bounds.max), group.num_rows))
        groups.sort()
        ranges: list[tuple[int, int]] = []
        low = groups[0][0]
        rows = 0
        for start, _, count in groups:
            if rows >= PIECE_ROWS and start > low:
                ranges.append((low, start - 1))
                low, rows = start, 0
            rows += count
        ranges.append((low, max(end for _, end, _ in groups)))
        return ranges


def data_file(table: str, action: dict[str, object]) -> DataFile:
    """A file from the log's flattened add action."""

    def number(name: str) -> int | None:
        value = action.get(name)
        return value if isinstance(value, int) else None

    stats: dict[str, tuple[int, int]] = {}
    for name in ("ord", "load"):
        low, high = number(f"min.{name}"), number(f"max.{name}")
        if low is not None and high is not None:
            stats[name] = (low, high)
    dpid = number("partition.dpid") if partitioned(table) else None
    return DataFile(str(action["path"]), dpid, number("num_records") or 0, number("size_bytes") or 0, stats)


def empty(table: str) -> pl.DataFrame:
    """No rows, with the table's columns and types."""
    frame = pl.from_arrow(SCHEMAS[table].empty_table())
    assert isinstance(frame, pl.DataFrame)
    return frame
