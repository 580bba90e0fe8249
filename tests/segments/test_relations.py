from __future__ import annotations

import random

import numpy as np
import pytest
from pyroaring import BitMap

from openaudience.segments.relations import Side


@pytest.mark.parametrize("seed", range(20))
def test_reached_and_spread_are_the_pairs(seed: int) -> None:
    rnd = random.Random(seed)
    most = rnd.choice([3, 70, 1_000])
    pairs = list({(rnd.randrange(most), rnd.randrange(most)) for _ in range(rnd.choice([0, 1, 40, 400]))})
    rnd.shuffle(pairs)
    left, right = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    side = Side(left, right)
    asked = BitMap([rnd.randrange(most + 200) for _ in range(rnd.randrange(60))])
    assert side.reached(asked) == BitMap([there for here, there in pairs if here in asked])

    places = np.array([rnd.randrange(most + 200) for _ in range(rnd.randrange(60))], np.int64)
    rows, there = side.spread(places)
    expected = [(row, other) for row, place in enumerate(places) for here, other in pairs if here == place]
    assert sorted(zip(rows.tolist(), there.tolist(), strict=True)) == sorted(expected)
