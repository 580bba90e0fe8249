from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from pyroaring import BitMap

from openaudience.errors import SystemFailure, TransientError
from openaudience.segments import evaluation, workers
from openaudience.segments.evaluation import Change, Evaluation, Segments
from segments.naive_sets import TODAY, Alive, Remembered
from segments.test_evaluation import RULES, evaluated, some_segments, some_world

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")


def squares(keys: Sequence[int]) -> Iterator[tuple[int, int]]:
    for key in keys:
        yield key, key * key


def test_all_results_come_from_several_processes() -> None:
    def named(keys: Sequence[int]) -> Iterator[tuple[int, int]]:
        for key in keys:
            yield key, os.getpid()

    found = dict(workers.side_by_side(range(1_000), 3, named))
    assert sorted(found) == list(range(1_000))
    assert len(set(found.values())) == 3
    assert os.getpid() not in found.values()


@pytest.mark.parametrize("keys", [[], [4], [4, 5]])
def test_little_work_stays_here_or_needs_fewer_processes(keys: list[int]) -> None:
    assert sorted(workers.side_by_side(keys, 8, squares)) == [(key, key * key) for key in keys]


def test_an_error_is_raised_here() -> None:
    def failing(keys: Sequence[int]) -> Iterator[int]:
        yield from keys
        raise SystemFailure("The file traits is damaged.")

    with pytest.raises(SystemFailure, match="traits is damaged"):
        list(workers.side_by_side([1, 2], 2, failing))


def test_a_killed_process_is_worth_another_try() -> None:
    def killed(keys: Sequence[int]) -> Iterator[int]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield from keys

    with pytest.raises(TransientError, match="ended from outside"):
        list(workers.side_by_side([1, 2], 2, killed))


def test_handlers_of_signals_stay_here() -> None:
    def handlers(keys: Sequence[int]) -> Iterator[bool]:
        yield signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        assert list(workers.side_by_side([1, 2], 2, handlers)) == [True, True]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_work_may_be_asked_for_from_a_thread() -> None:
    with ThreadPoolExecutor(1) as beside:
        found = beside.submit(lambda: sorted(workers.side_by_side([1, 2, 3], 2, squares))).result()
    assert found == [(1, 1), (2, 4), (3, 9)]


def test_nobody_is_left_over_when_the_reader_goes_away() -> None:
    def endless(keys: Sequence[int]) -> Iterator[int]:
        while True:
            yield os.getpid()

    results = workers.side_by_side([1, 2], 2, endless)
    pids = {next(results) for _ in range(workers.AT_ONCE * 4)}
    results.close()  # type: ignore[attr-defined]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def whole(changes: Iterator[Change]) -> dict[int, Change]:
    return {change.sid: change for change in changes}


@pytest.mark.parametrize("seed", range(4))
def test_processes_and_budgets_change_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rnd = random.Random(seed)
    world = some_world(rnd)
    segments = Segments(some_segments(rnd), RULES)
    members = evaluated(world, segments)
    old = {sid: {0: BitMap([0, 1, 2]), 101: BitMap([3])} for sid in rnd.sample(sorted(segments.rule_of), 20)}
    judged = Evaluation(segments, Alive(world), world.links, TODAY)
    alone = whole(judged.changes(Remembered(old), processes=1))
    expected = {}
    for sid, now in members.items():
        joined, left = {}, {}
        for namespace in {*now, *old.get(sid, {})}:
            here, there = now.get(namespace, BitMap()), old.get(sid, {}).get(namespace, BitMap())
            if here - there:
                joined[namespace] = here - there
            if there - here:
                left[namespace] = there - here
        if joined or left:
            expected[sid] = Change(sid, joined, left)
    assert alone == expected
    monkeypatch.setattr(evaluation, "BUDGET", 8)
    assert whole(judged.changes(Remembered(old), processes=2)) == expected
    few = sorted(expected)[::2]
    assert whole(judged.changes(Remembered(old), few, processes=2)) == {sid: expected[sid] for sid in few}
