"""Reading one data file: from blocks of bytes to facts, bitmaps and counters (design 2.5, row 5; design 3).

Blocks are scanned in threads, side by side; everything that depends on order (new IDs, the 200-line limit,
"the last line decides") happens in file order in ``DataReader``. Nothing here becomes visible by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray
from pyroaring import BitMap

from openaudience.identity import ecid
from openaudience.identity.keys import fold, hash_spans
from openaudience.inbound.scan import Rows
from openaudience.ordinals import bitmap_of, ordinals_of
from openaudience.profiles import gathering
from openaudience.runs.dictionary import Dictionaries, OwnDevice, folded_keys
from openaudience.runs.optouts import OptOuts
from openaudience.runs.rulebook import Coder, Ruleset
from openaudience.runs.world import DEVICES, World
from openaudience.store.parts import ROW_GROUP, RowCollection
from openaudience.vocabulary import (
    INVALID_AAM_IDS,
    REASON_NUMBER,
    REASONS,
    IdKind,
)

T = TypeVar("T")
R = TypeVar("R")

USER_LINES = 200
"""Well-formed lines used per user ID and file (IN-26)."""
OVER_LIMIT = 255
"""Pseudo reason of a line beyond ``USER_LINES``."""
MANY_SLOTS, FEW_SLOTS = 1 << 24, 1 << 16
"""Counters of users for the limit; few are enough, and quickly made, for a small file."""
CHUNK_PAIRS = 1_500_000
FIRST_FREE = INVALID_AAM_IDS.start
"""Reasons from here on are not format errors."""
THREADS = 2
AHEAD = 2
"""Blocks that may wait beside those being scanned: what is decoded while new signals are being learned."""


class SuspectUsersError(Exception):
    """Some user ID may have more than 200 lines: read again, counting these exactly."""

    def __init__(self, suspects: NDArray[np.uint8]) -> None:
        super().__init__("a user ID may have more than 200 lines")
        self.suspects = suspects


@njit(nogil=True, cache=True)
def _count_users(counts: Any, shift: Any, k1: Any, reason: Any, first_free: int, most: int) -> bool:
    over = False
    for i in range(k1.size):
        if reason[i] != 0 and reason[i] < first_free:
            continue
        slot = k1[i] >> shift
        if counts[slot] <= most:
            counts[slot] += 1
            if counts[slot] > most:
                over = True
    return over


@njit(nogil=True, cache=True)
def _suspect_rows(counts: Any, shift: Any, k1: Any, reason: Any, first_free: int, most: int) -> Any:
    out = np.empty(k1.size, np.int64)
    n = 0
    for i in range(k1.size):
        if reason[i] != 0 and reason[i] < first_free:
            continue
        if counts[k1[i] >> shift] > most:
            out[n] = i
            n += 1
    return out[:n]


def ordered(scan: Callable[[T], R], blocks: Iterator[T], threads: int = THREADS) -> Iterator[R]:
    """Works on blocks in threads while the next one is made beside them; gives the results in the blocks' order."""
    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as decoder:
        waiting: deque[Future[R]] = deque()
        following = decoder.submit(next, blocks, None)
        try:
            while (block := following.result()) is not None:
                following = decoder.submit(next, blocks, None)
                waiting.append(pool.submit(scan, block))
                if len(waiting) > threads + AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            following.cancel()
            for future in waiting:
                future.cancel()


@dataclass(slots=True)
class Tally:
    """Figures of one file (IN-80), without those that are known only when it is applied."""

    reasons: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    received: int = 0
    signals: int = 0
    unused: int = 0
    failed: int = 0
    users_failed: int = 0
    realized: int = 0

    @property
    def over_limit(self) -> int:
        return int(self.reasons[OVER_LIMIT])

    def by_code(self) -> dict[str, int]:
        """Records by reason code; codes without records are left out."""
        return {REASONS[number]: int(self.reasons[number]) for number in range(1, len(REASONS)) if self.reasons[number]}


