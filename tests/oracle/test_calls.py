"""Random histories of calls and files, in the product and in the naive model side by side."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from edge.house import House, Response
from openaudience.calls.model import PLATFORM
from openaudience.errors import InputError
from openaudience.identity.keys import key
from openaudience.runs.applier import Applier
from openaudience.runs.inquiry import Inquiry
from openaudience.runs.site import Lease
from openaudience.runs.world import DEVICES
from oracle import calls
from oracle.calls import ACME, BOLT, BOLT_CRM, BOLT_WEB, CRM, IDFA, LIMITS, SEGMENTS, WEB, Call, File, Id, Model
from oracle.driver import fresh_home, plain_profile, set_limits
from runs.killing import members

HOSTS = {ACME: "acme", BOLT: "bolt"}
OWN = {ACME: (CRM, CRM, WEB, IDFA), BOLT: (BOLT_CRM, BOLT_WEB, IDFA)}
IDFAS = [f"7D1E9C40-52AB-4F3D-9E08-1B6C2D3E4F5{number}" for number in range(3)]


class History:
    """One random history, with either opt-outs or files that are undone."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.chance = Random(seed)
        home = folder / "home"
        shutil.copytree(fresh_home(), home)
        set_limits(home / "openaudience.toml", LIMITS)
        self.house = House(home, calls.workspace())
        self.site = self.house.sites["production"]
        self.edges = [self.house.edge, self.house.another_edge()]
        self.model = Model(datetime(2026, 3, 2, 9, 0, tzinfo=UTC))
        self.devices = [f"{number:038d}" for number in range(1, 6)]
        self.jobs: list[int] = []
        self.undoing = seed % 2 == 0
        self.names = 1_790_000_000

    def close(self) -> None:
        self.house.close()

    # ---- steps ---------------------------------------------------------------------------------------------------

    def step(self) -> None:
        chance, model = self.chance, self.model
        model.now = calls.later(model.now, chance.choice((0, 1, 1, 60, 3600, 5 * 3600)))
        if chance.random() < 0.03:
            model.now = calls.later(model.now, 30 * 3600)
        self.house.now = model.now
        what = chance.random()
        if what < 0.8:
            self.call()
        elif what < 0.92:
            self.file()
        elif not self.undoing:
            self.opt_out()
        elif self.jobs:
            number = chance.randrange(len(self.jobs))
            files = [event for event in model.events if isinstance(event, File)]
            turn = self.house.redo if files[number].undone else self.house.undo
            turn(self.jobs[number])
            model.turn_over(number)

    def ident(self, dpid: int) -> str:
        return self.chance.choice(IDFAS) if dpid == IDFA else f"{dpid}-{self.chance.randrange(4)}"

    def call(self) -> None:
        chance, model = self.chance, self.model
        pid = chance.choice((ACME, ACME, BOLT))
        endpoint = chance.choice(("event", "event", "event", "id", "ibs"))
        declared: dict[Id, int | None] = {}
        for _ in range(chance.choice((0, 1, 1, 2))):
            dpid = chance.choice(OWN[pid])
            declared[dpid, self.ident(dpid)] = chance.choice((None, 0, 1, 1, 2)) if dpid in calls.CUSTOMERS else None
        if endpoint == "ibs" and not any(dpid != IDFA for dpid, _ in declared):
            # the owner of a data source is the partner of a sync
            endpoint = "event"
        identity = chance.random()
        uuid = chance.choice(self.devices)
        sent = Call(
            pid,
            endpoint,
            uuid if identity < 0.3 else None,
            uuid if 0.3 <= identity < 0.6 else None,
            tuple((*who, state) for who, state in declared.items()),
            tuple(one for one in ("c_a", "c_b", "c_c") if chance.random() < 0.4),
        )
        response = self._send(sent)
        if model.stopped(sent):
            assert response.first("x-error") == "171", sent
            return
        assert response.first("x-error") is None, (sent, response)
        expected, _ = model.device(sent)
        told = sent.named or response.cookie
        assert told is not None
        if expected is None:
            assert told not in self.devices
            self.devices.append(told)
            # those that were made are soon as many as the others
            del self.devices[7:-2]
        else:
            assert told == expected, sent
        model.answer(sent, told)
        if pid == ACME and endpoint == "event":
            assert response.json["segments"] == model.visitor(told), sent

    def _send(self, sent: Call) -> Response:
        parts = [f"d_uuid={sent.named}"] if sent.named else []
        for dpid, ident, state in sent.declared:
            parts.append(f"d_cid={dpid}%01{quote(ident)}{'' if state is None else f'%01{state}'}")
        parts += [f"{key}=1" for key in sent.signals]
        edge = self.chance.choice(self.edges)
        if sent.endpoint == "ibs":
            target, host = "/ibs:" + "&".join(parts), self.chance.choice(("dpm", HOSTS[sent.pid]))
        elif sent.endpoint == "id":
            target, host = "/id?" + "&".join(parts), HOSTS[sent.pid]
        else:
            target, host = "/event?d_rtbd=json&d_cts=2&" + "&".join(parts), HOSTS[sent.pid]
        return self.house.call(target, host=host, cookie=sent.cookie, edge=edge)

    def opt_out(self) -> None:
        chance, model = self.chance, self.model
        uuid = chance.choice(self.devices)
        if chance.random() < 0.2:
            self.house.call("/demoptout.jpg", host="www", cookie=uuid)
            model.opt_out(PLATFORM, None, uuid, ())
            return
        pid = chance.choice((ACME, BOLT))
        declared = [(dpid, self.ident(dpid)) for dpid in OWN[pid][:1] if chance.random() < 0.6]
        named, cookie = chance.choice(((uuid, None), (None, uuid)))
        parts = [f"d_cid={dpid}%01{quote(ident)}" for dpid, ident in declared]
        parts += [f"d_uuid={named}"] if named else []
        self.house.call("/demoptout?" + "&".join(parts), host=HOSTS[pid], cookie=cookie)
        model.opt_out(pid, named, cookie, declared)

    def file(self) -> None:
        chance, model = self.chance, self.model
        self.names += 1
        kind = chance.choice(("sync", "customers", "cookies", "devices"))
        dpid = {"sync": chance.choice((CRM, WEB)), "customers": CRM, "cookies": WEB, "devices": 0}[kind]
        many = range(chance.randrange(1, 4))
        if kind == "sync":
            # an ID that opted out is another rule's business
            rows = {
                (uuid, ident): None
                for uuid, ident in ((chance.choice(self.devices), self.ident(dpid)) for _ in many)
                if not model.state.is_out(ACME, (0, uuid)) and not model.state.is_out(ACME, (dpid, ident))
            }
            name = f"adobe_id_0_{dpid}_{self.names}.sync"
        elif kind == "devices":
            called = sorted({event.uuid for event in model.events if isinstance(event, calls.Said)})
            rows = {(uuid, "10"): None for uuid in called if chance.random() < 0.2}
            name = f"ftp_dpm_0_{WEB}_{self.names}.sync"
        else:
            rows = {(self.ident(dpid), "tier=gold" if dpid == CRM else "10"): None for _ in many}
            name = f"ftp_dpm_{dpid}_{self.names}.sync"
        if not rows:
            return
        (receipt,) = self.house.drop([(name, "".join(f"{one}\t{two}\n" for one, two in rows).encode())])
        assert receipt["status"] == "processed", receipt
        self.jobs.append(receipt["job"])
        model.add(File(model.now, kind == "sync", dpid, tuple(rows)))

    # ---- looking -------------------------------------------------------------------------------------------------

    def compare(self, *, judged: bool = False) -> None:
        """Everything that calls and files came to. ``judged``: everybody was judged just now (QL-904)."""
        with Lease(self.site) as lease:
            applier = Applier(self.site)
            applier.upkeep(lease)
            if judged:
                applier.daily(lease)
        state = self.model.state
        inquiry = Inquiry(self.site)
        _, world = self.site.current()

        def names(dpid: int, ordinals: Any) -> set[str]:
            return {world.ids(dpid).name(int(ordinal)).decode() for ordinal in ordinals}

        assert names(DEVICES, world.provisional()) == state.unsure
        for pid in (ACME, BOLT):
            for dpid in (DEVICES, CRM, BOLT_CRM):
                out = {who[1] for one, who in state.out if one in (pid, PLATFORM) and who[0] == dpid}
                # devices that were made to be opted out are nobody's
                assert out <= names(dpid, world.opted_out(pid, dpid)), (pid, dpid)
        found = members(self.site)
        for segment in SEGMENTS:
            if segment.timed and not judged:
                continue
            inside = {
                (dpid, name)
                for dpid in (DEVICES, CRM, BOLT_CRM)
                for name in found.get(f"members/{dpid}/{segment.sid}", ())
                if dpid or name not in state.unsure
            }
            assert inside == self.model.members(segment), segment.sid
        for uuid in sorted(state.known):
            self._compare(inquiry, (0, uuid), uuid)
            ordinal = np.array([world.ids(DEVICES).find_one(*key(uuid.encode(), self.site.seeds))], np.uint32)
            for dpid in calls.CUSTOMERS:
                (last,) = world.links(dpid).newest_customers(ordinal)
                told = None if last < 0 else (dpid, world.ids(dpid).name(int(last)).decode())
                assert told == state.last_authenticated(uuid, dpid), (uuid, dpid)
        for who in sorted({one for one, _ in state.stays if one[0]}):
            self._compare(inquiry, who, f"{who[0]}:{who[1]}")
        for who in sorted({one for one, _ in state.links if one[0] in (WEB, BOLT_WEB, IDFA)}):
            assert inquiry.profile(f"{who[0]}:{who[1]}")["uuid"] == state.newest(who), who

    def _compare(self, inquiry: Inquiry, who: Id, text: str) -> None:
        state, now = self.model.state, self.model.now
        alive = state.alive(who, now)
        try:
            document = inquiry.profile(text)
        except InputError:
            assert not alive, text
            return
        told = {one["sid"]: one["frequency"] for one in document["traits"]}
        # a trait that files give has no count (QL-815)
        fixed = calls.BY_FILE.values()
        assert told == {sid: 1 if sid in fixed else stay.days.total() for sid, stay in alive.items()}, text
        times = {sid: stay[:2] for sid, stay in plain_profile(document)["traits"].items()}
        assert times == {sid: (stay.first, stay.last) for sid, stay in alive.items()}, text
        if who[0] == 0:
            synced = {(one["data_source"], one["id"]): one["last_sync"] for one in document["ids"]}
            links = {pair: link for (pair, uuid), link in state.links.items() if uuid == who[1]}
            assert synced == {pair: link.at.strftime("%Y-%m-%dT%H:%M:%SZ") for pair, link in links.items()}, text


@pytest.mark.rule("RT-003", "RT-303", "RT-306", "RT-308", "RT-309", "RT-310", "RT-604", "RT-605", "RT-609", "RT-1507")
@pytest.mark.rule("QL-905", "QL-501", "QL-512", "QL-812", "QL-1002", "QL-1005", "QL-1112", "RT-1508", "IN-55", "RT-302")
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 60))])
def test_histories_of_calls_and_files(seed: int, tmp_path: Path) -> None:
    history = History(seed, tmp_path)
    try:
        for number in range(1, 51):
            history.step()
            if number % 15 == 0:
                history.compare(judged=number % 30 == 0)
        history.compare(judged=True)
        history.house.run("check", "--no-repair")
    finally:
        history.close()
