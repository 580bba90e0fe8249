"""The one clock. Nothing else in the package reads the time (QL-001)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Gives the present instant, aware, in UTC."""


def system_clock() -> datetime:
    return datetime.now(UTC)


def iso(instant: datetime) -> str:
    """``2026-03-02T11:04:09Z``: instants in JSON of receipts and of the command line (UI-02)."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def plain(instant: datetime) -> str:
    """``2026-03-02 11:04:09``: instants on screen and in text receipts (UI-02)."""
    return instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
