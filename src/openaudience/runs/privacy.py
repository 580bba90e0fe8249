"""Requests of people about their data: what is known of an ID, and its deletion (RT-1901 … RT-1908)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from pyroaring import BitMap

from openaudience.calls.model import PLATFORM, Call, OptOut, Origin
from openaudience.calls.store import View
from openaudience.catalog.facade import Partner
from openaudience.errors import InputError
from openaudience.identity.ecid import to_uuid
from openaudience.identity.formats import aam_reason, daid_reason
from openaudience.identity.keys import key
from openaudience.runs.applier import Applier
from openaudience.runs.departures import Departure, Departures
from openaudience.runs.erasing import DELETED, Owed, awaited, erase
from openaudience.runs.inquiry import Inquiry
from openaudience.runs.site import Lease, Site
from openaudience.runs.world import DEVICES, EVERYBODY, World
from openaudience.vocabulary import GLOBAL_CODES, GLOBAL_SOURCES, DataSource, IdKind

OURS = "AudienceManager"
"""What a request includes if it is meant for us (RT-1904)."""
ECID_NAMESPACE = "4"
ACTIONS = ("access", "delete")
"""In the order in which they are done."""
MOST_DEVICES = 100
"""Devices that are deleted with an ID that is mapped to them (RT-1907)."""


class Context(msgspec.Struct):
    """Whose request it is: ``namespace`` imsOrgID, ``value`` the organisation of a partner."""

    namespace: str
    value: str


class UserId(msgspec.Struct):
    """An ID by which somebody is known (RT-1901 … RT-1903)."""

    namespace: str | int
    type: str
    value: str


class User(msgspec.Struct):
    """One person of a request; ``key`` is the caller's name for them."""

    key: str = ""
    action: list[str] = msgspec.field(default_factory=list)
    user_ids: list[UserId] = msgspec.field(default_factory=list, name="userIDs")


class Request(msgspec.Struct):
    """A request as it is sent; what else it holds is passed over."""

    contexts: list[Context] = msgspec.field(name="companyContexts")
    users: list[User]
    include: list[str]
    regulation: str | list[str]

    @property
    def law(self) -> str:
        """``gdpr`` or ``ccpa``; the published samples write it in brackets. Raises InputError for any other."""
        said = " ".join(self.regulation) if isinstance(self.regulation, list) else self.regulation
        found = re.search(r"\b(gdpr|ccpa)\b", said.lower())
        if found is None:
            raise InputError(f"regulation: {said!r} is none that is known; write gdpr or ccpa")
        return found.group(1)


def read_request(text: str) -> Request:
    """The request in a file (RT-1904). Lines before it that begin with ``//`` are comments. Raises InputError."""
    lines = text.removeprefix("\ufeff").splitlines()
    while lines and (not lines[0].strip() or lines[0].lstrip().startswith("//")):
        lines.pop(0)
    try:
        request = msgspec.json.decode("\n".join(lines).encode(), type=Request)
    except msgspec.DecodeError as error:
        raise InputError(f"no privacy request: {error}; write it as in the operator's guide") from None
    _ = request.law
    return request


def carry_out(site: Site, request: Request, owed: Callable[[], Owed]) -> dict[str, Any]:
    """Answers a request: for each ID what was found and deleted, or why it failed; the others go on.

    ``owed`` is asked after the deletions which destinations have to hear of them first (``erasing``). The document
    says in ``erased`` what went from which store, null while something waits.
    """
    document: dict[str, Any] = {"regulation": request.law, "users": [], "deleted": None, "erased": None}
    if OURS not in request.include:
        # not for us: left alone
        return document
    with Lease(site) as lease:
        applier = Applier(site)
        applier.settler.tidy()
        applier.work(lease)
        look = Inquiry(site)
        subjects = Subjects(look, request.contexts)
        deletions: list[Subject] = []
        for user in request.users:
            shown: list[dict[str, Any]] = []
            document["users"].append({"key": user.key, "action": user.action, "ids": shown})
            for one in user.user_ids:
                entry: dict[str, Any] = {"namespace": one.namespace, "type": one.type, "value": one.value}
                shown.append(entry)
                try:
                    _check(user.action)
                    subject = subjects.of(one)
                except InputError as refused:
                    entry |= {"status": "failed", "error": str(refused)}
                    continue
                entry["status"] = "done"
                if "access" in user.action:
                    entry["access"] = subject.access()
                if "delete" in user.action:
                    deletions.append(subject)
        if deletions and site.beta:
            document["deleted"], document["erased"] = _delete_calls(site, deletions)
        elif deletions:
            document["deleted"] = _delete(site, applier, lease, deletions)
            counts = erase(site, applier, lease, owed())
            document["erased"] = None if awaited(site) else counts
    return document


def _check(actions: list[str]) -> None:
    strange = [action for action in actions if action not in ACTIONS]
    if strange or not actions:
        raise InputError(f"action: {', '.join(strange) or 'nothing'} is not possible; write access, delete or both")


