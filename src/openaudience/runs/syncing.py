"""Reading one ID-sync file: from blocks of bytes to asserted pairs and counters (10 §8).

Pairs are (ID, device), or (customer ID, hashed e-mail) for c2c files. Which of them are new, renewed or push
others out is decided when the file is applied, by the mapping store's limits (RT-306).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from openaudience.identity import ecid
from openaudience.inbound.scan import IdRows
from openaudience.ordinals import bitmap_of
from openaudience.runs.dictionary import Dictionaries, OwnDevice
from openaudience.runs.optouts import OptOuts
from openaudience.runs.reading import Tally
from openaudience.runs.rulebook import Ruleset
from openaudience.runs.world import DEVICES, World
from openaudience.vocabulary import REASON_NUMBER, Column, IdKind


@dataclass(frozen=True, slots=True)
class Pairs:
    """Asserted pairs of one namespace in file order: ordinals on both sides, and line numbers.

    ``seq``: places of the rows among those of their load; None where they have the places 0, 1 ….
    """

    customer: NDArray[np.uint32]
    other: NDArray[np.uint32]
    line: NDArray[np.int64]
    seq: NDArray[np.int64] | None = None


@dataclass(slots=True)
class SyncReading:
    """All that an ID-sync file says, ready to be applied; ``pairs`` by (DPID, 0 for devices or the e-mail's DPID)."""

    tally: Tally
    pairs: dict[tuple[int, int], list[Pairs]]
    named: BitMap
    ids: Dictionaries


class SyncReader:
    """Takes the scanned blocks of one ID-sync file in file order."""

    def __init__(
        self,
        *,
        world: World,
        ruleset: Ruleset,
        seeds: tuple[int, int],
        beta: bool,
        own_device: OwnDevice,
        optouts: OptOuts,
    ) -> None:
        self._world = world
        self._optouts = optouts
        self._ruleset = ruleset
        self._columns = ruleset.layout().columns
        self._beta = beta
        self._ids = Dictionaries(world, seeds, own_device)
        self._pairs: dict[tuple[int, int], list[Pairs]] = {}
        self._named = BitMap()
        self.tally = Tally()

    def feed(self, rows: IdRows) -> None:
        """Counts and matches the rows of the next block."""
        self.tally.received += rows.reason.size
        if not rows.reason.size:
            return
        if self._beta:
            rows.reason[rows.reason == 0] = REASON_NUMBER["beta"]
        else:
            good = self._opted_in(rows, np.flatnonzero(rows.reason == 0))
            if good.size and self._ruleset.form == "c2c":
                self._take_emails(rows, good)
            elif good.size:
                self._take_devices(rows, good)
        np.add.at(self.tally.reasons, rows.reason, 1)

    def finish(self) -> SyncReading:
        return SyncReading(self.tally, self._pairs, self._named, self._ids)

    def _ordinals(self, rows: IdRows, some: NDArray[np.int64], place: int) -> NDArray[np.int64]:
        column = self._columns[place]
        return self._ids.get(column.dpid, folded=column.kind is IdKind.COOKIE).intern(
            rows.k1[place][some], rows.k2[place][some], rows.text, rows.start[place][some], rows.length[place][some]
        )

    def _opted_in(self, rows: IdRows, good: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows none of whose own IDs is opted out (IN-77); looked up before any of them gets a number."""
        if not self._optouts:
            return good
        for place, column in enumerate(self._columns):
            if column.kind is IdKind.ECID:
                continue  # has no ordinal of its own: its device is looked at
            dpid = DEVICES if column.kind is IdKind.UUID else column.dpid
            found = self._world.ids(dpid).find(rows.k1[place][good], rows.k2[place][good])
            out = self._optouts.hit(dpid, found)
            rows.reason[good[out]] = REASON_NUMBER["opted_out"]
            good = good[~out]
        return good

    def _take_emails(self, rows: IdRows, good: NDArray[np.int64]) -> None:
        customer = self._ordinals(rows, good, 0)
        email = self._ordinals(rows, good, 1)
        self._add((self._columns[0].dpid, self._columns[1].dpid), customer, email, rows.line[good])

    def _take_devices(self, rows: IdRows, good: NDArray[np.int64]) -> None:
        kind = self._columns[0].kind
        device, source = self._masters(rows, good, self._columns[0])
        lost = np.ones(good.size, np.bool_)
        lost[source] = False
        if lost.any():
            unknown = "unknown_aam_id" if kind is IdKind.ECID else "not_synced"
            rows.reason[good[lost]] = REASON_NUMBER[unknown]
        if self._optouts:
            stay = ~self._optouts.hit(DEVICES, device)
            device, source = device[stay], source[stay]
            found, lost = ~lost, np.ones(good.size, np.bool_)
            lost[source] = False
            rows.reason[good[lost & found]] = REASON_NUMBER["opted_out"]
        if not device.size:
            return
        if kind in (IdKind.UUID, IdKind.DAID):
            self._named |= bitmap_of(np.unique(device).astype(np.uint32))
        matched = good[~lost]
        rank = np.cumsum(~lost) - 1
        by_source: dict[int, list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]] = {}
        for place in range(1, len(self._columns)):
            ordinal = self._ordinals(rows, matched, place)[rank[source]]
            by_source.setdefault(self._columns[place].dpid, []).append((ordinal, device, rows.line[good[source]]))
        for dpid, several in by_source.items():
            ordinal, devices, line = (np.concatenate(arrays) for arrays in zip(*several, strict=True))
            if len(several) > 1:
                # a source named twice: row by row, not column by column
                order = np.argsort(line, kind="stable")
                ordinal, devices, line = ordinal[order], devices[order], line[order]
            self._add((dpid, DEVICES), ordinal, devices, line)

    def _masters(
        self, rows: IdRows, good: NDArray[np.int64], column: Column
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Devices named by column one and, for each, the place in ``good`` of the row that names it."""
        every = np.arange(good.size, dtype=np.int64)
        if column.kind is IdKind.UUID:
            device = self._ids.get(DEVICES).intern(
                rows.k1[0][good], rows.k2[0][good], rows.text, rows.start[0][good], rows.length[0][good]
            )
            return device, every
        if column.kind is IdKind.DAID:
            return self._ids.own_devices(column.dpid, self._ordinals(rows, good, 0), rows.line[good]), every
        if column.kind is IdKind.ECID:
            organisation = self._ruleset.organisations.get(str(column.dpid), "")
            # an opted-out one is found, known or not: that reason stands before "unknown"
            known, out = self._world.known(), self._optouts.of(DEVICES)
            found: list[int] = []
            source: list[int] = []
            for place, row in enumerate(good.tolist()):
                start, length = int(rows.start[0][row]), int(rows.length[0][row])
                text = rows.text[start : start + length].tobytes().decode("ascii")
                uuid = ecid.to_uuid(organisation, text).encode("ascii")
                ordinal = self._ids.get(DEVICES).find_text(uuid)
                if ordinal >= 0 and (ordinal in known or ordinal in out):
                    found.append(ordinal)
                    source.append(place)
            return np.array(found, np.int64), np.array(source, np.int64)
        # chaining: the other IDs of the row are mapped to all devices of its master ID (IN-71)
        master = self._world.ids(column.dpid).find(rows.k1[0][good], rows.k2[0][good])
        there = np.flatnonzero(master >= 0)
        at, devices, _ = self._world.links(column.dpid).devices(master[there].astype(np.uint32))
        source_rows = np.repeat(there, np.diff(at))
        # devices of one row in ascending order, so that a re-run asserts them in the same order
        order = np.lexsort((devices, source_rows))
        return devices[order].astype(np.int64), source_rows[order]

    def _add(
        self, key: tuple[int, int], customer: NDArray[np.int64], other: NDArray[np.int64], line: NDArray[np.int64]
    ) -> None:
        self._pairs.setdefault(key, []).append(
            Pairs(customer.astype(np.uint32), other.astype(np.uint32), line.astype(np.int64))
        )
