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
    "web": "web:web",
}
"""Module and function of each; imported by the process that runs it alone, for some take a second and much memory."""
GROUPS = {"worker": tuple(WORKERS)}


def enabled(settings: Settings) -> list[str]:
    """The parts that the settings ask for."""
    off = {
        name
        for name, on in (("ftp", settings.ftp.enabled), ("sftp", settings.sftp.enabled), ("mail", settings.mail.host))
        if not on
    }
    return [part for part in PARTS if part not in off]


def chosen(only: Sequence[str], settings: Settings) -> list[str]:
    """The parts to run: those of ``--only``, or all that are enabled. Raises UsageError."""
    if not only:
        return enabled(settings)
    asked: set[str] = set()
    for name in only:
        if name not in PARTS and name not in GROUPS:
            raise UsageError(f"--only {name}: there is no such part; {nearest(name, [*PARTS, *GROUPS])}")
        asked.update(GROUPS.get(name, (name,)))
    if off := asked.difference(enabled(settings)):
        name = min(off)
        key = "mail.host is empty" if name == "mail" else f"{name}.enabled is false"
        raise UsageError(f"--only {name}: it is switched off; {key} in openaudience.toml")
    return [part for part in PARTS if part in asked]


def body(part: str) -> Body:
    """What a part does."""
    module, _, function = PARTS[part].partition(":")
    found: Body = getattr(import_module(f"openaudience.serve.{module}"), function)
    return found