# ---- whom a request means ------------------------------------------------------------------------------------------


class Subjects:
    """Finds whom the IDs of a request mean, as the partner behind it may ask."""

    def __init__(self, look: Inquiry, contexts: list[Context]) -> None:
        self._look = look
        self._organisations = [one.value for one in contexts if one.namespace == "imsOrgID"]

    @cached_property
    def _partner(self) -> Partner | None:
        found = {one.org_id: one for one in self._look.site.catalog.partners() if one.org_id}
        return next((found[one] for one in self._organisations if one in found), None)

    @cached_property
    def _codes(self) -> dict[str, int]:
        # an inactive one may have the code of an active one, which then is the one meant (RT-107)
        documents = sorted(
            self._look.site.catalog.data_source_documents(), key=lambda one: one.get("status") == "ACTIVE"
        )
        codes = {one.get("integrationCode"): one["dataSourceId"] for one in documents if self._may(one["dataSourceId"])}
        return {code: dpid for code, dpid in codes.items() if code} | GLOBAL_CODES

    def _may(self, dpid: int) -> bool:
        partner, source = self._partner, self._look.sources.get(dpid)
        return partner is not None and source is not None and (source.pid in (0, partner.pid) or dpid in partner.access)

    def of(self, one: UserId) -> Subject:
        """Raises InputError for an unknown organisation, type or namespace, and for an ID that cannot be one."""
        partner = self._partner
        if partner is None:
            named = ", ".join(self._organisations) or "nobody"
            raise InputError(f"organisation {named} is that of no partner; set orgId of a partner in the workspace")
        namespace = str(one.namespace)
        match one.type:
            case "namespaceId" if namespace == str(DEVICES):
                return self._device(partner, one.value)
            case "namespaceId" if namespace == ECID_NAMESPACE:
                return self._ecid(partner, one.value)
            case "namespaceId" if namespace.isascii() and namespace.isdigit():
                return self._declared(partner, int(namespace), one.value)
            case "standard" if namespace.upper() == "CORE":
                return self._device(partner, one.value)
            case "standard" if namespace.upper() == "ECID":
                return self._ecid(partner, one.value)
            case "integrationCode" if namespace in self._codes:
                return self._declared(partner, self._codes[namespace], one.value)
            case "namespaceId" | "standard" | "integrationCode":
                raise InputError(f"namespace {namespace!r} of type {one.type} is unknown")
        raise InputError(f"type {one.type!r} is unknown; write namespaceId, standard or integrationCode")

    def _device(self, partner: Partner, uuid: str) -> Subject:
        if aam_reason(uuid) is not None:
            raise InputError("this is no device ID; write its 38 digits")
        return Subject(self._look, partner, None, uuid)

    def _ecid(self, partner: Partner, ecid: str) -> Subject:
        if aam_reason(ecid) is not None:
            raise InputError("this is no Experience Cloud ID; write its 38 digits")
        return Subject(self._look, partner, None, to_uuid(partner.org_id or "", ecid))

    def _declared(self, partner: Partner, dpid: int, ident: str) -> Subject:
        source = self._look.sources.get(dpid)
        if source is None or not self._may(dpid):
            raise InputError(f"data source {dpid} is none of {partner.name}")
        if source.kind is IdKind.UUID:
            return self._device(partner, ident)
        if source.kind is IdKind.ECID:
            return self._ecid(partner, ident)
        if not ident:
            raise InputError("the ID is empty")
        if dpid in GLOBAL_SOURCES and daid_reason(dpid, ident) is not None:
            raise InputError(
                f"this is no ID of data source {dpid}, {GLOBAL_SOURCES[dpid]}; write it as the device does"
            )
        return Subject(self._look, partner, source, ident)


