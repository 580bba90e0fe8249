"""Runs a program and measures it: wall time, and peak memory of its own. And a clock for work in this process.

Memory of its own is anonymous memory: pages of mapped files are page cache, which the system takes back when it
needs it (OP-51). On Linux it is read while the program runs, children included; elsewhere the peak of the
resident set is given, which counts mapped files too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from openaudience.errors import SystemFailure

_INTERVAL = 0.05


@dataclass(frozen=True, slots=True)
class Measured:
    """``seconds`` of wall time, ``peak`` bytes of memory, and what the program printed."""

    seconds: float
    peak: int
    output: str


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds on the clock, and of processors."""

    seconds: float
    processor: float


class Clock:
    """Measures from its making on, child processes that ended included."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._used = _used()

    def taken(self) -> Taken:
        return Taken(time.perf_counter() - self._started, _used() - self._used)


def _used() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def run(command: Sequence[str], environ: Mapping[str, str] | None = None) -> Measured:
    """Run ``command`` to its end; SystemFailure with its complaint if it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=None if environ is None else dict(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watch = _Watch(process.pid)
    watch.start()
    output, complaint = process.communicate()
    seconds = time.perf_counter() - started
    watch.end()
    if process.returncode != 0:
        raise SystemFailure(f"{' '.join(command[:4])} … ended with status {process.returncode}: {complaint[-2000:]}")
    return Measured(seconds, watch.peak, output)


class _Watch(threading.Thread):
    """Reads the memory of a process and its descendants until told to end."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._pid = pid
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(_INTERVAL):
            self.peak = max(self.peak, sum(_anonymous(pid) for pid in family(self._pid)))

    def end(self) -> None:
        self._over.set()
        self.join()
        if self.peak == 0:
            import resource

            unit = 1 if sys.platform == "darwin" else 1024
            self.peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit


def _anonymous(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def family(root: int) -> list[int]:
    """The process and its descendants."""
    children: dict[int, list[int]] = {}
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return [root]
    for name in names:
        try:
            # The name of the program stands in parentheses and may hold anything; the parent is the second after it.
            parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        children.setdefault(parent, []).append(int(name))
    family = [root]
    for pid in family:
        family.extend(children.get(pid, ()))
    return family


def processor(pid: int) -> float:
    """Seconds of processor that a process used so far, 0 where the system does not tell."""
    try:
        # The name of the program stands in parentheses and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
