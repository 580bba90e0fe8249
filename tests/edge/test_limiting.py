"""What is too much: the deny list and rate limits (RT-1601 … RT-1605)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from openaudience.calls.sqlite import SqliteCalls
from openaudience.calls.store import Denial
from openaudience.cli import main
from openaudience.config import EdgeSection
from openaudience.edge.limiting import BUCKETS, DenyList, RateLimit, Window
from openaudience.errors import StoreUnavailable

SEEDS = (1, 2)
UUID = "31415926535897932380264338327950288419"


class Watch:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.at = 1_780_000_000.0

    def __call__(self) -> datetime:
        return datetime.fromtimestamp(self.at, UTC)


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteCalls]:
    store = SqliteCalls(tmp_path / "calls.db", seeds=SEEDS)
    yield store
    store.close()


# ---- windows ---------------------------------------------------------------------------------------------------------


def test_a_window_slides(watch: Watch) -> None:
    window = Window(60, watch)
    counts = []
    for _ in range(8):
        counts.append(window.add("k"))
        watch.at += 15
    assert counts == [1, 2, 3, 4, 4, 4, 4, 4]
    assert window.add("other") == 1
    watch.at += 60
    assert window.add("k") == 1


def test_waiting_ends_when_there_is_room(watch: Watch) -> None:
    window = Window(60, watch)
    for _ in range(3):
        window.add("k")
        watch.at += 10
    assert window.wait("k", 4) == 0
    assert window.wait("k", 3) == 30  # the first of the three leaves
    assert window.wait("k", 1) == 50  # so does the last
    assert window.wait("other", 1) == 0
    watch.at += 30
    assert window.wait("k", 3) == 0


def test_memory_is_bounded_and_who_comes_all_the_time_is_noticed(watch: Watch) -> None:
    window = Window(60, watch, most=100)
    for number in range(5_000):
        window.add(number)
        count = window.add("flood")
        assert window._size <= 100
        if number % 50 == 0:
            watch.at += 60 / BUCKETS
    assert count >= 40
    assert len(window._totals) <= 100


def test_a_clock_that_is_set_back_forgets(watch: Watch) -> None:
    window = Window(60, watch)
    window.add("k")
    watch.at -= 3_600
    assert window.add("k") == 1


# ---- deny list -------------------------------------------------------------------------------------------------------


@pytest.mark.rule("RT-1601")
def test_an_id_is_denied_above_the_threshold_only(store: SqliteCalls, watch: Watch) -> None:
    denying = DenyList(EdgeSection(), store, watch)
    for _ in range(600):
        assert not denying.seen(7001, "Z-77")
    assert denying.seen(7001, "Z-77")
    assert not denying.seen(7002, "Z-77")
    assert not denying.seen(7001, "z-77")
    assert not denying.seen(0, UUID)
    watch.at += 3_600
    assert denying.seen(7001, "Z-77"), "nothing but an operator takes it off the list"


@pytest.mark.rule("RT-1601")
def test_as_many_as_allowed_may_go_on_for_ever(store: SqliteCalls, watch: Watch) -> None:
    denying = DenyList(EdgeSection(deny_calls=480), store, watch)
    for _ in range(6_000):
        assert not denying.seen(0, UUID)
        watch.at += 0.125
    settings = EdgeSection(deny_calls=2, deny_seconds=10)
    strict = DenyList(settings, store, watch)
    assert [strict.seen(0, UUID) for _ in range(3)] == [False, False, True]


def test_zero_is_off(store: SqliteCalls, watch: Watch) -> None:
    denying = DenyList(EdgeSection(deny_calls=0), store, watch)
    assert not any(denying.seen(0, UUID) for _ in range(2_000))


@pytest.mark.rule("RT-1604")
def test_other_processes_and_restarts_know_who_is_denied(store: SqliteCalls, watch: Watch) -> None:
    settings = EdgeSection(deny_calls=2)
    one, other = DenyList(settings, store, watch), DenyList(settings, store, watch)
    for _ in range(5):
        one.seen(0, UUID)
    assert not other.seen(0, UUID)
    one.flush()
    watch.at += 5
    other.flush()
    assert other.seen(0, UUID)
    other.flush()
    one.flush()
    assert store.denials() == [Denial(0, UUID, 1_780_000_000, 4)]
    assert DenyList(settings, store, watch).seen(0, UUID)


def test_who_was_taken_off_the_list_comes_back_only_by_calling_too_often(store: SqliteCalls, watch: Watch) -> None:
    denying = DenyList(EdgeSection(deny_calls=2), store, watch)
    for _ in range(4):
        denying.seen(7001, "a")
    denying.flush()
    denying.seen(7001, "a")
    assert store.allow(7001, "a")
    watch.at += 60
    denying.flush()
    assert store.denials() == [], "the refused call that was waiting to be counted puts nobody on the list"
    assert not denying.seen(7001, "a")
    assert [denying.seen(7001, "a") for _ in range(2)] == [False, True]


def test_refused_calls_are_counted_in_batches(
    store: SqliteCalls, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    denying = DenyList(EdgeSection(deny_calls=1), store, watch)
    writes: list[int] = []
    deny = store.deny

    def counted(dpid: int, id: str, at: int, count: int = 1) -> None:
        writes.append(count)
        deny(dpid, id, at, count)

    monkeypatch.setattr(store, "deny", counted)
    for _ in range(1_000):
        denying.seen(0, UUID)
    denying.refused(7001, "known to the store")
    assert writes == []
    denying.flush()
    assert writes == [999]
    denying.flush()
    assert writes == [999]


def test_nothing_is_lost_while_the_store_is_away(
    store: SqliteCalls, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    denying = DenyList(EdgeSection(deny_calls=1), store, watch)
    denying.seen(0, UUID)
    denying.seen(0, UUID)

    def away(*_: object) -> None:
        raise StoreUnavailable("away")

    for method in ("denials", "deny"):
        with monkeypatch.context() as broken:
            broken.setattr(store, method, away)
            with pytest.raises(StoreUnavailable):
                denying.flush()
            assert denying.seen(0, UUID)
    assert store.denials() == []
    denying.flush()
    assert [(one.id, one.count) for one in store.denials()] == [(UUID, 3)]
    assert denying.seen(0, UUID)


@pytest.mark.rule("RT-1603")
def test_data_sources_are_barred_by_number_or_code(store: SqliteCalls, watch: Watch) -> None:
    denying = DenyList(EdgeSection(deny_sources=["8100", "crm"]), store, watch)
    assert denying.source(8100, None)
    assert denying.source(7001, "crm")
    assert not denying.source(7002, "CRM")
    assert not denying.source(7002, None)
    assert not denying.source(8101, "8101")


# ---- rate limits -----------------------------------------------------------------------------------------------------


@pytest.mark.rule("RT-1605")
def test_an_address_and_a_partner_have_a_rate_each(watch: Watch) -> None:
    limit = RateLimit(EdgeSection(calls_per_address=2, calls_per_partner=3), watch)
    assert limit.wait("192.0.2.1", 900) is None
    assert limit.wait("192.0.2.1", 900) is None
    assert limit.wait("192.0.2.1", 901) == 60
    assert limit.wait("192.0.2.2", 900) is None
    watch.at += 20
    assert limit.wait("192.0.2.3", 900) == 40
    assert limit.wait("192.0.2.3", None) is None
    watch.at += 39.5
    assert limit.wait("192.0.2.1", 900) == 1
    watch.at += 0.5
    assert limit.wait("192.0.2.1", 900) is None, "refused calls did not count"


@pytest.mark.rule("RT-1605")
def test_rates_are_off_unless_set(watch: Watch) -> None:
    limit = RateLimit(EdgeSection(), watch)
    assert all(limit.wait("192.0.2.1", 900) is None for _ in range(5_000))


# ---- the operator ----------------------------------------------------------------------------------------------------


@pytest.mark.rule("RT-1604")
def test_an_operator_sees_the_list_and_may_allow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = ["--home", str(tmp_path / "home")]

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main([*home, *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    assert run("init")[0] == 0
    assert run("denied")[1] == "no ID is denied\n"
    store = SqliteCalls(tmp_path / "home" / "production" / "calls.db", seeds=SEEDS)
    store.deny(0, UUID, 1_780_000_000, 12)
    store.deny(7001, "a:b", 1_780_000_060)
    store.close()
    assert json.loads(run("denied", "--json")[1]) == [
        {"data_source": 0, "id": UUID, "since": "2026-05-28T20:26:40Z", "calls": 12},
        {"data_source": 7001, "id": "a:b", "since": "2026-05-28T20:27:40Z", "calls": 1},
    ]
    assert run("denied")[1].splitlines() == [
        f"2026-05-28T20:26:40Z            12 calls refused  {UUID}",
        "2026-05-28T20:27:40Z             1 calls refused  7001:a:b",
    ]
    assert run("allow", "7001:a:b") == (0, "7001:a:b may call again\n", "")
    status, _, error = run("allow", "7001:a:b")
    assert status == 1
    assert "openaudience denied" in error
    assert run("allow", UUID, "--json")[0] == 0
    assert run("allow", "x:1")[0] == 1
    assert run("allow", "123")[0] == 1
    assert run("denied")[1] == "no ID is denied\n"
