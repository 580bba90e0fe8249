"""Named places at which a test may end the process, as a power cut would (OP-60)."""

from __future__ import annotations

import os
import signal

PARTS = ("part", "moved", "committed")
"""Of a commit to a table: one file in its place, all of them, the commit itself."""
TABLES = tuple(
    f"{table}.{part}" for table in ("ids", "links", "realizations", "touches", "memberships") for part in PARTS
)
POINTS = (
    "file-copied",
    "dropped",
    "taken",
    "read",
    "judged",
    "applied",
    *TABLES,
    "table-committed",
    "tables-committed",
    "manifest.written",
    "manifest-written",
    "decided",
    "publish.checked",
    "file.written",
    "file.renamed",
    "publish.done",
    *(f"loads.{part}" for part in PARTS),
    "published",
    "file-moved",
    "file-kept",
    "reasons-written",
    "settled",
)
"""In the order in which a run reaches them (design 2.5); those with a dot are inside the store's own steps."""
EXPORT_POINTS = (
    "export.entered",
    "export.evaluated",
    "files.written",
    "files.replaced",
    "files.placed",
    "export.files",
    "export.baseline",
    "export.generated",
    "export.ready",
    "export.sending",
    "export.sent",
    "export.noted",
    "export.all-sent",
    "export.delivered",
)
"""Of export runs, in their order; the evaluation before them has points of the list above."""


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
