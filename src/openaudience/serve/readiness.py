"""Whether the installation can do its work now: disk, catalog, and every part that should run (OP-41, OP-44)."""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import text

from openaudience.catalog.migrate import ENVIRONMENTS
from openaudience.errors import OpenAudienceError
from openaudience.exports.history import failing
from openaudience.home import Home
from openaudience.runs.post import summary
from openaudience.runs.site import Site
from openaudience.serve.parts import enabled
from openaudience.serve.state import FOLDER, State, states
from openaudience.store.files import TEMPORARY

LEAST_FREE_BYTES = 256 << 20
"""With less free space a file of ordinary size could not be taken."""


@dataclass(frozen=True, slots=True)
class Check:
    """``why``: what is wrong, None if nothing is."""

    name: str
    why: str | None = None


def checks(home: Home) -> list[Check]:
    """All checks, in a fixed order: disk, catalog, then each part that the settings ask for."""
    living = states(home.path)
    return [_disk(home), _catalog(home), *(_part(part, living) for part in enabled(home.settings))]


def mails(home: Home) -> dict[str, dict[str, int]]:
    """How many receipts wait to be mailed and were given up, by environment; no reason not to be ready (UI-33)."""
    found = {}
    for name in ENVIRONMENTS:
        with suppress(OpenAudienceError):
            figures = summary(Site(home, name))
            found[name] = {state: figures[state] for state in ("queued", "failed")}
    return found


def failing_exports(home: Home) -> dict[str, str]:
    """Destinations whose last two runs failed, with why; no reason not to be ready: the others are served."""
    with suppress(OpenAudienceError), home.catalog().reading() as session:
        return {str(destination): why for destination, why in failing(session, "production").items()}
    return {}


def free_bytes(home: Home) -> int:
    """What is left on the disk of the home."""
    return shutil.disk_usage(home.path).free


def _disk(home: Home) -> Check:
    probe = home.path / FOLDER / f".probe.{uuid.uuid4().hex}{TEMPORARY}"
    try:
        try:
            with probe.open("wb") as file:
                file.write(b"\0" * 4096)
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
        free = free_bytes(home)
    except OSError as error:
        return Check("disk", f"the home cannot be written: {error.strerror}")
    if free < LEAST_FREE_BYTES:
        return Check("disk", f"only {free >> 20} MiB are free on the disk of the home; make room")
    return Check("disk")


def _catalog(home: Home) -> Check:
    try:
        with home.catalog().reading() as session:
            session.execute(text("SELECT 1 FROM counters"))
    except OpenAudienceError as error:
        return Check("catalog", str(error))
    return Check("catalog")


def _part(part: str, living: list[State]) -> Check:
    """Good if one process of the part is: others may be waiting for its lease."""
    mine = [state for state in living if state.part == part]
    if not mine:
        return Check(part, "it does not run")
    if any(state.state == "ready" and not state.stale for state in mine):
        return Check(part)
    newest = max(mine, key=lambda state: state.beat)
    if newest.stale:
        return Check(part, "it has not been heard of for a while: it hangs, or its state cannot be written")
    return Check(part, "; ".join(f"{what}: {why}" for what, why in newest.why.items()) or "it is starting")
