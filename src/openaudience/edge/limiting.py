"""What is too much: IDs that come too often and data sources that are barred (RT-1601 … RT-1604), and rate limits for
addresses and partners (RT-1605).

Each process of the edge counts for itself. Which IDs are denied is in the edge store, so all of them know, also when
they are started anew.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Hashable

from openaudience.calls.store import CallStore
from openaudience.clock import Clock
from openaudience.config import EdgeSection

BUCKETS = 60
"""Parts of a window that are forgotten one by one."""
MOST_KEYS = 200_000
"""Counts that a window keeps: some 40 MB."""

Name = tuple[int, str]
"""(DPID, ID); DPID 0: a device."""


class Window:
    """How often each key came within the last ``seconds``, to a sixtieth of it, never counting what is older.

    With more than ``most`` (key, part of the window) the oldest part is forgotten early, or what came least of the
    present one: memory is bounded, and a key that comes all the time is noticed still. For one thread at a time.
    """

    def __init__(self, seconds: int, clock: Clock, most: int = MOST_KEYS) -> None:
        self._seconds = seconds
        self._step = seconds / BUCKETS
        self._clock = clock
        self._most = most
        self._buckets: deque[tuple[float, Counter[Hashable]]] = deque()
        self._size = 0
        self._totals: Counter[Hashable] = Counter()

    def add(self, key: Hashable) -> int:
        """Counts a key once more; gives how often it came within the window."""
        now = self._forget_old()
        if not self._buckets or now - self._buckets[-1][0] >= self._step:
            self._buckets.append((now, Counter()))
        newest = self._buckets[-1][1]
        if key not in newest:
            self._make_room()
            newest = self._buckets[-1][1]
            self._size += 1
        newest[key] += 1
        self._totals[key] += 1
        return self._totals[key]

    def wait(self, key: Hashable, calls: int) -> float:
        """Seconds until the key may come again without coming more than ``calls`` times in a window; 0: now."""
        now = self._forget_old()
        over = self._totals.get(key, 0) - calls
        if over < 0:
            return 0.0
        for begin, counts in self._buckets:
            over -= counts.get(key, 0)
            if over < 0:
                return begin + self._seconds - now
        return 0.0

    def _forget_old(self) -> float:
        now = self._clock().timestamp()
        while self._buckets and now - self._buckets[0][0] >= self._seconds:
            self._drop_oldest()
        if self._buckets and now < self._buckets[-1][0]:
            # the clock was set back: what lies in the future would count for ever
            self._buckets.clear()
            self._totals.clear()
            self._size = 0
        return now

    def _make_room(self) -> None:
        while self._size >= self._most and len(self._buckets) > 1:
            self._drop_oldest()
        if self._size >= self._most:
            begin, counts = self._buckets.pop()
            least = min(counts.values())
            kept = Counter({key: count for key, count in counts.items() if count > least})
            self._buckets.append((begin, kept))
            self._totals = Counter(kept)
            self._size = len(kept)

    def _drop_oldest(self) -> None:
        counts = self._buckets.popleft()[1]
        self._size -= len(counts)
        for key, count in counts.items():
            if self._totals[key] > count:
                self._totals[key] -= count
            else:
                del self._totals[key]


class DenyList:
    """IDs that are refused because they came too often, and data sources that are barred by ``edge.deny_sources``.

    The edge store is asked and written by ``flush`` alone, so that no call waits for it. Safe to share between threads.
    """

    def __init__(self, settings: EdgeSection, store: CallStore, clock: Clock) -> None:
        """Reads the list of the store. Raises StoreUnavailable."""
        self._calls = settings.deny_calls
        self._store = store
        self._clock = clock
        self._window = Window(settings.deny_seconds, clock)
        self._sources = frozenset(settings.deny_sources)
        self._lock = threading.Lock()
        self._denied = {(one.dpid, one.id) for one in store.denials()}
        self._new: set[Name] = set()
        """Denied by this process, and not on the list of the store yet."""
        self._refused: dict[Name, tuple[int, int]] = {}
        """Since when (UTC seconds) how many calls were refused that the store does not know of yet."""

    def source(self, dpid: int, code: str | None) -> bool:
        """Whether a data source is barred, by its DPID or integration code (RT-1603)."""
        return str(dpid) in self._sources or (code is not None and code in self._sources)

    def seen(self, dpid: int, id: str) -> bool:
        """Counts a call with an ID (``dpid`` 0: a device); whether it is denied, from this very call on (RT-1601)."""
        name = dpid, id
        with self._lock:
            if self._calls and self._window.add(name) > self._calls and name not in self._denied:
                self._denied.add(name)
                self._new.add(name)
            if name not in self._denied:
                return False
            self._refuse(name, int(self._clock().timestamp()), 1)
            return True

    def refused(self, dpid: int, id: str) -> None:
        """Counts a call that was refused as the store knew, but not yet this list, that the ID is denied."""
        with self._lock:
            self._denied.add((dpid, id))
            self._refuse((dpid, id), int(self._clock().timestamp()), 1)

    def flush(self) -> None:
        """Puts the newly denied on the list of the store, counts refused calls there, and reads the list again.

        To be called every few seconds and at the end, best in a thread of its own. Raises StoreUnavailable; what could
        not be written then is written the next time.
        """
        with self._lock:
            waiting, self._refused = self._refused, {}
            new = set(self._new)
        try:
            known = {(one.dpid, one.id) for one in self._store.denials()}
            for name in sorted(waiting):
                # an operator may have taken it off the list since: counting would put it on again
                if name in known or name in new:
                    self._store.deny(*name, *waiting[name])
                    known.add(name)
                del waiting[name]
        finally:
            with self._lock:
                for name, (at, count) in waiting.items():
                    self._refuse(name, at, count)
                self._new -= new - waiting.keys()
        with self._lock:
            self._denied = known | self._new

    def _refuse(self, name: Name, at: int, count: int) -> None:
        before = self._refused.get(name, (at, 0))
        self._refused[name] = min(at, before[0]), count + before[1]


class RateLimit:
    """How many calls a client address and a partner may make (RT-1605); 0 in the settings: any number."""

    def __init__(self, settings: EdgeSection, clock: Clock) -> None:
        self._per_address = settings.calls_per_address
        self._per_partner = settings.calls_per_partner
        self._addresses = Window(settings.rate_seconds, clock)
        self._partners = Window(settings.rate_seconds, clock)

    def wait(self, address: str, pid: int | None) -> int | None:
        """Takes a call, or says in how many seconds (``Retry-After``) to try again. Refused calls do not count."""
        seconds = 0.0
        if self._per_address:
            seconds = self._addresses.wait(address, self._per_address)
        if self._per_partner and pid is not None:
            seconds = max(seconds, self._partners.wait(pid, self._per_partner))
        if seconds > 0:
            return math.ceil(seconds)
        if self._per_address:
            self._addresses.add(address)
        if self._per_partner and pid is not None:
            self._partners.add(pid)
        return None
