"""Parts: Parquet files of one table and namespace, written to a staging folder and not yet in the table."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from openaudience.errors import StoreUnavailable, SystemFailure
from openaudience.store.files import make_folder, storing, sync_file
from openaudience.store.schemas import NULLABLE, part_schema, partitioned, sort_column

ROW_GROUP = 131_072
MOST_ROWS = 64 << 20
"""Rows of one file; a writer with more starts another."""
MOST_WAITING = 1 << 20
"""Rows that wait for others of their table and namespace before they are written."""
STATISTICS = ("ord", "load")
"""Columns whose least and greatest values go into the Delta log."""


@dataclass(frozen=True, slots=True)
class Part:
    """A finished Parquet file: ``stats`` holds (least, greatest) of ``ord`` and ``load``; ``size`` in bytes."""

    table: str
    dpid: int | None
    path: Path
    rows: int
    size: int
    stats: dict[str, tuple[int, int]] = field(default_factory=dict)


class PartWriter:
    """Writes the rows of one run for one table and namespace, given in order of ``ord``, piece by piece.

    A context manager. ``parts`` is complete after the block; it is empty when no row came. ``dpid`` is ``None`` for
    ``loads``. Pieces have the columns of ``part_schema(table)`` in any order. Raises ``StoreUnavailable`` when the disk
    refuses and ``SystemFailure`` for pieces that do not fit the table.
    """

    def __init__(self, table: str, dpid: int | None, folder: Path, most_rows: int = MOST_ROWS) -> None:
        if (dpid is None) == partitioned(table):
            raise SystemFailure(f"table {table} is {'' if dpid is None else 'not '}partitioned by dpid; got {dpid}")
        self.parts: list[Part] = []
        self._table = table
        self._dpid = dpid
        self._folder = folder
        self._most_rows = most_rows
        self._schema = part_schema(table)
        self._nullable = NULLABLE.get(table, frozenset())
        self._sorted_by = sort_column(table)
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._last: int | None = None
        self._writer: pq.ParquetWriter | None = None
        self._path = folder
        self._rows = 0
        self._stats: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
                self._close()
        finally:
            if self._writer is not None:
                # Unfinished: what went wrong is already being raised, and the staging folder goes as a whole.
                with suppress(OSError):
                    self._writer.close()

    def append(self, rows: pa.Table) -> None:
        """Adds rows; within the piece they may come in any order, between pieces they may not go back."""
        if not rows.num_rows:
            return
        rows = self._checked(rows)
        keys = rows.column(self._sorted_by).to_numpy()
        if not bool(np.all(keys[1:] >= keys[:-1])):
            order = np.argsort(keys, kind="stable")
            rows, keys = rows.take(pa.array(order)), keys[order]
        if self._last is not None and keys[0] < self._last:
            raise SystemFailure(
                f"rows of {self._table} for {self._dpid} came out of order: {keys[0]} after {self._last}"
            )
        self._last = int(keys[-1])
        while rows.num_rows:
            piece = rows.slice(0, self._most_rows - self._rows - self._waiting_rows)
            rows = rows.slice(piece.num_rows)
            self._waiting.append(piece)
            self._waiting_rows += piece.num_rows
            if self._waiting_rows >= ROW_GROUP:
                self._flush()
            if self._rows + self._waiting_rows >= self._most_rows:
                self._flush()
                self._close()

    def _checked(self, rows: pa.Table) -> pa.Table:
        missing = set(self._schema.names) ^ set(rows.column_names)
        if missing:
            raise SystemFailure(f"rows of {self._table} lack or have too much: {', '.join(sorted(missing))}")
        try:
            rows = rows.select(self._schema.names).cast(self._schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise SystemFailure(f"rows of {self._table} do not fit its columns: {error}") from error
        for name in self._schema.names:
            if name not in self._nullable and rows.column(name).null_count:
                raise SystemFailure(f"rows of {self._table} have nothing in {name}")
        return rows

    def _flush(self) -> None:
        if not self._waiting_rows:
            return
        with storing(self._folder):
            if self._writer is None:
                make_folder(self._folder)
                name = f"{self._table}-{'all' if self._dpid is None else self._dpid}-{uuid.uuid4().hex}.parquet"
                self._path = self._folder / name
                self._writer = self._opened()
            rows = pa.concat_tables(self._waiting)
            self._writer.write_table(rows, row_group_size=ROW_GROUP)
        for name in STATISTICS:
            if name in self._schema.names:
                bounds = pc.min_max(rows.column(name)).as_py()
                low, high = self._stats.get(name, (bounds["min"], bounds["max"]))
                self._stats[name] = (min(low, bounds["min"]), max(high, bounds["max"]))
        self._rows += rows.num_rows
        self._waiting = []
        self._waiting_rows = 0

    def _opened(self) -> pq.ParquetWriter:
        # Sorted ordinals pack best as differences; texts of IDs and line numbers hardly ever repeat.
        plain = {self._sorted_by, "id", "line", "k1", "k2"}
        packed = {name: "DELTA_BINARY_PACKED" for name in ("ord", "line") if name in self._schema.names}
        return pq.ParquetWriter(
            self._path,
            self._schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=[name for name in self._schema.names if name not in plain],
            column_encoding=packed or None,
            # those that readers look for; the others cost more than they save
            write_statistics=[name for name in ("ord", "load", "sid", self._sorted_by) if name in self._schema.names],
            store_schema=False,
        )

    def _close(self) -> None:
        if self._writer is None:
            return
        with storing(self._path):
            self._writer.close()
            sync_file(self._path)
            size = os.path.getsize(self._path)
        self.parts.append(Part(self._table, self._dpid, self._path, self._rows, size, self._stats))
        self._writer = None
        self._rows = 0
        self._stats = {}


def write_parts(table: str, dpid: int | None, rows: pa.Table, folder: Path) -> list[Part]:
    """All rows of one table and namespace as durable files in ``folder``; none for no rows (design 2.3)."""
    with PartWriter(table, dpid, folder) as writer:
        writer.append(rows)
    return writer.parts


class RowCollection:
    """Rows of one run that come in small pieces: those of a table and namespace become one Parquet file.

    ``parts`` holds what is written already. Rows bear their load; stay in the order given where ``ord`` is equal.
    """

    def __init__(self, folder: Path) -> None:
        self.parts: list[Part] = []
        self._folder = folder
        self._waiting: dict[tuple[str, int | None], list[pa.Table]] = {}
        self._rows: dict[tuple[str, int | None], int] = {}

    def add(self, table: str, dpid: int | None, rows: pa.Table) -> None:
        """Takes rows; many at once are written at once. Raises ``StoreUnavailable``."""
        if rows.num_rows >= ROW_GROUP:
            self.parts.extend(write_parts(table, dpid, rows, self._folder))
        elif rows.num_rows:
            self._wait((table, dpid), [rows], rows.num_rows)

    def absorb(self, other: RowCollection) -> None:
        """Takes over all that another collection holds; that one is empty afterwards."""
        self.parts.extend(other.parts)
        for key, pieces in other._waiting.items():
            self._wait(key, pieces, other._rows[key])
        other.parts, other._waiting, other._rows = [], {}, {}

    def finish(self) -> list[Part]:
        """All parts; nothing waits any more."""
        for key in sorted(self._waiting, key=str):
            self._write(key)
        return self.parts

    def _wait(self, key: tuple[str, int | None], pieces: list[pa.Table], rows: int) -> None:
        self._waiting.setdefault(key, []).extend(pieces)
        self._rows[key] = self._rows.get(key, 0) + rows
        if self._rows[key] >= MOST_WAITING:
            self._write(key)

    def _write(self, key: tuple[str, int | None]) -> None:
        pieces = self._waiting.pop(key)
        del self._rows[key]
        self.parts.extend(write_parts(*key, pa.concat_tables(pieces), self._folder))


def remove_parts(parts: Sequence[Part]) -> None:
    """Deletes parts that will not be committed."""
    for part in parts:
        try:
            part.path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreUnavailable(f"{part.path} could not be deleted: {error.strerror}") from error
