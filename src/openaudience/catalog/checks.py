"""Whether the objects of an environment, as planned, are consistent: references, rules, codes, folders, limits.

Every fault becomes a mistake at the entry of the file that brings it about. What the file does not touch is not
checked again.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from openaudience.catalog.audience_checks import check_audiences
from openaudience.catalog.automatic import FOLDER, automatic
from openaudience.catalog.document import Node, locate
from openaudience.catalog.mapping_states import State
from openaudience.catalog.objects import Entry, trait_types
from openaudience.catalog.planning import Given, Planner
from openaudience.catalog.schema import AUTOMATIC_TYPES, BY_NAME, FOLDER_TREES, Field, Kind
from openaudience.catalog.values import ADDRESS
from openaudience.config import LimitsSection
from openaudience.errors import Mistake, RuleError
from openaudience.rules.segments import parse_segment
from openaudience.rules.traits import check as check_rule
from openaudience.vocabulary import GLOBAL_CODES, SHARED_HOSTS

ADVISED_AGAINST = {",": "comma", "-": "hyphen", "–": "dash", "—": "dash", "|": "vertical bar"}

ONE_OF_A_NAME = (
    "partner",
    "customerTraitType",
    "destinationServer",
    "destinationFormat",
    "group",
    "user",
    "apiClient",
    "partnerSite",
)
"""Kinds whose names are unique; those of ``INSTALLATION_WIDE`` over all partners."""

THIRD_PARTY = "THIRD_PARTY"
"""``type`` of a data source that is not the account's own (QL-806)."""
INSTALLATION_WIDE = frozenset({"partner", "user", "apiClient"})
LONGEST_FOLDER = 255
"""Bytes of a folder's name on every usual file system."""


def check(plan: Planner, limits: LimitsSection, warnings: list[Mistake]) -> None:
    """Adds to ``plan.mistakes`` what is wrong with the whole, and to ``warnings`` what is only unwise (QL-301)."""
    state = State(plan.new)
    for given in plan.given:
        _references(plan, given)
        if given.kind.name == "partner":
            _partner(plan, given)
        elif given.kind.name == "dataSource":
            _data_source(plan, given)
        elif given.kind.name == "trait":
            _trait(plan, given, warnings)
        elif given.kind.name == "segment":
            _segment(plan, state, given, limits)
        elif given.kind.name == "user":
            _user(plan, given)
        elif given.kind.name == "dropoffUser":
            _dropoff_user(plan, given)
    _dropoff_names(plan)
    for name in ONE_OF_A_NAME:
        _unique(
            plan,
            name,
            lambda entry: (0 if entry.kind.name in INSTALLATION_WIDE else entry.pid, entry.name.casefold()),
            lambda entry: f"{entry.kind.label}: {entry.name!r} is taken; names of a {entry.kind.name} are unique",
            BY_NAME[name].label,
        )
    _unique(
        plan,
        "dataSource",
        # a code is free again once its data source is inactive, which then needs another one to come back (RT-107)
        lambda entry: (
            entry.pid,
            entry.document.get("integrationCode") if entry.document.get("status") == "ACTIVE" else None,
        ),
        lambda entry: (
            f"E_DUPLICATE_CODE: integrationCode: another active data source has {entry.document['integrationCode']!r}"
        ),
        "integrationCode",
    )
    _unique(
        plan,
        "partner",
        lambda entry: (0, entry.document.get("orgId")),
        lambda entry: f"orgId: another partner has {entry.document['orgId']!r}; an organisation is one partner",
        "orgId",
    )
    _aliases(plan)
    for name, switch in (("trait", "uniqueTraitIntegrationCodes"), ("segment", "uniqueSegmentIntegrationCodes")):
        _codes(plan, name, switch)
    for name in FOLDER_TREES:
        _folders(plan, name, limits.folder_depth)
    check_audiences(plan, limits, warnings)
    _limits(plan, limits)


