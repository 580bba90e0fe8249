"""The declared IDs of a call: which survive, and what is wrong with the others (section 8 of the specification)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from operator import itemgetter

from openaudience.config import EdgeSection
from openaudience.edge import codes
from openaudience.edge.codes import Fault
from openaudience.edge.partners import Partner, Partners, Source
from openaudience.edge.request import Request, number
from openaudience.identity.formats import daid_reason, pii
from openaudience.inbound.records import MAX_ID
from openaudience.vocabulary import IdKind

_LEGACY = (("d_dpid", "d_dpuuid"), ("dpid", "dpuuid"))
_NAMES = ("d_cid", "d_cid_ic", *(name for pair in _LEGACY for name in pair))
_SEPARATOR = re.compile("\x01|%01")
_STATES = {"0": 0, "1": 1, "2": 2}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_COLON = re.compile(":|%3[Aa]")


@dataclass(frozen=True, slots=True)
class DeclaredId:
    """A declared ID that may take part. ``state``: as sent, else the default of its source (RT-905); what section 9
    makes of it is the caller's affair (RT-906). ``shown``: as messages show it."""

    source: Source
    id: str
    state: int
    shown: str


@dataclass(slots=True)
class Declared:
    """What the declared IDs of a call come to.

    ``ids``: those that survive, each once, in request order. ``denied``: device IDs on the deny list, for which the
    caller raises 306 after asking for other IDs (RT-1426); they count as survivors here. ``count``: declared ones.
    ``no_survivor``: code 104 where the call has no device of its own (RT-807, RT-708). ``colons``: survivors that no
    file can ever name (RT-809).
    """

    ids: list[DeclaredId] = field(default_factory=list)
    denied: list[DeclaredId] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    count: int = 0
    no_survivor: bool = False
    colons: int = 0


@dataclass(slots=True)
class _Candidate:
    """One occurrence as it was sent. ``well_formed``: it has a namespace, a user ID and no state but 0, 1 or 2."""

    by_code: bool
    fields: tuple[str, ...]
    well_formed: bool
    state: int | None = None

    @property
    def shown(self) -> str:
        return codes.shown(*self.fields[:2], *(() if self.well_formed else self.fields[2:]))

    def source(self, partners: Partners, partner: Partner | None) -> Source | None:
        """The active data source that the namespace names (RT-130, RT-202, RT-808); 0 and 4 are none (RT-104)."""
        namespace = self.fields[0]
        if not self.by_code:
            dpid = number(namespace)
            found = None if dpid is None else partners.sources.get(dpid)
        else:
            found = partners.code(namespace, partner.pid if partner else None)
        return found if found is not None and found.active else None


def declared(
    request: Request,
    partners: Partners,
    partner: Partner | None,
    limits: EdgeSection,
    denied_source: Callable[[Source], bool],
    denied_id: Callable[[Source, str], bool],
) -> Declared:
    """Checks the declared IDs of a call in the order of RT-805, and lists the faults in the order of the checks.

    ``partner``: whose call it is; None on the match host without ``d_orgid``, where codes are looked up over all
    partners (RT-808) and anybody's IDs are taken, as in every ``/ibs`` call (RT-707).
    """
    candidates = list(_candidates(request))
    result = Declared(count=len(candidates))
    faults = result.faults
    if not candidates:
        if request.endpoint == "ibs":
            faults.append(codes.invalid_id(""))
            result.no_survivor = True
        return result
    if len(candidates) > limits.declared_ids:
        faults.append(codes.too_many_ids(limits.declared_ids, len(candidates)))
        faults += [codes.discarded(one.shown) for one in candidates[limits.declared_ids :]]
    user = None if request.endpoint == "ibs" else partner
    named = []
    for one in candidates[: limits.declared_ids]:
        source = one.source(partners, partner) if one.well_formed else None
        if source is None:
            faults.append(codes.invalid_id(one.shown))
        elif not partners.may_use(user, source):
            faults.append(codes.unauthorized_id(one.shown))
        elif denied_source(source):
            faults.append(codes.blocked_source(source.dpid))
        else:
            named.append((one, source))
    per_namespace: Counter[int] = Counter()
    within = []
    for one, source in named:
        per_namespace[source.dpid] += 1
        if per_namespace[source.dpid] > limits.ids_per_namespace:
            faults.append(codes.discarded_of_namespace(source.dpid, one.shown))
        else:
            within.append((one, source))
    chosen: dict[tuple[int, str], tuple[_Candidate, Source]] = {}
    for one, source in within:
        user_id = one.fields[1]
        if _unfit(source, user_id):
            faults.append(codes.invalid_id(one.shown))
        elif source.kind is IdKind.DAID and daid_reason(source.dpid, user_id):
            faults += [codes.invalid_daid(), codes.invalid_id(one.shown)]
        elif source.kind is not IdKind.DAID and denied_id(source, user_id):
            faults.append(codes.blocked_id(one.shown))
        else:
            known = chosen.setdefault((source.dpid, user_id), (one, source))[0]
            if known.state is None:
                known.state = one.state
    for one, source in chosen.values():
        survivor = DeclaredId(source, one.fields[1], source.state if one.state is None else one.state, one.shown)
        if source.kind is IdKind.DAID and denied_id(source, survivor.id):
            result.denied.append(survivor)
            continue
        result.ids.append(survivor)
        if _COLON.search(survivor.id):
            result.colons += 1
    result.no_survivor = not chosen
    return result


def owner_of_first(request: Request, partners: Partners, caller: Partner | None = None) -> Partner | None:
    """The partner of the first declared ID whose data source is known and has an owner (RT-514, RT-707).

    ``caller``: whose integration codes the call may use; None: anybody's (RT-808).
    """
    for one in _candidates(request):
        source = one.source(partners, caller) if one.well_formed else None
        if source is not None and source.pid in partners.partners:
            return partners.partners[source.pid]
    return None


def _unfit(source: Source, user_id: str) -> bool:
    """Blank, of a form that files refuse as well (IN-31), or personal data (RT-1920)."""
    return (
        not user_id
        or user_id[0].isspace()
        or user_id[-1].isspace()
        or _CONTROL.search(user_id) is not None
        or len(user_id) > MAX_ID
        or len(user_id.encode()) > MAX_ID
        or (source.guard and pii(user_id))
    )


def _candidates(request: Request) -> Iterator[_Candidate]:
    """All declared IDs: ``d_cid`` and ``d_cid_ic``, then the legacy pairs, each in request order (RT-803 … RT-805)."""
    if all(request.first(name) is None for name in _NAMES):
        return
    for name, value in request.parameters:
        if name == "d_cid" or name == "d_cid_ic":
            fields = tuple(_SEPARATOR.split(value))
            state = _STATES.get(fields[2]) if len(fields) == 3 else None
            yield _Candidate(name == "d_cid_ic", fields, len(fields) == 2 or state is not None, state)
    pairs: list[tuple[int, _Candidate]] = []
    for names in _LEGACY:
        if all(request.first(name) is None for name in names):
            continue
        namespaces, ids = (
            [(place, value) for place, (name, value) in enumerate(request.parameters) if name == wanted]
            for wanted in names
        )
        for namespace, user_id in zip_longest(namespaces, ids):
            both = [half for half in (namespace, user_id) if half is not None]
            fields = tuple("" if half is None else half[1] for half in (namespace, user_id))
            pairs.append((min(place for place, _ in both), _Candidate(False, fields, len(both) == 2)))
    for _, pair in sorted(pairs, key=itemgetter(0)):
        yield pair
