"""Logs: one JSON object a line on standard error (OP-41).

No personal data: no IDs, no content of files, no passwords. Names of files, partners and logins are fine. An error that
is not the platform's own is logged by its type and place only, for its text may hold a piece of a file.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog
from structlog.typing import FilteringBoundLogger

from openaudience.clock import system_clock
from openaudience.errors import OpenAudienceError

FRAMES = 12
"""How many of the innermost places of an error are logged."""
_STDERR = 2

Log = FilteringBoundLogger


class _Lines:
    """Writes each line with one call, so that lines of several processes do not mix. Never fails."""

    def msg(self, message: str) -> None:
        # whoever reads the log may be gone; that is no reason to stop taking files
        with suppress(OSError):
            os.write(_STDERR, f"{message}\n".encode())

    debug = info = warning = error = critical = msg


class _Foreign(logging.Handler):
    """What libraries log, as lines of ours."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"library": record.name, "message": record.getMessage()}
        if record.exc_info is not None and record.exc_info[1] is not None:
            fields |= described(record.exc_info[1])
        self._log.log(record.levelno, "library", **fields)


def configure(**fields: Any) -> Log:
    """Makes all that this process logs JSON lines, and gives its logger; ``fields`` stand in each line of it."""

    def stamped(_logger: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        time = system_clock().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {"time": time, "level": level, "event": event.pop("event"), **fields, **event}

    structlog.configure(
        processors=[stamped, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: _Lines(),
        cache_logger_on_first_use=True,
    )
    log: Log = structlog.get_logger()
    logging.basicConfig(handlers=[_Foreign(log)], level=logging.WARNING, force=True)
    logging.captureWarnings(True)

    def unhandled(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
        log.error("failed", **described(error))

    def unhandled_in_thread(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_value is not None:
            log.error("thread-failed", **described(failed.exc_value))

    sys.excepthook = unhandled
    threading.excepthook = unhandled_in_thread
    return log


def described(error: BaseException) -> dict[str, Any]:
    """What may be logged of an error: the sentence of our own ones, of others the type and where they arose."""
    if isinstance(error, OpenAudienceError):
        return {"error": type(error).__name__, "why": str(error)}
    if isinstance(error, OSError):
        return {"error": type(error).__name__, "why": error.strerror or "", "at": _places(error)}
    return {"error": type(error).__name__, "at": _places(error)}


def _places(error: BaseException) -> list[str]:
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    return [f"{Path(*Path(frame.filename).parts[-2:])}:{frame.lineno} {frame.name}" for frame in frames]