def _references(plan: Planner, given: Given) -> None:
    _fields(plan, given, given.kind.fields, given.entry.document, given.node)
    mappings = given.kind.fields.get("mappings")
    if mappings is not None:
        nodes = {partial.get("sid"): node for partial, node in given.mappings}
        for mapping in given.entry.document.get("mappings", ()):
            _fields(plan, given, mappings.fields, mapping, nodes.get(mapping["sid"], given.node))


def _fields(plan: Planner, given: Given, fields: Mapping[str, Field], document: dict[str, Any], node: Node) -> None:
    for name, known in fields.items():
        value = document.get(name)
        place = node.value.get(name) or given.at(name)
        if known.type == "ref" and isinstance(value, int):
            _exists(plan, given, known, name, value, place, document)
        elif known.type == "refs" and isinstance(value, list):
            places = place.value if isinstance(place.value, list) and len(place.value) == len(value) else None
            for index, item in enumerate(value):
                _exists(plan, given, known, name, item, places[index] if places else place, document)


def _exists(
    plan: Planner, given: Given, known: Field, name: str, number: int, place: Node, document: dict[str, Any]
) -> None:
    pid = given.entry.pid
    target = known.target
    if target == "element":
        target = "trait" if document.get("traitType") == "TRAIT" else "segment"
    if number == 0 and (target in FOLDER_TREES or target in ("customerTraitType", "mergeRule")):
        return
    if number == 0 and automatic(given.entry):
        return  # the platform's own data source
    if target == "customerTraitType":
        if number not in trait_types(plan.new, pid).values():
            plan.report(place, f"{name}: there is no event type {number}")
        return
    if target == "anySource":
        if number not in (0, 4) and number not in plan.new.entries["dataSource"]:
            plan.report(place, f"{name}: there is no data source {number}")
        return
    if target == "foreignSource":
        entry = plan.new.entries["dataSource"].get(number)
        if entry is None or entry.pid in (0, pid):
            plan.report(place, f"{name}: {number} is no data source of another partner")
        return
    entry = plan.new.entries[target].get(number)
    # 0 stands for a text reference that was reported already.
    if entry is None and number == 0 and isinstance(place.value, str | list):
        return
    if entry is None or entry.pid != pid:
        plan.report(place, f"{name}: this partner has no {target} {number}; define it or correct the number")


def _partner(plan: Planner, given: Given) -> None:
    name = given.entry.document.get("name")
    # The name is a folder of the drop-off and a part of object-storage keys (IN-04, IN-05).
    if isinstance(name, str) and ("/" in name or "\\" in name or name.startswith(".") or name != name.strip()):
        plan.report(given.at("name"), f"name: {name!r} cannot name a drop-off folder; leave out / \\ and a first dot")
    elif isinstance(name, str) and len(name.encode()) > LONGEST_FOLDER:
        plan.report(
            given.at("name"), f"name: {len(name.encode())} bytes; a drop-off folder's name has at most {LONGEST_FOLDER}"
        )


def _aliases(plan: Planner) -> None:
    """Every partner has hosts of its own, and none of those that stand for all (RT-001, RT-002)."""
    holders: dict[str, list[Entry]] = {}
    aliases: set[str] = set()
    for entry in plan.new.entries["partner"].values():
        own = {alias.lower() for alias in entry.document.get("aliases") or ()}
        aliases |= own
        for host in {entry.name.lower(), *own}:
            holders.setdefault(host, []).append(entry)
    for host, entries in sorted(holders.items()):
        if host in SHARED_HOSTS:
            text = f"aliases: {host!r} is a host of all partners; choose another name or alias"
            for entry in entries:
                _report_doubles(plan, "partner", [entry, entry], lambda _, text=text: text, "aliases")  # type: ignore[misc]
        elif host in aliases:
            text = f"aliases: another partner is known by {host!r}; choose another"
            _report_doubles(plan, "partner", entries, lambda _, text=text: text, "aliases")  # type: ignore[misc]


