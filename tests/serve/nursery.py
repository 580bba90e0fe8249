"""Parts of ``serve`` that are up at once: a process that has everything imported forks one for each.

``python nursery.py HOME`` reads a line "part log-file" at a time and answers with the number of the new process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from openaudience.cli import main
from openaudience.serve.parts import PARTS, body
from openaudience.serve.signals import SUPERVISED


class Nursery:
    """The forking process as its user sees it. When it ends, the parts do, as with a supervisor."""

    def __init__(self, home: Path, settings: Mapping[str, str]) -> None:
        self._log = home.parent / "parts.log"
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **settings},
        )

    def start(self, part: str) -> int:
        """Starts ``serve --only PART``; gives its process number."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{part} {self._log}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def work(home: str) -> None:
    for part in PARTS:
        body(part)
    # Nobody waits for the children: the system clears them away
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    parent, mine = os.pipe()
    for line in sys.stdin:
        part, log = line.split(maxsplit=1)
        child = os.fork()
        if child == 0:
            os.close(mine)
            os.dup2(parent, 0)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(log.strip(), os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
            os.environ[SUPERVISED] = "1"
            status = 70
            try:
                status = main(["--home", home, "serve", "--only", part])
            finally:
                os._exit(status)
        print(child, flush=True)


if __name__ == "__main__":
    work(sys.argv[1])
