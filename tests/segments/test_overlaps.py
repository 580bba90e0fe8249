from __future__ import annotations

import random

import numpy as np
import pytest
from pyroaring import BitMap

from openaudience.segments import overlaps as module
from openaudience.segments.overlaps import overlaps

SPREAD = 3 * module.RANGE


def some_sets(rnd: random.Random, count: int) -> list[dict[int, BitMap]]:
    """Empty, sparse, full, and with ordinals at the borders of ranges and words."""
    edges = [0, 63, 64, module.RANGE - 1, module.RANGE, 2 * module.RANGE - 1, SPREAD - 1]
    found = []
    for _ in range(count):
        sets = {}
        for namespace in rnd.sample([0, 21, 22], rnd.randrange(4)):
            some = BitMap(rnd.sample(edges, rnd.randrange(len(edges))))
            some |= BitMap([rnd.randrange(SPREAD) for _ in range(rnd.choice([0, 5, 500]))])
            if rnd.random() < 0.3:
                begin = rnd.randrange(SPREAD)
                some |= BitMap(range(begin, min(SPREAD, begin + 200_000)))
            sets[namespace] = some
        found.append(sets)
    return found


@pytest.mark.parametrize(("rows", "columns"), [(3, 4), (12, 9), (1, 70), (0, 5), (5, 0), (80, 1)])
def test_all_pairs_are_exact(rows: int, columns: int) -> None:
    rnd = random.Random(rows * 100 + columns)
    mine, theirs = some_sets(rnd, rows), some_sets(rnd, columns)
    found = overlaps(mine, theirs)
    assert found.rows.tolist() == [sum(len(some) for some in one.values()) for one in mine]
    assert found.columns.tolist() == [sum(len(some) for some in one.values()) for one in theirs]
    expected = [[sum(len(one[ns] & other[ns]) for ns in one if ns in other) for other in theirs] for one in mine]
    assert found.both.shape == (rows, columns)
    assert np.array_equal(found.both, np.array(expected, np.int64).reshape(rows, columns))
