"""Named places at which a test may end the process, as a power cut would (OP-60)."""

from __future__ import annotations

import os
import signal

POINTS = (
    "dropped",
    "taken",
    "read",
    "applied",
    "table-committed",
    "tables-committed",
    "manifest-written",
    "decided",
    "published",
    "file-kept",
    "settled",
)
"""In the order in which a run reaches them (design 2.5)."""


def reach(point: str) -> None:
    """Kills the process here if ``OPENAUDIENCE_FAULT`` names this point; otherwise does nothing.

    ``name:3`` means the third time the point is reached.
    """
    wanted = os.environ.get("OPENAUDIENCE_FAULT")
    if not wanted:
        return
    name, _, count = wanted.partition(":")
    if name != point:
        return
    _seen[point] = _seen.get(point, 0) + 1
    if _seen[point] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)


_seen: dict[str, int] = {}
