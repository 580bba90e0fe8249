"""One call from its request to its answer, in the order of RT-501.

``Room`` is one environment: what is configured there, its index and its log. ``Room.begin`` reads a call and decides
all that needs no look at anybody's data; what is left, if the call did not stop, is a ``Work`` for the edge store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from openaudience.calls.model import Call, Origin, Pair, Realized
from openaudience.calls.store import View, Work
from openaudience.clock import Clock
from openaudience.config import Settings
from openaudience.edge import answers, codes, optouts, redirects
from openaudience.edge.addresses import referer_allowed
from openaudience.edge.answers import NOTARGET, OPT_OUT_SECONDS, Answer, Header
from openaudience.edge.codes import Fault
from openaudience.edge.consent import Consent
from openaudience.edge.declared import DeclaredId, declared, owner_of_first
from openaudience.edge.limiting import DenyList
from openaudience.edge.partners import Partner, Partners, Source
from openaudience.edge.published import Published, Reader
from openaudience.edge.record import realized, record
from openaudience.edge.request import Request, number
from openaudience.edge.visit import Place, Stop, Visit, new_uuid
from openaudience.errors import OpenAudienceError
from openaudience.identity import ecid
from openaudience.runs.site import Site
from openaudience.vocabulary import SHARED_HOSTS, IdKind

_AAM_ID = re.compile(r"[0-9]{38}\Z")
_COOKIE = re.compile(r"(?:^|;)\s*demdex=([^;]*)")
_ORIGINS = {"event": Origin.EVENT, "ibs": Origin.IBS, "id": Origin.ID, "optout": Origin.EVENT}

MOST_HOSTS = 1_000
"""Hosts to which redirects were refused that are counted, each by itself."""

Finish = Callable[[], Answer]


@dataclass(frozen=True, slots=True)
class Begun:
    """A call of which everything is decided that needs nobody's data. ``work`` None: nothing else is to be decided.

    ``finish`` gives the answer after the work; ``failed`` the one to give where anything went wrong.
    """

    visit: Visit
    work: Work[None] | None
    finish: Finish
    failed: Finish


class Room:
    """One environment. ``redirects_refused``: counts by host for the operator (RT-705)."""

    def __init__(self, site: Site, settings: Settings, consent: Consent, clock: Clock) -> None:
        self.site = site
        self.settings = settings.edge
        self.reader = Reader(site)
        self.deny = DenyList(settings.edge, site.calls, clock)
        self._consent = consent
        self.redirects_refused: dict[str, int] = {}
        self.colons = 0

    def begin(
        self,
        request: Request,
        headers: Mapping[str, str],
        place: Place,
        secure: bool,
        now: datetime,
        published: Published,
    ) -> Begun:
        """Steps 2 to 8 of RT-501.

        Whatever is wrong with what was sent is a fault in the answer. What it raises all the same is a fault of the
        program, or StoreUnavailable: for whoever calls to answer (RT-1400).
        """
        visit = Visit(request, headers, place, secure, now, published, answers.new_tid())
        try:
            self._partner(visit)
            if request.malformed:
                raise visit.stop(codes.invalid_parameters())
            self._check_referer(visit)
            self._read_cookie(visit)
            if request.endpoint == "optout":
                return self._opt_out(visit)
            self._judge_consent(visit)
            self._read_device(visit)
            self._declare(visit)
            if self._provider_match(visit):
                visit.faults = [fault for fault in visit.faults if fault not in visit.declared.faults]
            elif visit.declared.no_survivor and request.endpoint != "id" and not (visit.named or visit.cookie):
                raise visit.stop(codes.no_valid_id())
            if request.endpoint == "event":
                self._match(visit)
        except Stop:
            if visit.verdict.refused and self._refusal_counts(visit):
                return self._refused(visit)
            return self._begun(visit, None)

        def work(view: View) -> tuple[Call | None, None]:
            return self._decide(visit, view), None

        return self._begun(visit, work, self._answer)

    def whose(self, request: Request, place: Place, partners: Partners) -> Partner | None:
        """The partner of a call: the host alone selects it (RT-001); on hosts that are nobody's the organisation
        does, else the first declared ID (RT-514)."""
        own = self._of_host(place, partners)
        return own or partners.by_org.get(request.first("d_orgid") or "") or owner_of_first(request, partners)

    def _of_host(self, place: Place, partners: Partners) -> Partner | None:
        if place.label in SHARED_HOSTS:
            return None
        return partners.by_alias.get(place.label or "") or partners.by_alias.get(self.settings.default_partner.lower())

    def _begun(self, visit: Visit, work: Work[None] | None, answer: Callable[[Visit], Answer] | None = None) -> Begun:
        """``answer`` None: that of a call that stopped."""
        finish = partial(self._counted, answer or self._stopped, visit)
        return Begun(visit, work, finish, partial(self._counted, self._failed, visit))

    def _counted(self, answer: Callable[[Visit], Answer], visit: Visit) -> Answer:
        """An answer, after which the call counts for the operator: once, however often it was decided."""
        found = answer(visit)
        self.colons += visit.declared.colons
        host = visit.refused_host
        if host is not None and (host in self.redirects_refused or len(self.redirects_refused) < MOST_HOSTS):
            self.redirects_refused[host] = self.redirects_refused.get(host, 0) + 1
        return found

    # ---- steps 2 to 8 ------------------------------------------------------------------------------------------

    def _partner(self, visit: Visit) -> None:
        """RT-514."""
        request, place, partners = visit.request, visit.place, visit.published.partners
        if not place.host:
            raise visit.stop(codes.no_host())
        # anybody's host will do for a sync (RT-707)
        if place.label not in SHARED_HOSTS and request.endpoint != "ibs" and not self._of_host(place, partners):
            raise visit.stop(codes.unknown_host(place.host))
        if request.endpoint == "optout" and place.label == "www":
            return  # whatever else the call names is of no account (RT-1501)
        visit.partner = self.whose(request, place, partners)
        org = request.first("d_orgid")
        if org and org not in partners.by_org:
            raise visit.stop(codes.unknown_organisation(org))
        visit.concerned = visit.partner
        if request.endpoint == "ibs":
            visit.concerned = self._owner(visit) or visit.partner

    def _owner(self, visit: Visit) -> Partner | None:
        """The partner concerned in a sync: who owns the first data source that it names (RT-707)."""
        partners = visit.published.partners
        owner = owner_of_first(visit.request, partners, visit.partner)
        if owner is None and (source := self._provider(visit)) is not None:
            owner = partners.partners.get(source.pid)
        return owner

    @staticmethod
    def _check_referer(visit: Visit) -> None:
        """RT-1408."""
        partner, referer = visit.concerned, visit.headers.get("referer")
        if partner is not None and not referer_allowed(referer, partner.referer_hosts):
            raise visit.stop(codes.referer_refused(codes.safe(referer or ""), partner.pid))

    def _read_cookie(self, visit: Visit) -> None:
        """RT-603, RT-608, RT-1511."""
        values = [value.strip(' "') for value in _COOKIE.findall(visit.headers.get("cookie", ""))]
        visit.marked = NOTARGET in values  # also where a browser holds two cookies of this name
        if visit.marked and visit.request.endpoint != "optout":
            raise visit.stop(codes.opted_out(NOTARGET))
        if not self._childlike(visit):
            visit.cookie = next((value for value in values if _AAM_ID.match(value)), None)

    @staticmethod
    def _childlike(visit: Visit) -> bool:
        """Cookies are neither read nor set (RT-608); only to opt out is everybody's right."""
        return visit.request.first("d_coppa") == "true" and visit.request.endpoint != "optout"

    def _judge_consent(self, visit: Visit) -> None:
        """Section 18; 313 and 314 let the call go on."""
        request = visit.request
        if request.first("gdpr") is None:
            return
        visit.verdict = self._consent.judge(request.first("gdpr"), request.first("gdpr_consent"), visit.now)
        makers = {313: codes.cmp_unknown, 314: codes.cmp_deleted, 315: codes.no_consent}
        faults = [makers[code]() for code in visit.verdict.faults]
        if visit.verdict.dropped:
            raise visit.stop(*faults)
        visit.faults += faults

    def _read_device(self, visit: Visit) -> None:
        """``d_uuid`` and ``d_mid``; both are checked before the call stops (RT-501 step 7)."""
        uuid, mid = visit.request.first("d_uuid"), visit.request.first("d_mid")
        wrong: list[Fault] = []
        if mid is not None:
            if _AAM_ID.match(mid) and visit.organisation:
                visit.named = ecid.to_uuid(visit.organisation, mid)
            else:
                wrong.append(codes.invalid_ecid(mid))
        if uuid is not None:
            if _AAM_ID.match(uuid):
                visit.named = uuid
            else:
                # the message of the UUID comes second in the documents' example as well (RT-511)
                wrong.append(codes.invalid_uuid(uuid))
        if wrong:
            raise visit.stop(*wrong)

    def _declare(self, visit: Visit, *, opting_out: bool = False) -> None:
        """``opting_out``: the deny list is not asked, as it takes nobody's right to be left alone."""
        visit.declared = declared(
            visit.request,
            visit.published.partners,
            visit.partner,
            self.settings,
            lambda source: self.deny.source(source.dpid, source.code),
            lambda source, id: not opting_out and self._denied(visit, source.dpid, id),
        )
        visit.faults += visit.declared.faults

    def _provider_match(self, visit: Visit) -> bool:
        """Whether a data provider asks for the device's ID alone (RT-712)."""
        request, wanted = visit.request, visit.request.first("redir")
        names = ("dpuuid", "d_dpuuid", "d_cid", "d_cid_ic")
        if request.endpoint != "ibs" or not wanted or any(request.first(name) is not None for name in names):
            return False
        source = self._provider(visit)
        if source is None:
            return False
        if redirects.allowed(wanted, source.redirect_hosts) is None:
            visit.refused_host = redirects.host(wanted)
            return False
        visit.asking = source
        return True

    def _provider(self, visit: Visit) -> Source | None:
        """The data source that ``dpid`` names alone."""
        numbers = visit.request.all("dpid") + visit.request.all("d_dpid")
        dpid = number(numbers[0]) if len(numbers) == 1 else None
        source = None if dpid is None else visit.published.partners.sources.get(dpid)
        if source is None or not source.active or self.deny.source(source.dpid, source.code):
            return None
        return source

    def _match(self, visit: Visit) -> None:
        """Rules are matched before the transaction (design 2.7)."""
        try:
            found = record(visit.request, visit.headers, visit.partner)
            visit.traits, visit.sent = realized(found, visit.request, visit.partner, visit.published.partners)
        except (ArithmeticError, LookupError, RuntimeError, ValueError):
            visit.faults.append(codes.traits_failed())

    # ---- steps 9 to 11 -----------------------------------------------------------------------------------------

    def _pid(self, visit: Visit) -> int | None:
        """The partner concerned: of a sync, the owner of the data source (RT-707)."""
        if visit.request.endpoint == "ibs":
            for one in visit.declared.ids:
                if one.source.pid:
                    return one.source.pid
        return None if visit.concerned is None else visit.concerned.pid

    def _decide(self, visit: Visit, view: View) -> Call | None:
        """Inside the transaction: the device, opt-outs, what is stored (RT-501, steps 9 to 11)."""
        request = visit.request
        sync = request.endpoint == "ibs"
        try:
            self._drop_denied(visit, view)
            ids = visit.declared.ids
            pid = self._pid(visit)
            uuid, presented = self._device(visit, view, ids, sync)
            if uuid not in ("", visit.named, visit.cookie) and self._denied(visit, 0, uuid, view):
                raise visit.stop(codes.blocked_profile(uuid, only=True))
            fresh = not uuid
            if fresh:
                uuid, presented = new_uuid(), sync or any(one.source.kind is IdKind.DAID for one in ids)
            self._check_optouts(visit, view, pid, "" if fresh else uuid, ids)
        except Stop:
            return None
        visit.uuid = uuid
        customers = tuple(
            Pair(one.source.dpid, one.id, 1) for one in ids if one.state == 1 and one.source.authenticated
        )
        call = Call(
            at=int(visit.now.timestamp()),
            pid=pid,
            uuid=uuid,
            presented=presented,
            origin=_ORIGINS[request.endpoint or "event"],
            pairs=tuple(
                Pair(one.source.dpid, one.id, None if one.source.kind is IdKind.DAID else one.state) for one in ids
            ),
            realized=tuple(
                Realized(sid, *where)
                for sid in visit.traits
                for where in ([(one.dpid, one.id) for one in customers] or [(0, "")])
            ),
            sent=tuple(visit.sent),
            customers=customers,
            tid=visit.tid,
        )
        if self.wants_segments(visit):
            self._segment(visit, view, call)
        return call

    def _drop_denied(self, visit: Visit, view: View) -> None:
        """Step 9: the others go on; without any the call stops (RT-1602, RT-1603, RT-1426, RT-1427)."""
        kept: list[DeclaredId] = []
        devices = list(visit.declared.denied)
        for one in visit.declared.ids:
            # another process may have put it on the list since
            if not self._denied(visit, one.source.dpid, one.id, view):
                kept.append(one)
            elif one.source.kind is IdKind.DAID:
                devices.append(one)
            else:
                visit.faults.append(codes.blocked_id(one.shown))
        only = not kept and not visit.named and not visit.cookie
        blocked = [codes.blocked_device(one.shown, only=only) for one in devices]
        if only and devices:
            raise visit.stop(*blocked)
        visit.faults += blocked
        if only and visit.declared.ids and visit.request.endpoint != "id":
            raise visit.stop(codes.no_valid_id())
        visit.declared.ids = kept
        if visit.named and self._denied(visit, 0, visit.named, view):
            fault = codes.blocked_device(visit.named, only=not kept and not visit.cookie)
            if fault.stops:
                raise visit.stop(fault)
            visit.faults.append(fault)
            visit.named = None
        if visit.cookie and not visit.named and self._denied(visit, 0, visit.cookie, view):
            fault = codes.blocked_profile(visit.cookie, only=not kept)
            if fault.stops:
                raise visit.stop(fault)
            visit.faults.append(fault)
            visit.cookie = None

    def _denied(self, visit: Visit, dpid: int, id: str, view: View | None = None) -> bool:
        """Whether an ID (``dpid`` 0: a device) is on the deny list, by the store as well where there is a view of it.

        A call counts once for each of its IDs, also where it names one twice, or is decided again because an index
        was published meanwhile (RT-1601).
        """
        said, name = visit.request.denied, (dpid, id)
        if name not in said:
            said[name] = self.deny.seen(dpid, id)
        if not said[name] and view is not None and view.denied(dpid, id):
            self.deny.refused(dpid, id)
            said[name] = True
        return said[name]

    def _device(self, visit: Visit, view: View, ids: list[DeclaredId], sync: bool) -> tuple[str, bool]:
        """The device of a call and whether the call presented it (RT-604, RT-605, RT-609); ('', …): a new one."""
        if visit.named:
            return visit.named, True
        if visit.cookie:
            return visit.cookie, True
        for one in ids:
            if one.source.kind is IdKind.DAID:
                uuid = visit.published.device_of(view, one.source.dpid, one.id)
                if uuid:
                    return uuid, True
        if not sync:
            for one in ids:
                uuid = visit.published.device_of(view, one.source.dpid, one.id)
                if uuid:
                    return uuid, False
        return "", False

    def _check_optouts(self, visit: Visit, view: View, pid: int | None, uuid: str, ids: list[DeclaredId]) -> None:
        """RT-1507: an opted-out device or ID stops the call: opted out for its partner, or for the owner of an ID."""
        pids = dict.fromkeys([pid, *(one.source.pid for one in ids if one.source.pid)])
        if uuid and any(view.opted_out(one, 0, uuid) for one in pids):
            raise visit.stop(codes.opted_out(uuid))
        for one in ids:
            if any(view.opted_out(of, one.source.dpid, one.id) for of in pids):
                raise visit.stop(codes.opted_out(one.shown))

    @staticmethod
    def wants_segments(visit: Visit) -> bool:
        wanted = visit.request.first("d_cts") in ("1", "2")
        return wanted and visit.partner is not None and visit.partner.answers and visit.request.endpoint == "event"

    def _segment(self, visit: Visit, view: View, call: Call) -> None:
        assert visit.partner is not None
        after = visit.published.world.drained
        try:
            visit.segments = visit.published.visitors.segments(
                visit.partner.pid, call, lambda dpid, id: view.calls_of(dpid, id, after), call.at
            )
        except OpenAudienceError:
            visit.faults.append(codes.profile_unreadable(call.uuid))

    # ---- opt-out -----------------------------------------------------------------------------------------------

    def _opt_out(self, visit: Visit) -> Begun:
        """Section 15."""
        if visit.place.label == "www":
            return self._begun(visit, lambda _: (optouts.platform(visit), None), self._notarget)
        self._read_device(visit)
        self._declare(visit, opting_out=True)
        if visit.declared.no_survivor and not (visit.named or visit.cookie):
            raise visit.stop(codes.no_valid_id())
        if visit.concerned is None:
            raise visit.stop(codes.unknown_host(visit.place.host))
        return self._begun(visit, lambda view: (optouts.partner(visit, view), None))

    def _notarget(self, visit: Visit) -> Answer:
        """RT-1501: the browser keeps the mark, whatever it had before."""
        answer = Answer()
        for name in ("demdex", "dextp"):
            answer.headers.append(self._cookie(visit, name, NOTARGET, OPT_OUT_SECONDS))
        return answer

    def _refusal_counts(self, visit: Visit) -> bool:
        """Whether a refusal opts anybody out: where a host or an organisation says for which partner (RT-1805)."""
        if visit.concerned is None:
            return False
        return self._of_host(visit.place, visit.published.partners) is not None or bool(visit.request.first("d_orgid"))

    def _refused(self, visit: Visit) -> Begun:
        """RT-1805: every ID of the request is opted out for the partner concerned, for good."""
        faults = list(visit.faults)
        try:
            self._read_device(visit)
        except Stop:
            visit.named = None
        self._declare(visit, opting_out=True)
        visit.faults = faults
        return self._begun(visit, lambda view: (optouts.refused(visit, view), None))

    # ---- step 12 -----------------------------------------------------------------------------------------------

    def _stopped(self, visit: Visit) -> Answer:
        """Errors only; people still reach the page that they clicked for (RT-2005)."""
        request = visit.request
        if request.endpoint == "event" and not request.malformed and visit.partner is not None:
            target = self._click(visit, withheld=True)
            if target is not None:
                return answers.redirect(target)
        return answers.stopped(visit.faults, visit.tid, as_json=visit.as_json, callback=request.first("d_cb"))

    def _failed(self, visit: Visit) -> Answer:
        """RT-1400."""
        visit.faults = [codes.unspecified()]
        return self._stopped(visit)

    def _answer(self, visit: Visit) -> Answer:
        if any(fault.stops for fault in visit.faults):
            return self._stopped(visit)
        answer = self._content(visit)
        # a caller who names the device keeps the cookie of its own browser (RT-606)
        unasked = not visit.named or visit.cookie is None
        if unasked and not self._childlike(visit):
            seconds = self.settings.cookie_days * 86_400
            answer.headers.append(self._cookie(visit, "demdex", visit.uuid, seconds))
        return answer

    def _content(self, visit: Visit) -> Answer:
        request = visit.request
        if request.endpoint == "ibs":
            target = self._sync_redirect(visit)
            return Answer() if target is None else answers.redirect(target)
        if request.endpoint == "id":
            return answers.json(self._identity(visit), request.first("d_cb"))
        target = self._click(visit, withheld=False)
        if target is not None:
            return answers.redirect(target)
        return answers.json(self._document(visit), request.first("d_cb")) if visit.as_json else Answer()

    def _document(self, visit: Visit) -> dict[str, Any]:
        """Section 12."""
        request = visit.request
        document: dict[str, Any] = {"stuff": [], "uuid": visit.uuid, "dcs_region": self.settings.region}
        if request.first("d_jsonv") == "0":
            document["u"] = visit.uuid
        if request.first("d_dst") == "1":
            document["dests"] = []
        if self.wants_segments(visit):
            segments = visit.segments
            if request.first("d_cts") == "1":
                known = visit.published.partners.audiences.segments
                segments = sorted(known[sid].legacy_id or sid for sid in segments)
            document |= {"traits": visit.traits, "segments": segments}
        if visit.faults:
            document["errors"] = codes.as_json(visit.faults)
        return document | {"tid": visit.tid}

    def _identity(self, visit: Visit) -> dict[str, Any]:
        """RT-1302."""
        document: dict[str, Any] = {}
        if visit.organisation:
            document["d_mid"] = ecid.to_ecid(visit.organisation, visit.uuid)
        document |= {
            "uuid": visit.uuid,
            "dcs_region": self.settings.region,
            "id_sync_ttl": answers.SYNC_SECONDS,
        }
        if visit.faults:
            document["errors"] = codes.as_json(visit.faults)
        return document | {"tid": visit.tid}

    def _sync_redirect(self, visit: Visit) -> str | None:
        """RT-703 … RT-705, RT-712."""
        wanted = visit.request.first("redir")
        sources = [visit.asking] if visit.asking else [one.source for one in visit.declared.ids]
        if not wanted or not sources:
            return None
        for source in sources:
            target = redirects.allowed(wanted, source.redirect_hosts)
            if target is not None:
                return redirects.filled(target, visit.uuid, visit.verdict)
        visit.refused_host = redirects.host(wanted)
        return None

    def _click(self, visit: Visit, *, withheld: bool) -> str | None:
        """Section 20."""
        request = visit.request
        if request.first("d_event") != "click" or visit.partner is None:
            return None
        wanted = redirects.target(request.parameters)
        if not wanted:
            return None
        values = dict(request.parameters) | {name: request.first(name) or "" for name, _ in request.parameters}
        values.setdefault("d_region", str(self.settings.region))
        if not withheld:
            values.setdefault("d_uuid", visit.uuid)
            if visit.organisation and visit.uuid:
                values.setdefault("d_mid", ecid.to_ecid(visit.organisation, visit.uuid))
        target = redirects.click(wanted, values, visit.partner.redirect_hosts, visit.verdict, withheld=withheld)
        if target is None:
            visit.refused_host = redirects.host(wanted)
        return target

    def _cookie(self, visit: Visit, name: str, value: str, seconds: int) -> Header:
        return answers.cookie(name, value, self.settings.domain, seconds, secure=visit.secure)
