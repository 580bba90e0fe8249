"""Expiry instants and the instant below which everything is dead (QL-503 … QL-513)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openaudience.catalog.expiry import dead_before, expires


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("ttl", "realized", "expected"),
    [
        pytest.param(1, "2026-05-04 00:00", "2026-05-06 00:00", marks=pytest.mark.rule("QL-505")),
        pytest.param(1, "2026-05-04 04:00", "2026-05-06 00:00", marks=pytest.mark.rule("QL-506")),
        pytest.param(1, "2026-05-04 22:00", "2026-05-06 00:00", marks=pytest.mark.rule("QL-507")),
        pytest.param(1, "2026-05-04 23:30", "2026-05-06 00:00", marks=pytest.mark.rule("QL-508")),
        pytest.param(2, "2026-05-04 01:00", "2026-05-06 01:00", marks=pytest.mark.rule("QL-509")),
        pytest.param(30, "2026-05-04 09:15", "2026-06-03 09:15", marks=pytest.mark.rule("QL-510")),
    ],
)
@pytest.mark.rule("QL-503")
def test_expiry_instants(ttl: int, realized: str, expected: str) -> None:
    assert expires(at(realized), ttl) == at(expected)


@pytest.mark.rule("QL-511")
def test_ttl_0_never_expires() -> None:
    assert expires(at("2026-05-04 09:15"), 0) is None
    assert dead_before(at("2026-05-04 09:15"), 0) is None


@pytest.mark.rule("QL-513")
@pytest.mark.parametrize(
    ("ttl", "now", "expected"),
    [
        (1, "2026-05-06 00:00:00", "2026-05-04 23:59:59"),
        (1, "2026-05-05 23:59:59", "2026-05-03 23:59:59"),
        (2, "2026-05-06 01:00:00", "2026-05-04 01:00:00"),
        (30, "2026-06-03 09:15:00", "2026-05-04 09:15:00"),
    ],
)
def test_dead_before(ttl: int, now: str, expected: str) -> None:
    assert dead_before(at(now), ttl) == at(expected)


@pytest.mark.rule("QL-503", "QL-513")
@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC)),
    st.integers(1, 3650),
)
def test_dead_before_is_the_greatest_expired_second(now: datetime, ttl: int) -> None:
    dead = dead_before(now, ttl)
    assert dead is not None
    last = expires(dead, ttl)
    following = expires(dead + timedelta(seconds=1), ttl)
    assert last is not None
    assert following is not None
    assert last <= now < following
