"""UUID ↔ ECID and new UUIDs."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openaudience.errors import InputError
from openaudience.identity.ecid import halves, new_uuids, texts, to_ecid, to_ecids, to_uuid, to_uuids

ORG = "0123456789ABCDEF01234567@ExampleOrg"
OTHER = "0123456789ABCDEF01234568@ExampleOrg"
EDGES = [
    "0" * 38,
    "9" * 38,
    "9" * 19 + "0" * 19,
    "0" * 19 + "9" * 19,
    "9223372036854775807" * 2,
    "9223372036854775808" * 2,
]

GOLDEN = "01639369561059562978602304671287071101"

digits = st.text("0123456789", min_size=38, max_size=38)


def spread(values: list[str]) -> tuple[np.ndarray, np.ndarray]:
    blob = np.frombuffer("".join("x" + value for value in values).encode(), dtype=np.uint8)
    return blob, np.arange(len(values)) * 39 + 1


def lines(array: np.ndarray) -> list[str]:
    return [row.tobytes().decode() for row in array]


@pytest.mark.rule("RT-110", "RT-101")
@settings(deadline=None)  # the first call compiles
@given(digits | st.sampled_from(EDGES))
def test_the_way_there_and_back(text: str) -> None:
    ecid = to_ecid(ORG, text)
    assert len(ecid) == 38
    assert ecid.isdigit()
    assert to_uuid(ORG, ecid) == text
    assert to_ecid(ORG, to_uuid(ORG, text)) == text  # every 38-digit string is somebody's ECID


@pytest.mark.rule("RT-110")
def test_pure_function_of_organisation_and_uuid() -> None:
    assert to_ecid(ORG, "1" * 38) == GOLDEN
    assert to_ecid(OTHER, "1" * 38) != GOLDEN
    assert len({to_ecid(ORG, f"{i:038d}") for i in range(500)}) == 500


def test_bulk_agrees_with_single() -> None:
    rng = random.Random(1)
    uuids = EDGES + [f"{rng.randrange(10**38):038d}" for _ in range(300)]
    hi, lo = halves(*spread(uuids))
    assert lines(texts(hi, lo)) == uuids
    ecids = to_ecids(ORG, hi, lo)
    assert lines(texts(*ecids)) == [to_ecid(ORG, uuid) for uuid in uuids]
    assert [a.tolist() for a in to_uuids(ORG, *ecids)] == [hi.tolist(), lo.tolist()]


@pytest.mark.rule("RT-112")
def test_new_uuids_are_two_numbers_of_63_bits() -> None:
    made = lines(new_uuids(2000))
    assert len(set(made)) == 2000
    assert all(len(text) == 38 and text.isdigit() for text in made)
    numbers = [int(text[at : at + 19]) for text in made for at in (0, 19)]
    assert max(numbers) < 2**63
    assert all(sum(number >> bit & 1 for number in numbers) > 1500 for bit in range(63))
    assert lines(new_uuids(1, lambda n: b"\xff" * n)) == ["9223372036854775807" * 2]
    assert lines(new_uuids(1, lambda n: bytes([5] + [0] * 7 + [7] + [0] * 7))) == [f"{5:019d}{7:019d}"]
    assert new_uuids(0).shape == (0, 38)


def test_ecids_of_our_own_uuids_fit_signed_halves() -> None:
    hi, lo = halves(new_uuids(3000).ravel(), np.arange(3000) * 38)
    for half in to_ecids(ORG, hi, lo):
        assert int(half.max()) < 2**63


@pytest.mark.parametrize("text", ["", "1" * 37, "1" * 39, "1" * 37 + "a", "١" * 38, "1" * 37 + " "])
def test_anything_but_38_digits_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="38 digits"):
        to_ecid(ORG, text)
    with pytest.raises(InputError, match="38 digits"):
        to_uuid(ORG, text)
