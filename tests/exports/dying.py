"""A fork server that makes the export runs which are due, in children that a fault point kills.

``python dying.py`` reads one JSON request a line and answers with the exit status of the child.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

KILLED = -9


class Dying:
    """The fork server as its user sees it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )

    def run(self, home: Path, received: Path, now: datetime, fault: str) -> int:
        """Exit status; -9 if the child was killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"home": str(home), "received": str(received), "now": now.isoformat(), "fault": fault}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def scheduled(home: Path, received: Path, now: datetime) -> Sequence[Any]:
    """What a process does that is started at ``now``: what is due, and what another one left unfinished."""
    from exports.receivers import Receivers
    from openaudience.exports.runner import Runner
    from openaudience.home import Home
    from openaudience.runs.site import Site

    with Home.open(home, lambda: now) as opened:
        site = Site(opened, "production")
        runner = Runner(site, connect=Receivers(received).connect, pause=lambda seconds: None)
        runner.enter_due()
        rows = runner.finish([row.run for row in runner.register.unfinished()])
        site.close()
    return rows


def serve() -> None:
    # what the children would import, before the first fork
    import openaudience.exports.runner
    import openaudience.runs.applier  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            nothing = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1):
                os.dup2(nothing, number)
            os.environ["OPENAUDIENCE_FAULT"] = request["fault"]
            status = 70
            try:
                rows = scheduled(
                    Path(request["home"]), Path(request["received"]), datetime.fromisoformat(request["now"])
                )
                failed = [row.error for row in rows if row.state != "delivered"]
                print(*failed, sep="\n", file=sys.stderr)
                status = 1 if failed else 0
            finally:
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(ended), flush=True)


if __name__ == "__main__":
    serve()