@dataclass(frozen=True)
class Subject:
    """Somebody by an ID: a device (``source`` None, ``ident`` its UUID) or an ID of a data source."""

    look: Inquiry
    partner: Partner
    source: DataSource | None
    ident: str

    @property
    def namespace(self) -> int:
        return DEVICES if self.source is None else self.source.dpid

    def ordinal(self, world: World) -> int:
        """−1 if nothing ever named the ID."""
        return world.ids(self.namespace).find_one(*key(self.ident.encode(), self.look.site.seeds))

    @cached_property
    def devices(self) -> list[int]:
        """The device, or those that the ID is mapped to, the newest mapping first; of these at most 100."""
        world = self.look.world
        ordinal = self.ordinal(world)
        if ordinal < 0:
            return []
        if self.source is None:
            return [ordinal] if ordinal in world.known() or ordinal in world.provisional() else []
        _, devices, last = world.links(self.source.dpid).devices(np.array([ordinal], np.uint32))
        found: list[int] = devices[np.argsort(-np.asarray(last), kind="stable")].tolist()
        return found[:MOST_DEVICES]

    # ---- access ----------------------------------------------------------------------------------------------

    def access(self) -> dict[str, Any]:
        """What is known of the ID (RT-1906). Of other people's IDs nothing but that they are mapped to it."""
        uuids = [name.decode() for name in self.look.world.ids(DEVICES).names(np.array(self.devices, np.int64))]
        customer = self.source is not None and self.source.kind is IdKind.CROSS_DEVICE
        own = self._known(f"{self.namespace}:{self.ident}") if customer else None
        if customer:
            profiles = [] if own is None else [own]
        else:
            profiles = [found for uuid in uuids if (found := self._known(uuid)) is not None]
        if self.source is None:
            mapped = [one for found in profiles for one in found["ids"] if self._visible(one["data_source"])]
        else:
            mapped = [{"data_source": DEVICES, "id": uuid} for uuid in uuids]
            mapped += [one for one in (own or {"ids": []})["ids"] if one["data_source"] != self.namespace]
        return {
            "mapped_ids": mapped,
            "profiles": [self._shown(found, customer) for found in profiles],
            "opted_out": self._opted_out(),
        }

    def _known(self, text: str) -> dict[str, Any] | None:
        try:
            return self.look.profile(text)
        except InputError:
            return None

    def _visible(self, dpid: int) -> bool:
        source = self.look.sources.get(dpid)
        return source is not None and (source.pid in (0, self.partner.pid) or dpid in self.partner.access)

    def _shown(self, found: Mapping[str, Any], customer: bool) -> dict[str, Any]:
        """The partner's own traits and segments of a profile."""
        traits, segments = self.look.traits, self.look.audiences.segments
        names = ("sid", "name", "first_realized", "last_realized", "frequency")
        return {
            "uuid": None if customer else found["uuid"],
            "traits": [
                {**{name: one[name] for name in names}, "data_source": traits[one["sid"]].dpid}
                for one in found["traits"]
                if traits[one["sid"]].pid == self.partner.pid
            ],
            "segments": [one for one in found["memberships"] if segments[one["sid"]].pid == self.partner.pid],
        }

    def _opted_out(self) -> dict[str, bool]:
        world, ordinal = self.look.world, self.ordinal(self.look.world)
        return {
            "for_partner": ordinal >= 0 and ordinal in world.opted_out(self.partner.pid, self.namespace),
            "for_all": ordinal >= 0 and ordinal in world.opted_out(EVERYBODY, self.namespace),
        }


# ---- deletion ------------------------------------------------------------------------------------------------------


def _delete(site: Site, applier: Applier, lease: Lease, subjects: list[Subject]) -> dict[str, int]:
    """Opts out, takes out of all segments, wipes and unlinks; gives how many of what.

    Whoever is deleted is opted out for all partners: the text of the ID will be erased, and no one could use it again.
    """
    world = subjects[0].look.world
    ids: dict[tuple[int, str], None] = {}
    for subject in subjects:
        ids[subject.namespace, subject.ident] = None
        for uuid in world.ids(DEVICES).names(np.array(subject.devices, np.int64)):
            ids[DEVICES, uuid.decode()] = None
    # the way of every opt-out: at once for all who ask the edge store, by the drain for everything else
    (failure,) = site.calls.group([lambda view: (_optout(site, ids), None)])
    if failure is not None:
        raise failure
    applier.drain(lease)
    _, world = site.current()
    gone: dict[int, BitMap] = {}
    for namespace, ident in ids:
        ordinal = world.ids(namespace).find_one(*key(ident.encode(), site.seeds))
        gone.setdefault(namespace, BitMap()).add(ordinal)
    mappings = Departures(applier).carry_out(lease, Departure(gone), "deletion", event=DELETED)
    return {
        "devices": len(gone.pop(DEVICES, BitMap())),
        "ids": sum(map(len, gone.values())),
        "mappings": mappings,
    }


def _delete_calls(site: Site, subjects: list[Subject]) -> tuple[dict[str, int], dict[str, int]]:
    """A deletion in beta, where nothing but calls says anything of anybody: opts out and takes the IDs out of them."""

    def decide(view: View) -> tuple[Call, dict[tuple[int, str], None]]:
        ids: dict[tuple[int, str], None] = {}
        for one in subjects:
            ids[one.namespace, one.ident] = None
            mapped = (
                call.uuid
                for call in reversed(view.calls_of(one.namespace, one.ident, 0))
                if call.uuid and any((pair.dpid, pair.id) == (one.namespace, one.ident) for pair in call.pairs)
            )
            ids.update(((DEVICES, uuid), None) for uuid in list(dict.fromkeys(mapped))[:MOST_DEVICES])
        return _optout(site, ids), ids

    (ids,) = site.calls.group([decide])
    if isinstance(ids, Exception):
        raise ids
    devices = sum(namespace == DEVICES for namespace, _ in ids)
    return {"devices": devices, "ids": len(ids) - devices}, {"calls": site.calls.forget(ids)}


def _optout(site: Site, ids: Iterable[tuple[int, str]]) -> Call:
    optouts = tuple(OptOut(PLATFORM, namespace, ident) for namespace, ident in ids)
    return Call(site.now(), None, "", False, Origin.ID, optouts=optouts)
