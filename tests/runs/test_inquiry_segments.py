"""Segments as people ask for them: profiles, why, lists with populations (OP-16 … OP-18)."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from oracle.driver import Product
from oracle.walkthroughs import onboarded

START = datetime(2026, 3, 2, 9, tzinfo=UTC)
D = [f"{number:038d}" for number in range(1, 6)]
"""d1 … d5 of QL-W4."""


def merge_rule(number: int, authenticated: str, device: str, *sources: int, **more: Any) -> dict[str, Any]:
    return {
        "mergeRuleDataSourceId": number,
        "name": f"Rule {number}",
        "authenticatedOption": authenticated,
        "deviceOption": device,
        "dataSourceIds": list(sources),
        **more,
    }


def segment(sid: int, rule: str, merge: int, **more: Any) -> dict[str, Any]:
    return {
        "sid": sid,
        "name": f"Segment {sid}",
        "dataSourceId": 22,
        "segmentRule": rule,
        "mergeRuleDataSourceId": merge,
        **more,
    }


WORKSPACE: dict[str, Any] = {
    "partners": [
        {
            "pid": 900,
            "name": "acme",
            "dataSources": [
                {"dataSourceId": 22, "name": "Site", "idType": "COOKIE", "outboundS2S": True},
                {
                    "dataSourceId": 60,
                    "name": "Household",
                    "idType": "CROSS_DEVICE",
                    "integrationCode": "household",
                    "supportsAuthenticatedProfile": True,
                },
            ],
            "folders": {"traits": [{"folderId": 5, "name": "Cars"}]},
            "traits": [
                onboarded(11, 60, "ic == 1"),
                onboarded(12, 22, "ic == 2", folderId=5),
                onboarded(13, 22, "ic == 3", folderId=5, ttl=5),
            ],
            "mergeRules": [
                merge_rule(8801, "NO_CROSS_DEVICE", "DEVICE", isDefault=True),
                merge_rule(8804, "LAST_AUTHENTICATED", "DEVICE", 60),
                merge_rule(8805, "LAST_AUTHENTICATED", "PROFILE_LINK", 60),
                merge_rule(8807, "ALL_CROSS_DEVICE", "NO_DEVICE", 60),
            ],
            "segments": [
                segment(401, "11T AND 12T AND 13T", 8801),
                segment(404, "11T AND 12T AND 13T", 8804),
                segment(405, "11T AND 12T AND 13T", 8805),
                segment(407, "11T AND 12T AND 13T", 8807),
                segment(408, "11T OR 12T", 8807),
                segment(410, "12T AND NOT 13T", 8801),
            ],
            "destinationServers": [{"serverId": 1, "name": "Disk", "type": "LOCAL", "directory": "/exports"}],
            "destinations": [
                {
                    "destinationId": 5000,
                    "name": "Shop",
                    "destinationType": "S2S",
                    "dataSourceId": 22,
                    "userIdKey": 22,
                    "serverId": 1,
                    "mappings": [{"sid": 410, "traitType": "SEGMENT", "mappingId": 1, "startDate": "2026-03-01"}],
                }
            ],
        }
    ]
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Product:
    """QL-W4: h1 with d1: 12 and d2: 13; h2 with d3: 12, 13 and d4: 12; d5 alone: 12, 13; h3 without devices."""
    made = Product(tmp_path_factory.mktemp("segments") / "home", None)
    made.now = START
    made.apply(WORKSPACE)
    stamp = int(START.timestamp())
    made.drop([(f"adobe_id_0_60_{stamp}.sync", f"{D[0]}\th1\n{D[1]}\th1\n{D[2]}\th2\n{D[3]}\th2\n".encode())])
    made.drop([(f"adobe_id_0_22_{stamp}.sync", f"{D[4]}\tx5\n".encode())])
    made.now += timedelta(hours=1)
    made.drop([(f"ftp_dpm_60_{stamp + 1}.sync", b"h1\t1\nh2\t1\nh3\t1\n")])
    made.now += timedelta(hours=1)
    lines = f"{D[0]}\t2\n{D[1]}\t3\n{D[2]}\t2,3\n{D[3]}\t2\n{D[4]}\t2,3\n"
    made.drop([(f"ftp_dpm_0_22_{stamp + 2}.sync", lines.encode())])
    made.now += timedelta(hours=1)
    return made


@pytest.fixture
def product(filled: Product, tmp_path: Path) -> Product:
    """A copy of it."""
    made = Product(Path(shutil.copytree(filled.home, tmp_path / "home")), None)
    made.now = filled.now
    return made


def truths(node: dict[str, Any]) -> Any:
    """A tree as (op or sids, true, operands)."""
    inner = [truths(one) for one in node.get("operands", ())]
    what = node["op"] if inner else node["sids"]
    return (what, node["true"], *inner)


@pytest.mark.rule("QL-W4", "OP-18", "QL-1106", "QL-1108", "QL-1018")
def test_segments_are_listed_with_live_populations(product: Product) -> None:
    documents = product.json("segments")
    assert {one["sid"]: (one["population"]["device"], one["population"]["cross_device"]) for one in documents} == {
        401: (0, 0),
        404: (1, 1),
        405: (4, 2),
        407: (0, 0),
        408: (0, 3),
        410: (2, 0),
    }
    assert next(iter(documents[0])) == "sid"
    assert documents[0]["segmentRule"] == "11T AND 12T AND 13T"
    shown = product.run("segments")
    assert "           4 devices             2 customers  Segment 405" in shown


@pytest.mark.rule("QL-910", "QL-901", "OP-16")
def test_a_profile_shows_its_segments_and_since_when(product: Product) -> None:
    d3, h2 = product.json("profile", D[2]), product.json("profile", "60:h2")
    assert d3["segments"] == [404, 405]
    assert d3["memberships"] == [
        {"sid": 404, "name": "Segment 404", "joined": "2026-03-02T11:00:00Z"},
        {"sid": 405, "name": "Segment 405", "joined": "2026-03-02T11:00:00Z"},
    ]
    assert h2["segments"] == [404, 405, 408]
    assert h2["memberships"][2]["joined"] == "2026-03-02T10:00:00Z"
    assert "segment 405 Segment 405  since 2026-03-02T11:00:00Z" in product.run("profile", D[2])
    # 13 runs out: who leaves and comes back joins anew
    product.now = START + timedelta(days=9)
    product.drop([(f"ftp_dpm_0_22_{int(product.now.timestamp())}.sync", f"{D[0]}\t2\n{D[3]}\t2\n".encode())])
    assert product.json("profile", D[2])["segments"] == [410]
    product.now += timedelta(hours=1)
    product.drop([(f"ftp_dpm_0_22_{int(product.now.timestamp())}.sync", f"{D[2]}\t3\n".encode())])
    again = product.json("profile", D[2])
    assert [(one["sid"], one["joined"]) for one in again["memberships"]] == [
        (404, "2026-03-11T10:00:00Z"),
        (405, "2026-03-11T10:00:00Z"),
    ]


@pytest.mark.rule("OP-17", "QL-1005", "QL-1006", "QL-1008", "QL-1015", "QL-1018")
@pytest.mark.parametrize(
    ("ident", "sid", "holds", "leaves"),
    [
        # the device alone knows nothing of its household
        (D[2], 401, False, (False, True, True)),
        (D[2], 404, True, (True, True, True)),
        (D[0], 404, False, (True, True, False)),
        (D[0], 405, True, (True, True, True)),
        (D[4], 405, False, (False, True, True)),
        # of several sets of a household, the one that qualifies is shown
        ("60:h2", 404, True, (True, True, True)),
        ("60:h3", 404, False, (True, False, False)),
        ("60:h2", 407, False, (True, False, False)),
        # a customer is in no set of M1, a device in none of M7
        ("60:h2", 401, False, (False, False, False)),
        (D[2], 407, False, (False, False, False)),
    ],
)
def test_why_shows_the_tree_over_the_merged_set(
    product: Product, ident: str, sid: int, holds: bool, leaves: tuple[bool, bool, bool]
) -> None:
    document = product.json("why", ident, str(sid))
    assert (document["profile"], document["sid"], document["holds"]) == (ident, sid, holds)
    eleven, twelve, thirteen = leaves
    assert truths(document["because"]) == ("AND", holds, ([11], eleven), ([12], twelve), ([13], thirteen))


@pytest.mark.rule("OP-17", "QL-1015")
def test_why_shows_the_set_that_qualifies(product: Product) -> None:
    # the household's first device still lacks 13, the second has both now
    product.drop([(f"ftp_dpm_0_22_{int(product.now.timestamp())}.sync", f"{D[1]}\t2\n".encode())])
    document = product.json("why", "60:h1", "404")
    assert document["holds"] is True
    assert truths(document["because"]) == ("AND", True, ([11], True), ([12], True), ([13], True))


@pytest.mark.rule("OP-17")
def test_why_as_text_and_of_nested_rules(product: Product) -> None:
    document = product.json("why", D[0], "410")
    assert truths(document["because"]) == ("AND", True, ([12], True), ("NOT", True, ([13], False)))
    assert product.run("why", D[0], "410").splitlines() == [
        f"{D[0]} is in segment 410",
        "  true   AND",
        "  true     12T",
        "  true     NOT",
        "  false      13T",
    ]
    product.run("why", D[0], "999", expect=(1,))


def changed(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The workspace after a change of its partner."""
    workspace = copy.deepcopy(WORKSPACE)
    change(workspace["partners"][0])
    return workspace