def _data_source(plan: Planner, given: Given) -> None:
    document = given.entry.document
    code = document.get("integrationCode")
    if document.get("idType") == "CROSS_DEVICE" and not code:
        plan.report(given.at("integrationCode"), "integrationCode is missing; a CROSS_DEVICE data source needs one")
    elif code and (given.old is None or given.old.document.get("integrationCode") != code):
        fault = _code_fault(code)
        if fault:
            plan.report(given.at("integrationCode"), f"integrationCode: {fault}")
    version = document.get("marketingCloudVisitorIdVersion")
    if isinstance(version, int) and version > 0 and document.get("useAudienceManagerVisitorID"):
        plan.report(
            given.at("marketingCloudVisitorIdVersion"),
            "marketingCloudVisitorIdVersion: must be 0 together with useAudienceManagerVisitorID: true",
        )

    if given.old is not None and given.old.document.get("outboundS2S") and not document.get("outboundS2S"):
        for destination in plan.new.entries["destination"].values():
            if destination.document.get("userIdKey") == given.entry.number:
                plan.report(
                    given.at("outboundS2S"),
                    f"E_IN_USE: outboundS2S: destination {destination.number} has this data source as its key",
                )


def _code_fault(code: str) -> str:
    """What forbids a text as the integration code of a data source (RT-107, RT-130, RT-802); '' for a good one."""
    control = next((char for char in code if unicodedata.category(char) == "Cc"), None)
    if control is not None:
        return f"holds the control character U+{ord(control):04X}; remove it"
    if code.isspace():
        return "holds nothing but white space; write a code or leave it out"
    if "%01" in code:
        return "'%01' separates code and user ID in calls, so that no call could name this one; choose another"
    if code in GLOBAL_CODES:
        return f"{code!r} is the code of the global data source {GLOBAL_CODES[code]}; choose another"
    return ""


def _trait(plan: Planner, given: Given, warnings: list[Mistake]) -> None:
    document = given.entry.document
    rule = document.get("traitRule")
    if document.get("traitType") in AUTOMATIC_TYPES and given.old is not None:
        free = {"dataSourceId"} if document["traitType"] == FOLDER else set()
        changed = [name for name in document if name not in free and document[name] != given.old.document.get(name)]
        if changed:
            plan.report(
                given.at(changed[0]), f"{changed[0]}: trait {given.entry.number} is kept by the platform itself"
            )
        return
    if document.get("traitType") == "RULE_BASED_TRAIT" and not rule:
        plan.report(given.at("traitRule"), "E_EMPTY: traitRule is missing; a RULE_BASED_TRAIT needs one")
    elif rule and (given.old is None or given.old.document.get("traitRule") != rule):
        _rule(plan, given, warnings)
    if document.get("categoryId"):
        plan.report(given.at("categoryId"), f"categoryId: there is no category {document['categoryId']}")
    name = document.get("name")
    if isinstance(name, str) and "name" in given.node.value:
        named = dict.fromkeys(word for char, word in ADVISED_AGAINST.items() if char in name)
        if named:
            warnings.append(given.at("name").mistake(f"name: a {' and a '.join(named)} in a name is advised against"))


def _rule(plan: Planner, given: Given, warnings: list[Mistake]) -> None:
    node = given.at("traitRule")
    text = node.value if isinstance(node.value, str) else given.entry.document["traitRule"]
    try:
        _, advice = check_rule(text)
    except RuleError as error:
        line, column = locate(node, given.source.lines, error.position)
        plan.mistakes.append(Mistake(node.file, line, column, f"{error.code}: traitRule: {error.message}"))
    else:
        warnings.extend(node.mistake(f"traitRule: {text}") for text in advice)


class _Traits:
    """The traits of a partner, as segment rules ask for them (QL-806)."""

    def __init__(self, plan: Planner, state: State, pid: int) -> None:
        self._entries = plan.new.entries
        self._state = state
        self._pid = pid

    def type(self, sid: int) -> str | None:
        entry = self._entries["trait"].get(sid)
        return None if entry is None or entry.pid != self._pid else entry.document.get("traitType")

    def third_party(self, sid: int) -> bool:
        source = self._entries["dataSource"].get(self._entries["trait"][sid].document.get("dataSourceId", 0))
        return source is not None and source.document.get("type") == THIRD_PARTY

    def members(self, sid: int) -> frozenset[int]:
        return self._state.members(sid)


