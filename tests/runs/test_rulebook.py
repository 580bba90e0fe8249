"""Codes of raw signals: what is remembered of earlier signals never changes what a signal means."""

from __future__ import annotations

from random import Random

import pytest

from openaudience.runs.rulebook import Coder, ColumnForm, Ruleset, TraitRule

RULESET = Ruleset(
    form="data",
    columns=[ColumnForm(5001, "cookie", True)],
    overwrite=False,
    pii_values=False,
    target=5001,
    traits=[
        TraitRule(1, True, 'a == "1"'),
        TraitRule(3, False, 'ic == "7" OR "k=y" == 1'),
        TraitRule(4, True, "a == 1 AND b > 3"),
        TraitRule(5, True, None),
    ],
    failing=[9],
    limits={},
    organisations={},
)
PIECES = ("a", "b", '"', "=", "d_sid", "D_Unsid", "k", "1", "5", "7", ":0", "-", " ", "“", "x")


def meaning(coder: Coder, raw: bytes) -> tuple[int, ...]:
    """What a code says, whatever its number: flags, traits, removal, leaves."""
    code, table = coder(raw), coder.codes()
    adds = table.adds[table.add_at[code] : table.add_at[code + 1]].tolist()
    leaves = table.leaves[table.leaf_at[code] : table.leaf_at[code + 1]].tolist()
    return (int(table.flags[code]), int(table.removes[code]), len(adds), *adds, *leaves)


@pytest.mark.rule("IN-40", "IN-41", "IN-47")
def test_a_key_that_names_traits_is_not_forgotten() -> None:
    coder = Coder(RULESET)
    assert meaning(coder, b"d_sid=x") == meaning(coder, b"other=x")
    assert meaning(coder, b"d_sid=5") != meaning(coder, b"other=5")
    assert meaning(coder, b"d_unsid=x") == meaning(coder, b"other=x")
    assert meaning(coder, b"d_unsid=5") != meaning(coder, b"other=5")


def test_a_signal_means_the_same_first_and_last() -> None:
    rng = Random(7)
    old = Coder(RULESET)
    for _ in range(4000):
        raw = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 6))).encode()
        if raw.strip(b" "):
            assert meaning(old, raw) == meaning(Coder(RULESET), raw), raw