class Sampler(Protocol):
    """Collects error samples while a file is read (IN-85)."""

    def see(self, rows: Rows) -> None: ...

    def restart(self) -> None: ...


@dataclass(slots=True)
class Reading:
    """All that a data file says, ready to be applied."""

    tally: Tally
    sids: tuple[int, ...]
    touched: BitMap
    stored: BitMap
    joined: dict[int, BitMap]
    left: dict[int, BitMap]
    early: dict[int, BitMap]
    """By trait, profiles from which the file removes it before it realizes it: taken away where it was held."""
    removed_inside: int
    facts: RowCollection
    """Rows of ``realizations``."""
    namespace: int
    """Whose profiles they are of: 0 devices, else a cross-device DPID."""
    ids: Dictionaries
    mixed_types: bool
    case_keys: list[int]
    case_pairs: list[tuple[str, str]]


class DataReader:
    """Takes the scanned blocks of one data file in file order."""

    def __init__(
        self,
        *,
        world: World,
        ruleset: Ruleset,
        coder: Coder,
        load: int,
        seeds: tuple[int, int],
        staging: Path,
        beta: bool,
        own_device: OwnDevice,
        small: bool,
        optouts: OptOuts,
        suspects: NDArray[np.uint8] | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self._world = world
        self._optouts = optouts
        self._ruleset = ruleset
        self._coder = coder
        self._load = load
        self._seeds = seeds
        self._beta = beta
        self._small = small
        self._sampler = sampler
        self._column = ruleset.layout().columns[0]
        self._odc = ruleset.form == "odc"
        self.namespace = self._column.dpid if self._column.kind is IdKind.CROSS_DEVICE and not self._odc else DEVICES
        self._counts = np.zeros(FEW_SLOTS if small else MANY_SLOTS, np.uint8) if suspects is None else suspects
        # the upper bits of a key choose the slot
        self._shift = np.uint64(65 - self._counts.size.bit_length())
        self._exact: dict[tuple[int, int], int] | None = None if suspects is None else {}
        self._over = False
        self._ids = Dictionaries(world, seeds, own_device)
        self._known: NDArray[np.bool_] | None = None
        self._types: set[int] = set()
        self.tally = Tally()
        self._touched = BitMap()
        self._stored = BitMap()
        self._joined: dict[int, BitMap] = {}
        self._left: dict[int, BitMap] = {}
        self._early: dict[int, BitMap] = {}
        self._removed_inside = 0
        self._facts = RowCollection(staging)
        self._held: list[tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Any]] = []
        self._held_pairs = 0
        self._case_keys: dict[int, None] = {}
        self._case_seen: set[int] = set()
        self._case_pairs: list[tuple[str, str]] = []
        self._stamp = np.full(2 * max(len(coder.sids), 1), -1, np.int64)
        self._leaf_stamp = np.zeros(1, np.int64)
        self._leaf_mark = 0
        # Parquet is written beside the reading: one writer keeps the parts in order
        self._writer = ThreadPoolExecutor(1)
        self._gatherers = (gathering.Gatherer(), gathering.Gatherer())
        self._writing: list[Future[None]] = []

    # ---- one block ------------------------------------------------------------------------------------------

    def feed(self, rows: Rows) -> None:
        """Counts, matches and qualifies the rows of the next block."""
        tally = self.tally
        tally.received += rows.reason.size
        if not rows.reason.size:
            return
        reason = rows.reason
        self._limit(rows)
        if self._over:
            return
        table = self._coder.codes()
        signals, unused, failed, users = gathering.count_signals(
            rows.tok, rows.codes, reason, table.flags, FIRST_FREE, OVER_LIMIT
        )
        tally.signals += signals
        tally.unused += unused
        tally.failed += failed
        tally.users_failed += users
        if rows.id_dpid is not None:
            # a line of the other type counts, whether its ID is good or not (IN-35)
            self._types.update(np.unique(rows.id_dpid[rows.id_dpid > 0]).tolist())
        if self._beta:
            reason[reason == 0] = REASON_NUMBER["beta"]
        else:
            self._match(rows)
        np.add.at(tally.reasons, reason, 1)
        if self._sampler is not None:
            self._sampler.see(rows)

    def _limit(self, rows: Rows) -> None:
        """The 200-line limit (IN-26): a first reading only finds out whom it may concern."""
        if self._exact is None:
            if _count_users(self._counts, self._shift, rows.k1, rows.reason, FIRST_FREE, USER_LINES):
                self._over = True
            return
        exact = self._exact
        some = _suspect_rows(self._counts, self._shift, rows.k1, rows.reason, FIRST_FREE, USER_LINES)
        for row, one, two in zip(some.tolist(), rows.k1[some].tolist(), rows.k2[some].tolist(), strict=True):
            seen = exact.get((one, two), 0) + 1
            exact[one, two] = seen
            if seen > USER_LINES:
                rows.reason[row] = OVER_LIMIT

    # ---- from user IDs to profiles ---------------------------------------------------------------------------

    def _match(self, rows: Rows) -> None:
        good = np.flatnonzero(rows.reason == 0)
        if not good.size:
            return
        if self._odc:
            assert rows.id_dpid is not None
            types = rows.id_dpid[good]
            distinct = np.unique(types)
            # both kinds in one block are taken apart only for the look-up: profiles stay in line order
            profile = np.zeros(good.size, np.int64)
            for dpid in distinct.tolist():
                some = np.flatnonzero(types == dpid)
                profile[some] = self._own_profiles(rows, good[some], int(dpid))
            self._apply_each(rows, good, profile)
            return
        kind = self._column.kind
        dpid = self._column.dpid
        if kind is IdKind.CROSS_DEVICE:
            good = self._opted_in(rows, good, dpid)
            profile = self._ids.get(dpid).intern(
                rows.k1[good], rows.k2[good], rows.text, rows.start[good], rows.length[good]
            )
            self._apply(rows, good, profile, np.arange(good.size, dtype=np.int64))
        elif kind is IdKind.DAID:
            self._apply_each(rows, good, self._own_profiles(rows, good, dpid))
        elif kind is IdKind.COOKIE:
            self._match_cookies(rows, good, dpid)
        else:
            device = self._devices(rows, good, kind, dpid)
            lost = good[device < 0]
            rows.reason[lost[rows.reason[lost] == 0]] = REASON_NUMBER["unknown_aam_id"]
            self._apply_each(rows, good, device)

    def _apply_each(self, rows: Rows, good: NDArray[np.int64], profile: NDArray[np.int64]) -> None:
        """Qualifies rows that reach one profile each; −1: none."""
        if (profile < 0).any():
            there = np.flatnonzero(profile >= 0)
            good, profile = good[there], profile[there]
        self._apply(rows, good, profile, np.arange(good.size, dtype=np.int64))

    def _opted_in(self, rows: Rows, good: NDArray[np.int64], dpid: int) -> NDArray[np.int64]:
        """The rows whose own ID is not opted out (IN-65); such IDs are known, so nothing new gets a number here."""
        if not self._optouts:
            return good
        out = self._optouts.hit(dpid, self._world.ids(dpid).find(rows.k1[good], rows.k2[good]))
        rows.reason[good[out]] = REASON_NUMBER["opted_out"]
        return good[~out]

    def _match_cookies(self, rows: Rows, good: NDArray[np.int64], dpid: int) -> None:
        index = self._world.ids(dpid)
        found = index.find(rows.k1[good], rows.k2[good])
        at, devices, _ = self._world.links(dpid).devices(np.maximum(found, 0).astype(np.uint32))
        reach = np.diff(at)
        reach[found < 0] = 0
        if found.size and (found < 0).any():
            keep = np.repeat(found >= 0, np.diff(at))
            devices = devices[keep]
        if self._optouts:
            reach, devices = self._leave_out(rows, good, self._optouts.hit(dpid, found), reach, devices)
        alone = reach == 0
        if alone.any():
            lost = good[alone]
            lost = lost[rows.reason[lost] == 0]
            rows.reason[lost] = REASON_NUMBER["not_synced"]
            self._case_help(rows, lost, dpid)
        source = np.repeat(np.arange(good.size, dtype=np.int64), reach)
        matched = np.flatnonzero(~alone)
        place = np.full(good.size, -1, np.int64)
        place[matched] = np.arange(matched.size)
        self._apply(rows, good[matched], devices.astype(np.int64), place[source])

    def _leave_out(
        self,
        rows: Rows,
        good: NDArray[np.int64],
        out: NDArray[np.bool_],
        reach: NDArray[np.int64],
        devices: NDArray[np.uint32],
    ) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """How many devices each row still reaches, and which, when nobody opted out is (IN-65)."""
        source = np.repeat(np.arange(good.size, dtype=np.int64), reach)
        stay = ~(out[source] | self._optouts.hit(DEVICES, devices))
        left = np.bincount(source[stay], minlength=good.size)
        rows.reason[good[out | ((reach > 0) & (left == 0))]] = REASON_NUMBER["opted_out"]
        return left, devices[stay]

    def _devices(self, rows: Rows, good: NDArray[np.int64], kind: IdKind, dpid: int) -> NDArray[np.int64]:
        """Known devices of UUIDs or ECIDs, -1 for none (IN-63); of those opted out the reason is noted."""
        if kind is IdKind.UUID:
            k1, k2 = rows.k1[good], rows.k2[good]
        else:
            organisation = self._ruleset.organisations.get(str(dpid), "")
            text = b"".join(
                ecid.to_uuid(organisation, rows.id(row).decode("ascii")).encode("ascii") for row in good.tolist()
            )
            blob = np.frombuffer(text, np.uint8)
            start = np.arange(good.size, dtype=np.int64) * 38
            length = np.full(good.size, 38, np.int64)
            k1 = hash_spans(blob, start, length, self._seeds[0])
            k2 = hash_spans(blob, start, length, self._seeds[1])
        found = self._world.ids(DEVICES).find(k1, k2)
        if self._optouts:
            out = self._optouts.hit(DEVICES, found)
            rows.reason[good[out]] = REASON_NUMBER["opted_out"]
            found[out] = -1
        if self._small:
            few = bitmap_of(np.unique(found[found >= 0]).astype(np.uint32)) & self._world.known()
            return np.where(np.isin(found, ordinals_of(few).astype(np.int64)), found, -1)
        if self._known is None:
            self._known = np.zeros(self._world.count(DEVICES), np.bool_)
            self._known[ordinals_of(self._world.known())] = True
        there = found >= 0
        there[there] = self._known[found[there]]
        return np.where(there, found, -1)

    def _own_profiles(self, rows: Rows, some: NDArray[np.int64], dpid: int) -> NDArray[np.int64]:
        """Devices of DAIDs; an unseen one gets a device of its own (IN-62). −1: it or its device is opted out."""
        left = self._opted_in(rows, some, dpid)
        ordinal = self._ids.get(dpid).intern(
            rows.k1[left], rows.k2[left], rows.text, rows.start[left], rows.length[left]
        )
        device = self._ids.own_devices(dpid, ordinal, rows.line[left])
        if not self._optouts:
            return device
        out = self._optouts.hit(DEVICES, device)
        rows.reason[left[out]] = REASON_NUMBER["opted_out"]
        profile = np.full(some.size, -1, np.int64)
        profile[rows.reason[some] == 0] = device[~out]
        return profile

    def _case_help(self, rows: Rows, lost: NDArray[np.int64], dpid: int) -> None:
        """Unmatched IDs that differ from a synced one by letter case or leading zeros only (IN-64)."""
        index = self._world.ids(dpid)
        if not index.count:
            return
        links = self._world.links(dpid)
        _, first_at = np.unique(rows.k1[lost], return_index=True)
        some = lost[np.sort(first_at)]
        folded = folded_keys(rows.text, rows.start[some], rows.length[some], self._seeds[0])
        at, candidates = index.find_folded(folded)
        for place in np.flatnonzero(np.diff(at)).tolist():
            row = int(some[place])
            key = int(rows.k1[row])
            if key in self._case_keys or key in self._case_seen:
                continue
            sent = rows.id(row)
            for candidate in candidates[at[place] : at[place + 1]].tolist():
                known = index.name(candidate)
                if known == sent or fold(known) != fold(sent) or candidate in self._optouts.of(dpid):
                    continue
                if links.devices(np.array([candidate], np.uint32))[0][1]:
                    self._case_keys[key] = None
                    if len(self._case_pairs) < 10:
                        self._case_pairs.append((sent.decode(), known.decode()))
                    break
            else:
                self._case_seen.add(key)

    # ---- from signals to traits ------------------------------------------------------------------------------

    def _apply(
        self, rows: Rows, matched: NDArray[np.int64], profile: NDArray[np.int64], source: NDArray[np.int64]
    ) -> None:
        """Qualifies ``matched`` rows; ``profile[i]`` is reached by ``matched[source[i]]``."""
        if not matched.size:
            return
        who = profile.astype(np.uint32)
        self._touched |= bitmap_of(np.sort(who))
        coder = self._coder
        table = coder.codes()
        if coder.compound:
            if self._leaf_stamp.size < table.leaf_hash.size:
                self._leaf_stamp = np.zeros(table.leaf_hash.size, np.int64)
            marks = gathering.signatures(
                rows.tok,
                rows.codes,
                matched,
                table.leaf_at,
                table.leaves,
                table.leaf_hash,
                self._leaf_stamp,
                self._leaf_mark,
            )
            self._leaf_mark += matched.size
            combo = coder.combos(marks, rows.tok, rows.codes, matched)
        else:
            combo = np.full(matched.size, -1, np.int32)
        combo_at, combo_traits = coder.combo_table()
        self._stamp.fill(-1)
        verdict, pair_at, pairs, realized = gathering.qualify(
            rows.tok,
            rows.codes,
            matched,
            table.flags,
            table.add_at,
            table.adds,
            table.removes,
            combo,
            combo_at,
            combo_traits,
            self._ruleset.overwrite,
            self._stamp,
            _NO_TRAIT,
        )
        rows.reason[matched] = verdict
        self.tally.realized += realized
        stored = verdict[source] == 0
        if not stored.any():
            return
        who, source = who[stored], source[stored]
        self._stored |= bitmap_of(np.sort(who))
        self._held.append((who, rows.line[matched[source]], source, pair_at, pairs))
        self._held_pairs += int((pair_at[source + 1] - pair_at[source]).sum())
        if self._held_pairs >= CHUNK_PAIRS:
            self._flush()

    def _flush(self, last: bool = False) -> None:
        """Makes facts of the records held so far; ``last``: no more will come."""
        if not self._held:
            return
        profile = np.concatenate([held[0] for held in self._held])
        line = np.concatenate([held[1] for held in self._held])
        shift, at, pairs, sources = 0, [np.zeros(1, np.int64)], [], []
        total = 0
        for held in self._held:
            sources.append(held[2] + shift)
            at.append(held[3][1:] + total)
            pairs.append(held[4])
            shift += held[3].size - 1
            total += held[4].size
        self._held, self._held_pairs = [], 0
        # two sets of memory: one is being written to Parquet while the other is filled
        if len(self._writing) >= 2:
            self._writing[-2].result()
        gatherer = self._gatherers[len(self._writing) % 2]
        chunk = gatherer.gather(
            profile, line, np.concatenate(sources), np.concatenate(at), np.concatenate(pairs), len(self._coder.sids)
        )
        self._removed_inside += chunk.removed
        joined: dict[int, BitMap] = {}
        left: dict[int, BitMap] = {}
        first: dict[int, BitMap] = {}
        for place in np.flatnonzero(np.diff(chunk.ended_at)).tolist():
            trait, gone = divmod(place, 2)
            (left if gone else joined)[trait] = bitmap_of(
                chunk.ended[chunk.ended_at[place] : chunk.ended_at[place + 1]]
            )
        for trait in np.flatnonzero(np.diff(chunk.first_at)).tolist():
            first[trait] = bitmap_of(chunk.first[chunk.first_at[trait] : chunk.first_at[trait + 1]])
        for trait, removed in first.items():
            # what earlier chunks of this file did decides; only where they did nothing, what was there before
            before = self._joined.get(trait, BitMap())
            self._removed_inside += removed.intersection_cardinality(before)
            self._early[trait] = self._early.get(trait, BitMap()) | (removed - before - self._left.get(trait, BitMap()))
        for trait, gone_from in left.items():
            self._left[trait] = self._left.get(trait, BitMap()) | gone_from
            if trait in self._joined:
                self._joined[trait] -= gone_from
        for trait, new in joined.items():
            if trait in self._joined:
                self._joined[trait] |= new
            else:
                self._joined[trait] = new
            if trait in self._left:
                self._left[trait] -= new
        if not chunk.ord.size:
            return
        if last and not self._writing:
            # a small file: starting a thread would take longer than what it has to do
            self._write(chunk)
        else:
            self._writing.append(self._writer.submit(self._write, chunk))

    def _write(self, chunk: gathering.Chunk) -> None:
        n = chunk.ord.size
        if n < ROW_GROUP:
            # such rows wait for those of other files, and the gatherer's memory is used again
            chunk = replace(chunk, ord=chunk.ord.copy(), op=chunk.op.copy(), line=chunk.line.copy())
        sids = np.array(self._coder.sids, np.int32)
        table = pa.table(
            {
                "ord": chunk.ord,
                "sid": sids[chunk.trait],
                "load": np.full(n, self._load, np.int64),
                "op": chunk.op,
                "n": np.ones(n, np.int32),
                "first_at": pa.nulls(n, pa.timestamp("us", tz="UTC")),
                "last_at": pa.nulls(n, pa.timestamp("us", tz="UTC")),
                "line": chunk.line,
            }
        )
        self._facts.add("realizations", self.namespace, table)

    # ---- the end ---------------------------------------------------------------------------------------------

    def finish(self) -> Reading:
        """All that the file says; raises ``SuspectUsersError`` if it has to be read again."""
        try:
            if self._over:
                raise SuspectUsersError(self._counts)
            self._flush(last=True)
            for future in self._writing:
                future.result()
        finally:
            self._writer.shutdown()
        return Reading(
            tally=self.tally,
            sids=self._coder.sids,
            touched=self._touched,
            stored=self._stored,
            joined=self._joined,
            left=self._left,
            early=self._early,
            removed_inside=self._removed_inside,
            facts=self._facts,
            namespace=self.namespace,
            ids=self._ids,
            mixed_types=len(self._types) > 1,
            case_keys=list(self._case_keys),
            case_pairs=self._case_pairs,
        )

    def close(self) -> None:
        """Ends the writer when the reading is given up."""
        self._writer.shutdown(cancel_futures=True)


_NO_TRAIT = np.array(
    [REASON_NUMBER["only_failed_validation"], REASON_NUMBER["removal_ignored"], REASON_NUMBER["no_rule_matches"]],
    np.uint8,
)