@pytest.mark.rule("OP-17", "QL-705")
def test_why_tells_the_rule_of_now_beside_the_membership(product: Product) -> None:
    product.apply(changed(lambda partner: partner["segments"][-1].update(status="INACTIVE")))
    product.now = START + timedelta(days=1)
    product.drop([(f"ftp_dpm_0_22_{int(product.now.timestamp())}.sync", f"{D[0]}\t3\n".encode())])
    document = product.json("why", D[0], "410")
    assert document["holds"] is True
    assert truths(document["because"]) == ("AND", False, ([12], True), ("NOT", False, ([13], True)))
    assert "its rule is not true now" in product.run("why", D[0], "410")
    assert "(paused)" in product.run("segments")


@pytest.mark.rule("OP-17", "QL-606")
def test_why_of_frequencies(product: Product) -> None:
    folder = folder_trait(product)
    rule = f"12T AND frequency([{folder}T] <= 7D) >= 2 AND NOT frequency([{folder}T]) == 1"
    product.apply(changed(lambda partner: partner["segments"].append(segment(420, rule, 8805))))
    document = product.json("why", D[0], "420")
    # together with d2 the household's set has both traits of the folder
    assert document["holds"] is True
    assert truths(document["because"]) == (
        "AND",
        True,
        ([12], True),
        ([folder], True),
        ("NOT", True, ([folder], False)),
    )
    assert document["because"]["operands"][1] == {
        "op": "FREQUENCY",
        "sids": [folder],
        "recency": {"op": "<=", "days": 7},
        "frequency": {"op": ">=", "value": 2},
        "true": True,
    }
    assert f"true     FREQUENCY([{folder}T] <= 7D) >= 2" in product.run("why", D[0], "420")


