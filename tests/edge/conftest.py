"""One installation for all calls of a module: tests take visitors of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge.house import House, acme, source, trait
from edge.served import served

SETTINGS = """
proxies = ["127.0.0.1"]
node = "node-3"
deny_calls = 0
deny_sources = ["7009", "barred"]
"""


@pytest.fixture(scope="module")
def called(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The common ground of the walk-throughs, with more traits and a partner ``bolt`` that shares data source 9102."""
    workspace = acme(aliases=["acme", "acme-shop"], refererHosts=[], dataSourceAccess=[9102])
    acme_, bolt = workspace["partners"]
    acme_["dataSources"] += [
        source(7010, integrationCode="plain", supportsAuthenticatedProfile=False),
        source(7011, integrationCode="asleep", status="INACTIVE"),
        source(7012, integrationCode="lgd", defaultAuthState=1),
        source(8400, "COOKIE", integrationCode="barred", redirectHosts=["p.example"]),
        source(8300, "COOKIE", redirectHosts=["*.match.example"]),
        source(9100 + 200, "COOKIE", integrationCode="twice"),
    ]
    acme_["traits"] += [
        trait(4003, 8100, 'c_city == "New Delhi, IN"'),
        trait(4004, 8100, 'h_referer contains "shop"'),
        trait(4006, 8200, 'c_q == ""'),
        trait(4007, 8100, 'step == "plain"'),
        trait(4008, 8100, 'c_never == "so"'),
        trait(4010, 8100, 'c_one == "1" AND c_two == "2"'),
        trait(4009, 8100, 'c_off == "1"', status="INACTIVE"),
    ]
    acme_["segments"].append(
        {"sid": 6003, "name": "S6003", "dataSourceId": 8100, "segmentRule": "4007T", "legacyId": 77}
    )
    bolt["refererHosts"] = ["bolt.example"]
    bolt["dataSources"] += [
        source(9102, allowDataSharing=True, redirectHosts=["b.example"]),
        source(9103, "COOKIE", integrationCode="twice"),
        source(9104, "COOKIE", redirectHosts=["b.example"]),
    ]
    house = House(tmp_path_factory.mktemp("called") / "home", workspace, SETTINGS)
    yield house
    house.close()


@pytest.fixture(scope="module")
def served_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[House, int]]:
    """A house without a deny list, and the port at which a real server serves it."""
    house = House(tmp_path_factory.mktemp("served") / "home", acme(), "deny_calls = 0")
    with served(house) as port:
        yield house, port
    house.close()