def _segment(plan: Planner, state: State, given: Given, limits: LimitsSection) -> None:
    rule = given.entry.document.get("segmentRule")
    if not isinstance(rule, str):
        return
    node = given.at("segmentRule")
    text = node.value if isinstance(node.value, str) else rule
    try:
        parse_segment(text, traits=_Traits(plan, state, given.entry.pid), max_traits=limits.traits_per_segment)
    except RuleError as error:
        line, column = locate(node, given.source.lines, error.position)
        plan.mistakes.append(Mistake(node.file, line, column, f"{error.code}: segmentRule: {error.message}"))
    else:
        given.entry.document["segmentRule"] = rule.strip()


def _user(plan: Planner, given: Given) -> None:
    email = given.entry.document.get("email")
    if isinstance(email, str) and not ADDRESS.match(email):
        plan.report(given.at("email"), f"email: {email!r} is no e-mail address")


def _dropoff_user(plan: Planner, given: Given) -> None:
    name = given.entry.document.get("name")
    if isinstance(name, str) and (not name.isprintable() or name != name.strip()):
        plan.report(
            given.at("name"), "name: cannot be typed as a login; leave out spaces at its ends and odd characters"
        )


def _dropoff_names(plan: Planner) -> None:
    """A login names one partner, so its name is unique in the whole installation, letter case apart."""
    holders: dict[str, list[Entry]] = {}
    for entry in plan.new.entries["dropoffUser"].values():
        if entry.name:
            holders.setdefault(entry.name.casefold(), []).append(entry)
    partners = plan.new.entries["partner"]
    for entries in holders.values():
        owners = dict.fromkeys(repr(partners[e.pid].name) if e.pid in partners else str(e.pid) for e in entries)
        of = f"the partners {' and '.join(owners)}" if len(owners) > 1 else f"the partner {next(iter(owners))} twice"
        text = f"is a drop-off user of {of}; a login names one partner, so rename one"
        _report_doubles(plan, "dropoffUser", entries, lambda e, text=text: f"name: {e.name!r} {text}", "name")  # type: ignore[misc]


def _unique(
    plan: Planner,
    name: str,
    key: Callable[[Entry], tuple[Any, ...]],
    text: Callable[[Entry], str],
    field: str,
) -> None:
    holders: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in plan.new.entries[name].values():
        found = key(entry)
        if found[-1]:
            holders.setdefault(found, []).append(entry)
    for entries in holders.values():
        _report_doubles(plan, name, entries, text, field)


def _report_doubles(plan: Planner, name: str, entries: list[Entry], text: Callable[[Entry], str], field: str) -> None:
    """Reports the last of several holders that the files name; none when the files name none of them."""
    if len(entries) < 2:
        return
    named = [plan.claimed[name, entry.number] for entry in entries if (name, entry.number) in plan.claimed]
    if named:
        plan.report(named[-1].at(field), text(named[-1].entry))


def _codes(plan: Planner, name: str, switch: str) -> None:
    """Integration codes of the traits (segments) of a data source that has them unique (QL-305, RT-214)."""
    holders: dict[tuple[int, str], list[Entry]] = {}
    sources = plan.new.entries["dataSource"]
    for entry in plan.new.entries[name].values():
        source, code = entry.document.get("dataSourceId"), entry.document.get("integrationCode")
        if code and isinstance(source, int) and source in sources and sources[source].document.get(switch):
            holders.setdefault((source, code), []).append(entry)
    for (source, code), entries in holders.items():
        text = f"E_DUPLICATE_CODE: integrationCode: another {name} of data source {source} has {code!r}"
        if len(entries) > 1 and not any((name, entry.number) in plan.claimed for entry in entries):
            switched = plan.claimed.get(("dataSource", source))
            if switched is not None:
                plan.report(switched.at(switch), f"E_DUPLICATE_CODE: {switch}: two {name}s have the code {code!r}")
            continue
        _report_doubles(plan, name, entries, lambda _, text=text: text, "integrationCode")  # type: ignore[misc]


