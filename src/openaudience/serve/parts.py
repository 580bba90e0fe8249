"""The parts of ``serve``, which of them an installation runs, and what each does."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from openaudience.config import Settings, nearest
from openaudience.errors import UsageError
from openaudience.serve.life import Body

WORKERS = {"worker-production": "production", "worker-beta": "beta"}
PARTS = {
    "ftp": "doors:ftp",
    "sftp": "doors:sftp",
    "intake": "taking:intake",
    **dict.fromkeys(WORKERS, "worker:worker"),
    "mail": "post:mail",
    "export": "exporting:exports",
    "edge": "edge:edge",
    "web": "web:web",
}
"""Module and function of each; imported by the process that runs it alone, for some take a second and much memory."""
GROUPS = {"worker": tuple(WORKERS)}
EDGE = "edge"
"""Part that may run in several processes: ``edge``, ``edge-2``, ``edge-3`` …"""


def enabled(settings: Settings) -> list[str]:
    """The parts that the settings ask for."""
    off = {
        name
        for name, on in (
            ("ftp", settings.ftp.enabled),
            ("sftp", settings.sftp.enabled),
            ("mail", settings.mail.host),
            (EDGE, settings.edge.enabled),
        )
        if not on
    }
    found = [part for part in PARTS if part not in off]
    if EDGE in found:
        at = found.index(EDGE) + 1
        found[at:at] = [f"{EDGE}-{number}" for number in range(2, settings.edge.workers + 1)]
    return found


def chosen(only: Sequence[str], settings: Settings) -> list[str]:
    """The parts to run: those of ``--only``, or all that are enabled. Raises UsageError."""
    if not only:
        return enabled(settings)
    asked: set[str] = set()
    for name in only:
        if name not in [*PARTS, *GROUPS, *enabled(settings)]:
            raise UsageError(f"--only {name}: there is no such part; {nearest(name, [*PARTS, *GROUPS])}")
        asked.update(GROUPS.get(name, (name,)))
    if EDGE in asked:
        asked.update(part for part in enabled(settings) if part.startswith(f"{EDGE}-"))
    if off := asked.difference(enabled(settings)):
        name = min(off)
        key = "mail.host is empty" if name == "mail" else f"{name}.enabled is false"
        raise UsageError(f"--only {name}: it is switched off; {key} in openaudience.toml")
    return [part for part in enabled(settings) if part in asked]


def body(part: str) -> Body:
    """What a part does."""
    module, _, function = PARTS[EDGE if part.startswith(f"{EDGE}-") else part].partition(":")
    found: Body = getattr(import_module(f"openaudience.serve.{module}"), function)
    return found
