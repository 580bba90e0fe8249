"""Error samples of a file while it is read (IN-85, UI-61 … UI-69)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from openaudience.catalog.ledger import SampleRow
from openaudience.identity import formats
from openaudience.identity.keys import hash_spans
from openaudience.inbound.scan import Rows
from openaudience.vocabulary import (
    FORMAT_ERRORS,
    INVALID_AAM_IDS,
    INVALID_DEVICE_IDS,
    NO_MATCHES,
    NO_TRAITS,
    REASON_NUMBER,
    REASONS,
)

MOST_GROUPS = 10_000
SHOWN = 10
LONGEST = 200
TYPES = (FORMAT_ERRORS, INVALID_AAM_IDS, INVALID_DEVICE_IDS, NO_MATCHES, NO_TRAITS)
KEEP_DAYS = 30


SLOTS = 1 << 15
MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(slots=True)
class _Group:
    """The first record of a group; how many there are stands at ``slot``."""

    slot: int
    reason: int
    line: int
    column: int
    shown: str


class _Groups:
    """The failing records of one type, by reason and offending content."""

    def __init__(self) -> None:
        self.keys = np.zeros(SLOTS, np.uint64)
        self.counts = np.zeros(SLOTS, np.int64)
        self.firsts: list[_Group] = []

    def best(self) -> list[_Group]:
        ordered = sorted(self.firsts, key=lambda group: (-int(self.counts[group.slot]), group.line))
        return ordered[:SHOWN]


@njit(nogil=True, cache=True)
def _count(wanted: Any, keys: Any, counts: Any, room: int) -> Any:
    """Counts keys in an open table; gives (row, slot) of those that are new. ``room``: how many may be."""
    new = np.empty((min(room, wanted.size), 2), np.int64)
    n = 0
    for i in range(wanted.size):
        key = wanted[i]
        # signed, or numba makes a float of it
        slot = np.int64(key & np.uint64(keys.size - 1))
        while keys[slot] != 0 and keys[slot] != key:
            slot = (slot + 1) & (keys.size - 1)
        if keys[slot] == 0:
            if n == room:
                continue
            keys[slot] = key
            new[n, 0], new[n, 1] = i, slot
            n += 1
        counts[slot] += 1
    return new[:n]


class ErrorSampler:
    """Groups failing records by reason and offending content; keeps at most 10,000 groups a type (UI-69).

    What offends is the ID where it alone decides, else the whole line (UI-64).
    """

    def __init__(self, environment: str, data_source: int) -> None:
        self._environment = environment
        self._data_source = data_source
        self.restart()

    def restart(self) -> None:
        """Forgets what was seen: the file is read anew."""
        self._groups = [_Groups() for _ in TYPES]

    def see(self, rows: Rows) -> None:
        """Takes the failing rows of a block, whose reasons are final."""
        for place, members in enumerate(TYPES):
            failing = np.flatnonzero((rows.reason >= members.start) & (rows.reason < members.stop))
            if not failing.size:
                continue
            groups = self._groups[place]
            if place in (0, 4):
                begin = rows.begin[failing]
                keys = hash_spans(rows.text, begin, np.minimum(rows.stop[failing] - begin, LONGEST), 0)
            else:
                keys = rows.k1[failing]
            keys = np.maximum(keys ^ (rows.reason[failing] * MIX), np.uint64(1))
            new = _count(keys, groups.keys, groups.counts, MOST_GROUPS - len(groups.firsts))
            for at, slot in new.tolist():
                row = int(failing[at])
                reason = int(rows.reason[row])
                shown = kept(rows.raw(row)[:LONGEST], REASONS[reason])
                groups.firsts.append(_Group(slot, reason, int(rows.line[row]), int(rows.column[row]), shown))

    def rows(self, file: int, now: int = 0) -> list[SampleRow]:
        """The ten most frequent groups of each type, ready for the ledger."""
        return [
            SampleRow(
                environment=self._environment,
                file=file,
                data_source=self._data_source,
                reason=REASONS[group.reason],
                count=int(groups.counts[group.slot]),
                line=group.line,
                column=group.column,
                shown=group.shown,
                until=now + KEEP_DAYS * 86_400,
            )
            for groups in self._groups
            for group in groups.best()
        ]


_PRIVATE = re.compile(r'((?:^|[\t,]) *["“”]?[- ]*p_[^=,]*=)((?: *["“”][^"“”]*["“”])?[^,]*)', re.IGNORECASE)


def kept(content: bytes, reason: str) -> str:
    """A failing line as it may be kept (UI-68): what the guard refuses is masked for everybody (RT-1920), values of
    ``p_`` keys are left out (RT-1010).
    """
    text = content.decode("utf-8", "replace")
    ident, tab, rest = text.partition("\t")
    if reason in ("pii", "pii_value") or formats.pii(ident.strip()):
        return formats.mask(ident.strip()) + (tab + "…" if rest else "")
    return _PRIVATE.sub(r"\1…", text)


@dataclass(frozen=True, slots=True)
class Sight:
    """A sample as people see it. ``offending``: id, signals or line."""

    shown: str
    id: str
    signals: str
    offending: str


_OF_ID = {"empty_id", "id_space", "id_control", "id_too_long", "colon_in_id", "pii", "hash_form"}
_OF_SIGNALS = {"empty_signals", "unclosed_quote", "pii_value"}
_ITEM = re.compile(r'(?:["“”][^"“”]*["“”]|[^,"“”])+|[^,]+')
_WORD = re.compile(r"[^\s,;|]+")
_NAMES_TRAIT = re.compile(r"\s*d_(?:un)?sid\s*=", re.IGNORECASE)


def sight(kept: str, reason: str) -> Sight:
    """A kept line with its ID and its values masked to the first 4 and last 2 characters (UI-64, UI-68).

    A line that does not fall into ID and signals is masked word by word.
    """
    number = REASON_NUMBER[reason]
    parts = kept.split("\t")
    if len(parts) == 1 and number not in FORMAT_ERRORS:
        parts.append("")
    if len(parts) == 1 or reason in ("two_tabs", "id_type"):
        return Sight(_WORD.sub(lambda word: _signal(word[0]), kept), "", "", "line")
    # of an ODC line the first part names the type of the ID
    ident, signals = veiled(parts[-2]), _ITEM.sub(lambda item: _signal(item[0]), parts[-1])
    if reason in _OF_ID or (number not in FORMAT_ERRORS and number not in NO_TRAITS):
        return Sight(ident, ident, signals, "id")
    offending = "signals" if reason in _OF_SIGNALS or number in NO_TRAITS else "line"
    return Sight("\t".join([*parts[:-2], ident, signals]), ident, signals, offending)


def _signal(text: str) -> str:
    """A signal with its value masked. Numbers of traits stay: they say nothing of anybody."""
    if _NAMES_TRAIT.match(text):
        return text
    name, equals, value = text.partition("=") if "=" in text else ("", "", text)
    bare = value.strip(' "“”')
    return name + equals + (value.replace(bare, veiled(bare)) if bare else value)


def veiled(text: str) -> str:
    """The first 4 and last 2 characters; what has no more is shown as it is, what is personal is not (UI-68)."""
    if "***" in text or len(text) <= 6:
        return text
    return formats.mask(text) if formats.pii(text) else f"{text[:4]}***{text[-2:]}"
