"""The same work on many keys, shared out among forked processes."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar, cast

from openaudience.errors import TransientError

T = TypeVar("T")
Work = Callable[[Sequence[int]], Iterable[T]]
AT_ONCE = 256
"""Results that travel together."""


def side_by_side(keys: Sequence[int], processes: int, work: Work[T]) -> Iterator[T]:
    """What ``work`` gives for all keys, in any order.

    A process has the memory of this one as it was, but none of its threads: ``work`` may only read what is in memory
    or mapped. Results are pickled. An exception of ``work`` is raised here. Raises ``TransientError`` when a process
    is killed.
    """
    processes = min(processes, len(keys))
    if processes < 2 or sys.platform != "linux":
        yield from work(keys)
        return
    started: list[tuple[BaseProcess, Connection]] = []
    try:
        for first in range(processes):
            started.append(_started(work, keys[first::processes], [reader for _, reader in started]))
        yield from _received([reader for _, reader in started])
    finally:
        for process, reader in started:
            reader.close()
            process.kill()
            process.join()


def _started(work: Work[T], keys: Sequence[int], others: list[Connection]) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(work, keys, writer, [*others, reader]), daemon=True)
    with warnings.catch_warnings():
        # From Python 3.12 on forking beside threads warns; what a process may do is said above.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    writer.close()
    return process, reader


def _send(work: Work[T], keys: Sequence[int], writer: Connection, readers: list[Connection]) -> None:
    """In the new process. Messages are lists of results, at the end None or an exception."""
    # Finalisers of what the other process left behind are not this one's business: they may delete its files.
    gc.disable()
    # Nor are its signal handlers.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # When no reader is left writing fails: a process does not outlive the one that asked.
    for reader in readers:
        reader.close()
    try:
        results: list[T] = []
        for result in work(keys):
            results.append(result)
            if len(results) == AT_ONCE:
                writer.send(results)
                results = []
        writer.send(results)
        writer.send(None)
    except BrokenPipeError:
        return
    except Exception as error:
        writer.send(error)


def _received(readers: list[Connection]) -> Iterator[T]:
    while readers:
        for reader in cast(list[Connection], wait(readers)):
            try:
                message = reader.recv()
            except EOFError:
                raise TransientError(
                    "A process that evaluates segments was ended from outside, perhaps because memory is short. "
                    "Nothing was changed; free memory and try again."
                ) from None
            if isinstance(message, Exception):
                raise message
            if message is None:
                readers.remove(reader)
            else:
                yield from message
