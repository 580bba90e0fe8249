"""Private values take part in rules and are nowhere afterwards (RT-1010)."""

from __future__ import annotations

import logging as python_logging
from pathlib import Path
from urllib.parse import quote

import pytest

from edge.house import House, acme, trait
from edge.logged import logging, someone

SECRET = "Xq7zSecret"
"""Begins every private value of these tests, in letters that nothing else has."""


def everything(house: House) -> bytes:
    """All that lies in the home, with its write-ahead logs."""
    return b"".join(path.read_bytes() for path in sorted(house.home.rglob("*")) if path.is_file())


@pytest.mark.rule("RT-1010", "RT-506", "QL-1303")
def test_private_values_vanish(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(python_logging.DEBUG)
    workspace = acme()
    partner = workspace["partners"][0]
    partner["traits"].append(trait(4020, 8200, 'p_name contains "secret"'))
    partner["derivedSignals"] = [
        {"sourceKey": "p_plan", "sourceValue": "gold", "targetKey": "c_plan", "targetValue": f"{SECRET}derived"}
    ]
    house = House(tmp_path / "home", workspace, "calls_per_address = 100000")
    shown = [str(one) for one in house.troubles]

    uuid = someone()
    private = (
        f"p_name={SECRET}1&P_Name={SECRET}2&p_list={SECRET}3,{SECRET}4&+p_odd={SECRET}5&%70_x={SECRET}6&p_={SECRET}7"
    )
    target = quote(f"https://shop.example/?x=%p_name%&y=${{p_name}}&z=%d_src%&{private}", safe="")
    bodies: list[bytes] = []
    with logging(house) as stored:
        for query in (
            f"{private}&c_seen=Xq7zShown",
            f"{private}&d_cid=7001%01&c_seen=1",
            f"d_uuid=1&{private}",
            f"d_orgid=NONE%40NoOrg&{private}",
            f"{private}&c_x=%",
            f"p_name=%&{private}",
            f"p_name=%FF{SECRET}8",
            f"gdpr=1&{private}",
            f"d_event=click&d_rd={target}&{private}",
            f"d_event=click&d_rd={quote('https://evil.example/?' + private, safe='')}",
            f"d_event=imp&p_plan=gold&{private}",
            f"d_coppa=true&d_cts=2&{private}",
        ):
            for answer in (
                house.event(query, cookie=uuid),
                house.call(f"/event?{query}", cookie=uuid, host="nobody.example"),
                house.event("", cookie=uuid, body=query),
                house.event("", cookie=uuid, body=query, headers={"content-type": "text/plain"}),
                house.call(f"/id?{query}", cookie=uuid),
                house.call(f"/ibs:dpid=8100&dpuuid=k&{query}", host="dpm", cookie=uuid),
                house.call(f"/demoptout?d_cid=7002%01p&{query}", host="dpm"),
            ):
                bodies.append(answer.body)
        assert 4020 in house.event(f"{private}&d_cts=2", cookie=uuid).json["traits"]
        house.call("/event?" + private + "&c=" + "x" * 9_000)
        house.call("/event", method="PUT", body=private)
        house.call("/event", body=private + "&c=" + "x" * 40_000)

        def broken(*_: object) -> object:
            raise RuntimeError("nothing of the call")

        with monkeypatch.context() as patched:
            patched.setattr(house.rooms["production"], "_device", broken)
            assert house.event(private, cookie=uuid).codes == [0]
    assert ("c_seen", "Xq7zShown") in {(one.key, one.value) for call in stored for one in call.sent}
    assert any(one.sid == 4020 for call in stored for one in call.realized)
    assert SECRET.encode() not in b"".join(bodies)
    shown += [str(one) for one in house.troubles]
    shown += [repr(room.redirects_refused) for room in house.rooms.values()] + [repr(house.edge.figures)]

    def kept() -> bytes:
        # the configuration itself names the derived value and the trait's word
        return everything(house).replace(f"{SECRET}derived".encode(), b"").lower()

    assert b"xq7zshown" in kept()  # what is not private is found in this way
    assert SECRET.lower().encode() not in kept()
    for command in (["traits"], ["signals"], ["profile", uuid], ["check"]):
        shown.append(house.run(*command))
    assert SECRET.lower().encode() not in kept()
    printed = capfd.readouterr()
    shown += [printed.out, printed.err, caplog.text]
    assert SECRET.lower() not in "".join(shown).lower()
    house.close()
