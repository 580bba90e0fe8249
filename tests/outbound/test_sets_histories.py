"""Incremental files applied one after another equal the full file, over random histories (40 §5).

The sender is the set algebra and the writer of files; the recipient is a naive one that reads the files.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyroaring import BitMap

from openaudience.outbound.filesets import FileSet
from openaudience.outbound.model import FileFormat
from openaudience.outbound.sets import (
    Baseline,
    Content,
    delivered,
    full_content,
    iter_content,
    transpose,
    write_baseline,
)
from outbound.consumer import Consumer, blocks, received

USERS = 8
SIDS = (3100, 3205, 3350, 9999)


class Sender:
    """Users with IDs and segments; mappings by number, as they are dropped and made again."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.ids: dict[int, set[int]] = {user: {user} for user in range(0, USERS, 2)}
        self.members: dict[int, set[int]] = {sid: set() for sid in SIDS}
        self.mappings: dict[int, int] = {SIDS[0]: 1}
        self.paused: set[int] = set()
        self.made = 1
        self.dropped: list[int] = []

    def happen(self) -> None:
        """One thing happens between two runs."""
        chance = self.chance
        user, sid = chance.randrange(USERS), chance.choice(SIDS)
        what = chance.random()
        if what < 0.55:
            # Nobody joins or leaves a paused segment.
            if sid not in self.paused:
                self.members[sid] ^= {user}
        elif what < 0.75:
            # An ID may be one of two users: its lists are the union over them (OB-53).
            self.ids.setdefault(user, set()).__ixor__({chance.randrange(USERS + 4)})
        elif what < 0.85:
            if self.mappings.pop(sid, None):
                self.dropped.append(sid)
            else:
                self.made += 1
                self.mappings[sid] = self.made
        else:
            self.paused ^= {sid}

    def current(self) -> dict[int, BitMap]:
        """P, by mapping: for each live element the IDs of its members."""
        return {
            mapping: BitMap(number for user in self.members[sid] for number in self.ids.get(user, ()))
            for sid, mapping in self.mappings.items()
            if sid not in self.paused
        }

    def frozen(self) -> list[int]:
        return [mapping for sid, mapping in self.mappings.items() if sid in self.paused]

    def rows(self, content: Content, traits: bool) -> list[bytes]:
        """Default rows; in batches, as a run would render them."""
        table = sorted((sid, mapping) for sid, mapping in self.mappings.items())
        order = [mapping for _, mapping in table]
        lists = (content.traits,) if traits else (content.segments, content.removed)
        found = []
        wanted = [number for number in range(USERS + 4) if number in content.rows]
        self.chance.shuffle(wanted)
        for start in range(0, len(wanted), 5):
            ids = np.array(wanted[start : start + 5], np.uint32)
            columns = [transpose(listed, ids, order) for listed in lists]
            for row, number in enumerate(ids):
                texts = []
                for column in columns:
                    items = column.items[column.offsets[row] : column.offsets[row + 1]]
                    texts.append(b",".join(b"%d" % table[item][0] for item in items))
                found.append(b" ".join([b"id%d" % number, *texts]))
        return sorted(found)


Mode = dict[str, Any]
MODES: Sequence[Mode] = ({}, {"state": True}, {"traits": True}, {"unsegment": False})


def run_history(folder: Path, seed: int) -> int:
    """One history of some runs; how many of them were delivered."""
    chance = random.Random(seed)
    mode = MODES[seed % len(MODES)]
    compression: Any = ("none", "gz", "zip")[seed // 4 % 3]
    format = replace(FileFormat("", ""), compression=compression, max_file_size=chance.choice([None, 20, 60]))
    traits = mode.get("traits", False)
    options = {name: value for name, value in mode.items() if name != "traits"}
    sender, consumer = Sender(chance), Consumer()
    baseline = folder / "none"
    reached = 0
    for number in range(12):
        for _ in range(chance.randrange(8)):
            sender.happen()
        current = sender.current()
        # A mapping made again has another number: what was delivered for the old one is forgotten (OB-33).
        known = Baseline.open(baseline)
        if traits:
            content = iter_content({}, known, current)
            following = delivered(current, known.traits, sender.frozen())
            whole = full_content({}, current)
        else:
            content = iter_content(current, known, **options)
            following = delivered(current, known.segments, sender.frozen())
            whole = full_content(current)
        run = folder / f"run-{number}"
        FileSet(run, format, f"out_{number}_{{}}.sync".format, b"").write(blocks(sender.rows(content, traits), 4))
        full = folder / f"full-{number}"
        FileSet(full, format, f"all_{number}_{{}}.sync".format, b"").write(blocks(sender.rows(whole, traits), 4))
        write_baseline(folder / f"baseline-{number}", {} if traits else following, following if traits else {})
        if chance.random() < 0.25:
            # The run failed: the `.info` never came, so the recipient takes none of it; the baseline stays.
            next(run.glob("*.info")).unlink()
        while sender.dropped:
            consumer.forget(sender.dropped.pop())
        rows = received(run)
        if rows is None:
            continue
        reached += 1
        before = {user: held.copy() for user, held in consumer.held.items()}
        take = consumer.replace if traits or mode.get("state") else consumer.add
        frozen = {pair for pair in consumer.pairs() if pair[1] in sender.paused}
        take(rows)
        if traits or mode.get("state"):
            # Such a row says all that is sent now; what is paused the recipient keeps only in rows of changes.
            for user, sid in frozen:
                consumer.held[user].add(sid)
        baseline = folder / f"baseline-{number}"
        expected = Consumer()
        shown = received(full)
        assert shown is not None
        expected.replace(shown)
        live = {(user, sid) for user, sid in consumer.pairs() if sid not in sender.paused}
        if mode.get("unsegment", True):
            assert live == expected.pairs(), f"history {seed}, run {number}"
            assert {pair for pair in consumer.pairs() if pair[1] in sender.paused} == frozen
            assert {row.split(b" ")[0] for row in rows} == changed(before, consumer), f"history {seed}, run {number}"
        else:
            assert live >= expected.pairs()
            assert all(row.split(b" ")[1] and not row.split(b" ")[2] for row in rows)
    return reached


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        yield


def changed(before: dict[bytes, set[int]], consumer: Consumer) -> set[bytes]:
    """The IDs of which the recipient learned something new."""
    return {user for user, held in consumer.held.items() if held != before.get(user, set())}


@pytest.mark.rule("OB-33", "OB-67", "OB-68", "OB-69", "OB-71", "OB-72", "OB-77")
def test_a_hundred_histories(tmp_path: Path) -> None:
    assert sum(run_history(tmp_path / str(seed), seed) for seed in range(100)) > 600


@pytest.mark.long
@pytest.mark.rule("OB-68")
def test_a_thousand_histories(tmp_path: Path) -> None:
    assert sum(run_history(tmp_path / str(seed), seed) for seed in range(100, 1100)) > 6000
