"""Mappings that newer ones push out, in calls and in files, are counted for good (20, section 3)."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.house import House, acme
from edge.logged import someone
from openaudience.serve.figures import Figures

NAME = "openaudience_mappings_evicted"


def counted(house: House) -> dict[tuple[str, str], float]:
    """What the metrics page shows, by environment and DPID."""
    figures = Figures(house.opened)
    figures.refresh()
    (metric,) = [metric for metric in figures.collect() if metric.name == NAME]
    return {
        (one.labels["environment"], one.labels["dpid"]): one.value
        for one in metric.samples
        if one.name == f"{NAME}_total"
    }


@pytest.mark.rule("RT-308")
def test_evictions_are_counted_by_data_source(tmp_path: Path) -> None:
    limits = "[limits]\ndevices_per_customer = 3\ncustomers_per_device = 2\ncookies = 2"
    house = House(tmp_path / "home", acme(), limits)
    try:
        assert counted(house) == {}
        for _ in range(5):
            house.event("d_cid=7001%01V-1", cookie=someone())
        device = someone()
        house.event("d_cid=7002%01a&d_cid=7002%01b&d_cid=8100%01k", cookie=device)
        house.run("datasources")  # drains
        assert counted(house) == {("production", "7001"): 2}
        house.event("d_cid=7002%01c", cookie=device)
        house.event("d_cid=7001%01V-1", cookie=someone())
        # a file's evictions count as well, and once more only if they happen once more
        rows = "".join(f"{someone()}\tk\n" for _ in range(3))
        house.drop([("adobe_id_0_8100_1790000000.sync", rows.encode())])
        assert house.kept_receipts[-1]["evicted_mappings"] == 2
        wanted = {("production", "7001"): 3, ("production", "7002"): 1, ("production", "8100"): 2}
        assert counted(house) == wanted
        listed = {one["dataSourceId"]: one["evicted_mappings"] for one in house.json("datasources")}
        assert {dpid: count for dpid, count in listed.items() if count} == {7001: 3, 7002: 1, 8100: 2}
        assert "3 mappings evicted  D7001" in house.run("datasources")
        assert counted(house) == wanted
    finally:
        house.close()