def _folders(plan: Planner, name: str, deepest: int) -> None:
    folders = plan.new.entries[name]
    for given in plan.given:
        if given.kind.name != name:
            continue
        document = given.entry.document
        folder_name = document.get("name")
        if isinstance(folder_name, str) and "/" in folder_name:
            plan.report(given.at("name"), f"name: {folder_name!r} must not hold a /")
        depth = 0
        at = given.entry.number
        while at != 0 and depth <= deepest + len(folders):
            depth += 1
            entry = folders.get(at)
            if entry is None or entry.pid != given.entry.pid:
                plan.report(given.at("parentFolderId"), f"parentFolderId: this partner has no folder {at}")
                break
            at = entry.document.get("parentFolderId", 0)
            if at == given.entry.number:
                plan.report(given.at("parentFolderId"), "E_VALIDATION: parentFolderId: a folder cannot lie in itself")
                break
        else:
            if depth > deepest:
                plan.report(given.at("parentFolderId"), f"E_LIMIT: folder depth: {depth} of {deepest}")
    _moved(plan, name, deepest)
    _unique(
        plan,
        name,
        lambda entry: (entry.pid, entry.document.get("parentFolderId"), entry.name.casefold()),
        lambda entry: f"E_DUPLICATE_NAME: name: {entry.name!r} has a sibling of the same name",
        "name",
    )


def _moved(plan: Planner, name: str, deepest: int) -> None:
    """A move that puts a folder below too deep, where the file does not name that folder itself (QL-601)."""
    folders = plan.new.entries[name]
    for number, entry in folders.items():
        if (name, number) in plan.claimed:
            continue
        chain: list[int] = []
        at = number
        while at in folders and at not in chain:
            chain.append(at)
            at = folders[at].document.get("parentFolderId", 0)
        moved = next((plan.claimed[name, n] for n in chain if (name, n) in plan.claimed), None)
        if moved is not None and len(chain) > deepest:
            text = f"E_LIMIT: folder depth: {len(chain)} of {deepest} for {entry.name!r} below"
            plan.report(moved.at("parentFolderId"), text)


def _limits(plan: Planner, limits: LimitsSection) -> None:
    """Numbers of objects a partner may have; only what is new is refused (QL-1912)."""
    items: tuple[tuple[str, Kind, int, Callable[[Entry], bool]], ...] = (
        ("traits", BY_NAME["trait"], limits.traits, lambda entry: not automatic(entry)),
        ("rule-based traits", BY_NAME["trait"], limits.rule_based_traits, _of_type("RULE_BASED_TRAIT")),
        ("onboarded traits", BY_NAME["trait"], limits.onboarded_traits, _of_type("ON_BOARDED_TRAIT")),
        ("algorithmic traits", BY_NAME["trait"], limits.algorithmic_traits, _of_type("ALGO_TRAIT")),
        ("segments", BY_NAME["segment"], limits.segments, lambda _: True),
        ("trait folders", BY_NAME["traitFolder"], limits.trait_folders, lambda _: True),
        ("segment folders", BY_NAME["segmentFolder"], limits.segment_folders, lambda _: True),
        ("derived signals", BY_NAME["derivedSignal"], limits.derived_signals, lambda _: True),
        ("merge rules", BY_NAME["mergeRule"], limits.merge_rules, lambda _: True),
        ("destinations", BY_NAME["destination"], limits.destinations, lambda _: True),
        ("users", BY_NAME["user"], limits.users, lambda _: True),
    )
    for item, kind, most, counts in items:
        totals: dict[int, int] = {}
        for entry in plan.new.entries[kind.name].values():
            if counts(entry):
                totals[entry.pid] = totals.get(entry.pid, 0) + 1
        fresh: dict[int, list[Given]] = {}
        for given in plan.given:
            if given.kind is kind and given.old is None and counts(given.entry):
                fresh.setdefault(given.entry.pid, []).append(given)
        for pid, created in fresh.items():
            if totals[pid] > most:
                beyond = created[-min(len(created), totals[pid] - most)]
                plan.report(beyond.node, f"E_LIMIT: {item}: {totals[pid]} of {most}")


def _of_type(trait_type: str) -> Callable[[Entry], bool]:
    return lambda entry: entry.document.get("traitType") == trait_type