def folder_trait(product: Product) -> int:
    (sid,) = (one["sid"] for one in product.json("traits") if one["name"] == "Cars Folder Trait")
    return int(sid)


@pytest.mark.rule("OP-18", "QL-605", "RT-220", "RT-221", "QL-205", "QL-206")
def test_traits_are_listed_with_those_of_folders_and_devices(product: Product) -> None:
    populations = {one["name"]: one["population"] for one in product.json("traits")}
    assert populations == {
        "Trait 11": {"device": 0, "cross_device": 3},
        "Trait 12": {"device": 4, "cross_device": 0},
        "Trait 13": {"device": 3, "cross_device": 0},
        "Cars Folder Trait": {"device": 5, "cross_device": 0},
        "Active Audience": {"device": 5, "cross_device": 0},
        "Site": {"device": 1, "cross_device": 0},
        "Household": {"device": 4, "cross_device": 0},
    }
    synced = {one["name"]: one["synced_devices"] for one in product.json("datasources")}
    assert synced == {"Site": 1, "Household": 4}
    # another partner's active devices are not these
    document = product.json("why", D[3], str(folder_trait(product)))
    assert document["holds"] is True
    assert [(one["trait"], one["op"]) for one in document["because"]] == [(12, "realized")]


@pytest.mark.rule("QL-205", "QL-504")
def test_populations_age(product: Product) -> None:
    product.now = START + timedelta(days=121)
    populations = {one["name"]: one["population"]["device"] for one in product.json("traits")}
    assert populations == {
        "Trait 11": 0,
        "Trait 12": 0,
        "Trait 13": 0,
        "Cars Folder Trait": 0,
        "Active Audience": 0,
        "Site": 1,
        "Household": 4,
    }


@pytest.mark.rule("OP-18")
def test_destinations_are_listed(product: Product) -> None:
    (document,) = product.json("destinations")
    assert (document["destinationId"], document["name"], len(document["mappings"])) == (5000, "Shop", 1)
    assert "1 mappings  Shop" in product.run("destinations")
