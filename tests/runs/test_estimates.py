"""The size of a rule before it is saved: exact, every profile alone, refused with the rule's own error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from openaudience.errors import RuleError
from openaudience.home import Home
from openaudience.runs.estimates import Estimates
from openaudience.runs.inquiry import Inquiry
from openaudience.runs.site import Site
from oracle.driver import Product
from oracle.segments import random_rule
from oracle.walkthroughs import onboarded

START = datetime(2026, 3, 2, 9, tzinfo=UTC)
UUIDS = [f"{number:038d}" for number in range(1, 13)]
CODES = {11: "1", 12: "2", 13: "3", 14: "4"}

WORKSPACE: dict[str, Any] = {
    "partners": [
        {
            "pid": 900,
            "name": "acme",
            "dataSources": [
                {"dataSourceId": 22, "name": "Site", "idType": "COOKIE"},
                {"dataSourceId": 23, "name": "Bought", "idType": "COOKIE", "type": "GENERAL"},
                {
                    "dataSourceId": 60,
                    "name": "Card",
                    "idType": "CROSS_DEVICE",
                    "integrationCode": "card",
                    "supportsAuthenticatedProfile": True,
                },
            ],
            "folders": {"traits": [{"folderId": 5, "name": "Cars"}]},
            "traits": [
                onboarded(11, 22, "ic == 1"),
                onboarded(12, 22, "ic == 2", ttl=3),
                onboarded(13, 22, "ic == 3", folderId=5),
                onboarded(14, 22, "ic == 4", folderId=5),
                onboarded(21, 60, "ic == 1"),
                onboarded(22, 60, "ic == 2"),
                onboarded(31, 22, "ic == 7", traitType="RULE_BASED_TRAIT"),
            ],
            "mergeRules": [
                {
                    "mergeRuleDataSourceId": 8800,
                    "name": "Last login",
                    "authenticatedOption": "LAST_AUTHENTICATED",
                    "dataSourceIds": [60],
                    "deviceOption": "DEVICE",
                    "isDefault": True,
                }
            ],
        },
        {
            "pid": 901,
            "name": "other",
            "dataSources": [{"dataSourceId": 90, "name": "Foreign", "idType": "COOKIE"}],
            "traits": [onboarded(91, 90, "ic == 1")],
        },
    ]
}
Held = dict[tuple[int, str], set[int]]
LATELY = -1
"""Stands among the traits of a device that realised one of the folder on the fifth day."""


@contextmanager
def estimates(product: Product) -> Iterator[Estimates]:
    with Home.open(product.home, clock=lambda: product.now) as home:
        site = Site(home, "production")
        try:
            yield Estimates(Inquiry(site))
        finally:
            site.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Product, Held]:
    """Twelve devices, some of six customers, and what each holds on the sixth day."""
    rng = Random(7)
    product = Product(tmp_path_factory.mktemp("estimates") / "home", None)
    product.now = START
    product.apply(WORKSPACE)
    held: Held = {}
    mapped = "".join(f"{uuid}\tk{number // 2}\n" for number, uuid in enumerate(UUIDS[:8]))
    product.drop([(f"adobe_id_0_60_{int(START.timestamp())}.sync", mapped.encode())])
    known = "".join(f"{uuid}\tx{number}\n" for number, uuid in enumerate(UUIDS))
    product.drop([(f"adobe_id_0_22_{int(START.timestamp())}.sync", known.encode())])
    for day in (0, 4):
        product.now = START + timedelta(days=day, hours=1)
        stamp = int(product.now.timestamp())
        lines = ""
        for uuid in rng.sample(UUIDS, 6):
            traits = rng.sample(sorted(CODES), rng.randint(1, 3))
            lines += f"{uuid}\t{','.join(CODES[sid] for sid in traits)}\n"
            held.setdefault((0, uuid), set()).update(sid for sid in traits if day == 4 or sid != 12)
            if day == 4 and not {13, 14}.isdisjoint(traits):
                held[0, uuid].add(LATELY)
        product.drop([(f"ftp_dpm_0_22_{stamp}.sync", lines.encode())])
        lines = ""
        for number in rng.sample(range(6), 3):
            sid = rng.choice([21, 22])
            lines += f"k{number}\t{sid - 20}\n"
            held.setdefault((60, f"k{number}"), set()).add(sid)
        product.drop([(f"ftp_dpm_60_{stamp}.sync", lines.encode())])
    product.now = START + timedelta(days=5)
    return product, held


@pytest.mark.rule("QL-1201", "QL-1203", "OP-20")
def test_the_size_is_exact_and_every_profile_alone(filled: tuple[Product, Held]) -> None:
    product, held = filled
    rng = Random(11)
    sizes = set()
    with estimates(product) as made:
        for _ in range(150):
            rule = random_rule(rng, [11, 12, 13, 14, 21, 22], depth=3)
            size = sum(rule.holds(traits.__contains__) for traits in held.values())
            zero = {"estimate": 0, "lower": 0, "upper": 0}
            exact = {"estimate": size, "lower": size, "upper": size}
            assert made.estimate(rule.text) == {"total": exact, "real_time": zero}, rule.text
            sizes.add(size)
        assert len(sizes) > 5
        # the default merge rule would put each of these together: an estimate does not
        together = sum({11, 21} <= traits for traits in held.values())
        assert together == 0 == made.total("11T AND 21T")


@pytest.mark.rule("QL-1201", "QL-606")
def test_folder_traits_are_counted_and_joined(filled: tuple[Product, Held]) -> None:
    product, held = filled
    (folder,) = (one["sid"] for one in product.json("traits") if one["name"] == "Cars Folder Trait")
    counts = [len(traits & {13, 14}) for traits in held.values()]
    with estimates(product) as made:
        assert made.total(f"{folder}T") == sum(count >= 1 for count in counts)
        assert made.total(f"frequency([{folder}T]) >= 2") == sum(count == 2 for count in counts) > 0
        assert made.total(f"11T AND frequency([{folder}T]) == 1") == sum(
            11 in traits and len(traits & {13, 14}) == 1 for traits in held.values()
        )
        lately = sum(LATELY in traits for traits in held.values())
        assert made.total(f"frequency([{folder}T] <= 1D) >= 1") == lately
        assert made.total(f"frequency([{folder}T] >= 2D) >= 1") >= made.total(f"{folder}T") - lately
    document = product.json("estimate", f"{folder}T")
    assert document["total"]["estimate"] == sum(count >= 1 for count in counts)
    assert f"{document['total']['estimate']:,} profiles" in product.run("estimate", f"{folder}T")


@pytest.mark.rule("QL-1202", "QL-1204")
@pytest.mark.parametrize(
    ("rule", "code", "position"),
    [
        ("", "E_EMPTY", 0),
        ("11T AND", "E_SYNTAX", 7),
        ("11T AND 99T", "E_UNKNOWN_TRAIT", 8),
        ("11T OR 91T", "E_UNKNOWN_TRAIT", 7),
        ("NOT 11T", "E_NEGATIVE", 0),
        ("frequency([11T]) >= 2", "E_RF_TRAIT_TYPE", 11),
    ],
)
def test_a_bad_rule_is_refused_with_its_own_error(
    filled: tuple[Product, Held], rule: str, code: str, position: int
) -> None:
    product, _ = filled
    with estimates(product) as made, pytest.raises(RuleError) as caught:
        made.estimate(rule)
    assert (caught.value.code, caught.value.position) == (code, position)
    product.run("estimate", rule, expect=(1,))


@pytest.mark.rule("QL-1202")
def test_at_most_four_frequencies_are_estimated(filled: tuple[Product, Held]) -> None:
    product, _ = filled
    term = "frequency([31T]) >= 1"
    with estimates(product) as made:
        assert made.total(" OR ".join([term] * 4)) == 0
        with pytest.raises(RuleError) as caught:
            made.estimate("  " + " OR ".join([term] * 5))
    assert (caught.value.code, caught.value.position) == ("E_ESTIMATE_RF", 2 + 4 * len(f"{term} OR "))


@pytest.mark.rule("QL-806")
def test_traits_of_others_are_not_counted(tmp_path: Path) -> None:
    product = Product(tmp_path / "home", None)
    product.now = START
    workspace = {"partners": [dict(WORKSPACE["partners"][0])]}
    sources = workspace["partners"][0]["dataSources"]
    workspace["partners"][0]["dataSources"] = [
        source | ({"type": "THIRD_PARTY"} if source["dataSourceId"] == 22 else {}) for source in sources
    ]
    product.apply(workspace)
    with estimates(product) as made, pytest.raises(RuleError) as caught:
        made.estimate("frequency([31T]) >= 1")
    assert caught.value.code == "E_RF_THIRD_PARTY"
