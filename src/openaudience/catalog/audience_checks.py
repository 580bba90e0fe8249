"""What is refused of merge rules, destinations, mappings, servers and formats when they are saved (30 §10, 40 §1-2).

A fault is reported where a file brings it about. An object that is named again without a change is not judged again.
What is not named is deleted with everything that refers to it, its mappings first, so ``--prune`` needs no refusals of
its own beyond references (``checks``) and the default merge rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from openaudience.catalog.document import Node, locate
from openaudience.catalog.objects import Entry
from openaudience.catalog.planning import Given, Planner
from openaudience.catalog.schema import EXPORT_CONTROLS
from openaudience.config import LimitsSection, nearest
from openaudience.errors import Mistake
from openaudience.outbound.servers import check_server
from openaudience.outbound.templates import check_format
from openaudience.vocabulary import GLOBAL_SOURCES

FILE_TYPES = ("S2S", "BULK_SEGMENT", "BULK_TRAIT", "BULK_ID")
"""Destinations that are exported in files."""
MAPPED_TRAITS = frozenset({"RULE_BASED_TRAIT", "ON_BOARDED_TRAIT", "ALGO_TRAIT"})
"""Types of traits that may be mapped singly (OB-36)."""
COMBINATIONS: Mapping[tuple[str, str], tuple[int, int]] = {
    ("NO_CROSS_DEVICE", "DEVICE"): (0, 0),
    ("NO_CROSS_DEVICE", "EXTERNAL_GRAPH"): (0, 0),
    ("CURRENT_AUTHENTICATED", "NO_DEVICE"): (1, 3),
    ("LAST_AUTHENTICATED", "DEVICE"): (1, 3),
    ("LAST_AUTHENTICATED", "PROFILE_LINK"): (1, 1),
    ("LAST_AUTHENTICATED", "EXTERNAL_GRAPH"): (1, 3),
    ("ALL_CROSS_DEVICE", "NO_DEVICE"): (1, 3),
}
"""Options of a merge rule that go together, with how many data sources they take (QL-1002 … QL-1008)."""
PLATFORM_KEYS = (0, 4)
"""User ID keys that are no data source: the platform's UUID and the ECID (OB-11)."""
ALL_CROSS_RULES = 1
"""How many merge rules of ALL_CROSS_DEVICE a partner may have (QL-1010)."""
BETWEEN_RUNS = ("24h", "7d", "30d", "never")
LOOKBACKS = ("24h", "7d", "30d")
WORDS: Mapping[str, tuple[str, ...]] = {
    "syncType": ("customer", "platform", "lifetime"),
    "incrementalSchedule": BETWEEN_RUNS,
    "fullSchedule": BETWEEN_RUNS,
    "iterContent": ("changes", "state"),
}
COMPRESSIONS = ("none", "gz", "zip")
MOST: tuple[tuple[str, frozenset[str], int], ...] = (
    ("URL destinations", frozenset({"PUSH"}), 1_000),
    ("cookie destinations", frozenset({"ADS"}), 1_000),
    ("server-to-server destinations", frozenset(FILE_TYPES), 100),
    ("analytics destinations", frozenset({"ANALYTICS"}), 10),
)
"""Destinations of a kind that a partner may have (OB-25); ``limits.destinations`` bounds all together."""


def check_audiences(plan: Planner, limits: LimitsSection, warnings: list[Mistake]) -> None:
    """Adds to ``plan.mistakes`` what is refused, to ``warnings`` what is doubtful; settles the default merge rules."""
    for given in plan.given:
        match given.kind.name:
            case "mergeRule":
                _merge_rule(plan, given)
            case "destinationServer":
                _server(plan, given)
            case "destinationFormat":
                _format(plan, given, warnings)
            case "destination":
                _destination(plan, given)
                _mappings(plan, given)
    for pid in dict.fromkeys(given.entry.pid for given in plan.given if given.kind.name == "mergeRule"):
        _default(plan, pid)
        _numbers_of_rules(plan, pid, limits)
    _kept_default(plan)
    _take_default(plan)
    _meetings(plan)
    _numbers_of_destinations(plan)


def _news(given: Given, *fields: str) -> bool:
    """Whether the object is new, or one of these fields is."""
    if given.old is None:
        return True
    return any(given.old.document.get(name) != given.entry.document.get(name) for name in fields)


# ---- merge rules -------------------------------------------------------------------------------------------------


def _merge_rule(plan: Planner, given: Given) -> None:
    """Combinations and data sources (QL-1009, QL-1010)."""
    if not _news(given, "authenticatedOption", "deviceOption", "dataSourceIds"):
        return
    document = given.entry.document
    authenticated, device = document.get("authenticatedOption"), document.get("deviceOption")
    if not isinstance(authenticated, str):
        return
    bounds = COMBINATIONS.get((authenticated, str(device)))
    if bounds is None:
        fitting = " or ".join(option for known, option in COMBINATIONS if known == authenticated)
        plan.report(
            given.at("deviceOption"), f"deviceOption: {device} does not go with {authenticated}; choose {fitting}"
        )
        return
    numbers = document.get("dataSourceIds") or []
    if not bounds[0] <= len(numbers) <= bounds[1]:
        wanted = (
            "none" if not bounds[1] else str(bounds[1]) if bounds[0] == bounds[1] else f"{bounds[0]} to {bounds[1]}"
        )
        text = f"dataSourceIds: {len(numbers)} given; {authenticated} with {device} takes {wanted}"
        plan.report(given.at("dataSourceIds"), text)
    for number in numbers:
        source = plan.new.entries["dataSource"].get(number)
        if source is None or source.pid != given.entry.pid:
            continue  # reported as a reference to nothing
        if source.document.get("idType") != "CROSS_DEVICE":
            plan.report(given.at("dataSourceIds"), f"dataSourceIds: {number} is no CROSS_DEVICE data source")
        elif not source.document.get("supportsAuthenticatedProfile"):
            text = f"dataSourceIds: {number} must set supportsAuthenticatedProfile to be used in a merge rule"
            plan.report(given.at("dataSourceIds"), text)


def _default(plan: Planner, pid: int) -> None:
    """Exactly one merge rule of a partner is the default (QL-1020): the first made, until another takes it over."""
    rules = {number: rule for number, rule in plan.new.entries["mergeRule"].items() if rule.pid == pid}
    named = [given for given in plan.given if given.kind.name == "mergeRule" and given.entry.pid == pid]
    said = {given.entry.number: _said(given, "isDefault") for given in named}
    chosen = [given for given in named if said[given.entry.number]]
    for given in chosen[1:]:
        text = f"isDefault: merge rule {chosen[0].entry.number} of this file is the default already; keep one"
        plan.report(given.at("isDefault"), text)
    before = [number for number, rule in rules.items() if number in plan.old.entries["mergeRule"]]
    former = [number for number in before if plan.old.entries["mergeRule"][number].document.get("isDefault")]
    if chosen:
        default = chosen[0].entry.number
    elif former:
        default = former[0]
    else:
        default = next(iter([*before, *(given.entry.number for given in named)]))
    if said.get(default) is False:
        refused = next(given for given in named if given.entry.number == default)
        plan.report(refused.at("isDefault"), "isDefault: one rule is the default; set another to true instead")
    for number, rule in rules.items():
        if rule.document.get("isDefault") != (number == default):
            if (claimed := plan.claimed.get(("mergeRule", number))) is None:
                rule = plan.new.entries["mergeRule"][number] = rule.clone()
            else:
                rule = claimed.entry
            rule.document["isDefault"] = number == default


def _said(given: Given, field: str) -> Any:
    """What the file itself says of a field; None when it leaves it out."""
    node = given.node.value.get(field)
    return None if node is None else node.value


def _numbers_of_rules(plan: Planner, pid: int, limits: LimitsSection) -> None:
    """At most one rule over all cross-device profiles, and one less than the limit of the others (QL-1010)."""
    for text, most, wide in (
        ("merge rules of ALL_CROSS_DEVICE", ALL_CROSS_RULES, True),
        ("merge rules other than ALL_CROSS_DEVICE", max(limits.merge_rules - ALL_CROSS_RULES, 0), False),
    ):
        rules = plan.new.entries["mergeRule"].values()
        found = sum(1 for rule in rules if rule.pid == pid and _wide(rule) is wide)
        fresh = [
            given
            for given in plan.given
            if given.kind.name == "mergeRule" and given.entry.pid == pid and _wide(given.entry) is wide
            if given.old is None or _wide(given.old) is not wide
        ]
        if found > most and fresh:
            plan.report(fresh[-min(len(fresh), found - most)].node, f"E_LIMIT: {text}: {found} of {most}")


def _wide(rule: Entry) -> bool:
    return rule.document.get("authenticatedOption") == "ALL_CROSS_DEVICE"


def _take_default(plan: Planner) -> None:
    """A segment that names no merge rule takes the default in force now, and keeps it (QL-1020, API-116)."""
    defaults = {
        rule.pid: number for number, rule in plan.new.entries["mergeRule"].items() if rule.document.get("isDefault")
    }
    for given in plan.given:
        said = given.old is None or "mergeRuleDataSourceId" in given.node.value
        if given.kind.name == "segment" and said and not given.entry.document.get("mergeRuleDataSourceId"):
            given.entry.document["mergeRuleDataSourceId"] = defaults.get(given.entry.pid, 0)


def _kept_default(plan: Planner) -> None:
    """The default goes last: it cannot be pruned while other rules stay (QL-1020)."""
    new = plan.new.entries["mergeRule"]
    for number, rule in plan.old.entries["mergeRule"].items():
        if number in new or not rule.document.get("isDefault"):
            continue
        partner = plan.claimed.get(("partner", rule.pid))
        staying = [other for other in new.values() if other.pid == rule.pid]
        chosen = any(_said(given, "isDefault") for given in plan.given if given.entry in staying)
        if partner is not None and staying and not chosen:
            text = f"E_IN_USE: mergeRules: {rule.name!r} ({number}) is the default; make another one the default first"
            plan.report(partner.at("mergeRules"), text)


# ---- destinations ------------------------------------------------------------------------------------------------


def _destination(plan: Planner, given: Given) -> None:
    _labels(plan, given)
    if given.entry.document.get("destinationType") not in FILE_TYPES:
        return
    _delivery(plan, given)
    _key(plan, given)
    document = given.entry.document
    if _news(given, "dataSourceId") and document.get("dataSourceId") is None:
        plan.report(given.at("dataSourceId"), "dataSourceId is missing; name the recipient's data source")
    for field, words in WORDS.items():
        if _news(given, field) and document.get(field) not in words:
            text = f"{field}: {document.get(field)!r} is not known; {nearest(str(document.get(field)), words)}"
            plan.report(given.at(field), text)
    if not _news(given, "syncType", "syncLookback"):
        return
    kind, lookback = document.get("syncType"), document.get("syncLookback")
    if kind == "lifetime" and lookback is not None:
        plan.report(
            given.at("syncLookback"), "syncLookback: goes with syncType customer or platform only; leave it out"
        )
    elif kind in ("customer", "platform") and lookback not in LOOKBACKS:
        plan.report(given.at("syncLookback"), f"syncLookback: must be one of {', '.join(LOOKBACKS)} with {kind}")


def _labels(plan: Planner, given: Given) -> None:
    labels = given.entry.document.get("dataExportLabels")
    if not isinstance(labels, list) or not _news(given, "dataExportLabels"):
        return
    spelled = [label.upper() for label in labels]
    for label, word in zip(labels, spelled, strict=True):
        if word not in EXPORT_CONTROLS:
            text = f"dataExportLabels: {label!r} is not known; {nearest(word, EXPORT_CONTROLS)}"
            plan.report(given.at("dataExportLabels"), text)
    given.entry.document["dataExportLabels"] = list(dict.fromkeys(spelled))


def _delivery(plan: Planner, given: Given) -> None:
    """Real time or batch, and to where (OB-01 … OB-04, OB-24)."""
    document = given.entry.document
    if not _news(given, "realTime", "batch", "serverId", "formatId", "realTimeServerId", "realTimeFormatId"):
        return
    live, batch = document.get("realTime"), document.get("batch")
    if document["destinationType"] != "S2S" and (live or not batch):
        field = "realTime" if live else "batch"
        text = f"{field}: {document['destinationType']} goes out in files only; leave realTime and batch out"
        plan.report(given.at(field), text)
    elif not live and not batch:
        plan.report(given.at("batch"), "batch: realTime or batch must be on")
    for on, server_field, format_field in (
        (batch, "serverId", "formatId"),
        (live, "realTimeServerId", "realTimeFormatId"),
    ):
        number = document.get(server_field)
        if on and number is None:
            plan.report(given.at(server_field), f"{server_field} is missing; name the server to deliver to")
        server = plan.new.entries["destinationServer"].get(number) if isinstance(number, int) else None
        over_http = server is not None and server.document.get("type") == "HTTP"
        if server is not None and server_field == "realTimeServerId" and not over_http:
            plan.report(given.at(server_field), f"{server_field}: {number} is no HTTP server")
        known = plan.new.entries["destinationFormat"].get(document.get(format_field) or 0)
        kind = "HTTP" if over_http or server_field == "realTimeServerId" else "FILE"
        if known is not None and server is not None and known.document.get("type") != kind:
            plan.report(given.at(format_field), f"{format_field}: {known.number} is no format of type {kind}")


def _key(plan: Planner, given: Given) -> None:
    """Whose IDs the rows have (OB-04, OB-11)."""
    document = given.entry.document
    key = document.get("userIdKey")
    if not _news(given, "userIdKey"):
        return
    if key is None:
        plan.report(given.at("userIdKey"), "userIdKey is missing; name the data source of the rows' IDs, or 0 or 4")
    elif key in PLATFORM_KEYS:
        if document["destinationType"] == "BULK_ID":
            plan.report(given.at("userIdKey"), f"userIdKey: {key} cannot be the key of BULK_ID; name a data source")
    elif key not in GLOBAL_SOURCES and isinstance(key, int):
        source = plan.new.entries["dataSource"].get(key)
        if source is None:
            return  # reported as a reference to nothing
        if source.pid != given.entry.pid:
            plan.report(given.at("userIdKey"), f"userIdKey: {key} is a data source of another partner")
        elif not source.document.get("outboundS2S"):
            plan.report(given.at("userIdKey"), f"userIdKey: data source {key} is not outbound; set outboundS2S there")


def _meetings(plan: Planner) -> None:
    """Object storage takes no zip (OB-182), whichever of destination, format and server brings them together."""
    for number, destination in plan.new.entries["destination"].items():
        document = destination.document
        server = plan.new.entries["destinationServer"].get(document.get("serverId") or 0)
        form = plan.new.entries["destinationFormat"].get(document.get("formatId") or 0)
        if server is None or form is None or not _zip_to_s3(server, form):
            continue
        text = (
            f"S3 takes no zip files: destination {number} has server {server.number} and format {form.number}; use gz"
        )
        for kind, entry, field in (
            ("destination", destination, "formatId"),
            ("destinationFormat", form, "compression"),
            ("destinationServer", server, "type"),
        ):
            given = plan.claimed.get((kind, entry.number))
            if given is not None and _news(given, "serverId", "formatId", "compression", "type"):
                plan.report(given.at(field), f"{field}: {text}")
                break


def _zip_to_s3(server: Entry, form: Entry) -> bool:
    return server.document.get("type") == "S3" and form.document.get("compression") == "zip"


def _numbers_of_destinations(plan: Planner) -> None:
    """OB-25."""
    for text, types, most in MOST:
        totals: dict[int, int] = {}
        for entry in plan.new.entries["destination"].values():
            if entry.document.get("destinationType") in types:
                totals[entry.pid] = totals.get(entry.pid, 0) + 1
        fresh: dict[int, list[Given]] = {}
        for given in plan.given:
            new = given.kind.name == "destination" and given.old is None
            if new and given.entry.document.get("destinationType") in types:
                fresh.setdefault(given.entry.pid, []).append(given)
        for pid, made in fresh.items():
            if totals[pid] > most:
                beyond = made[-min(len(made), totals[pid] - most)]
                plan.report(beyond.node, f"E_LIMIT: {text}: {totals[pid]} of {most}")


# ---- mappings ----------------------------------------------------------------------------------------------------


def _mappings(plan: Planner, given: Given) -> None:
    """Dates and kinds of what is mapped (OB-31, OB-36)."""
    before = {} if given.old is None else {m["sid"]: m for m in given.old.document.get("mappings") or ()}
    type_ = given.entry.document.get("destinationType")
    for mapping, node in _named(given):
        if before.get(mapping["sid"]) == mapping:
            continue
        start, end = mapping.get("startDate"), mapping.get("endDate")
        if start and end and end <= start:
            place = node.value.get("endDate") or node
            plan.report(place, f"endDate: {end} is not after startDate {start}; it is the first day not exported")
        sid, kind = mapping["sid"], mapping.get("traitType")
        if type_ in ("BULK_SEGMENT", "BULK_ID"):
            plan.report(node, f"mappings: {type_} takes none; it exports everything of its data sources")
        elif type_ == "BULK_TRAIT" and kind != "TRAIT":
            plan.report(node, f"traitType: BULK_TRAIT takes traits only; write traitType: TRAIT for {sid}")
        elif kind == "TRAIT" and (trait := plan.new.entries["trait"].get(sid)) is not None:
            found = trait.document.get("traitType")
            if found not in MAPPED_TRAITS:
                plan.report(node, f"sid: a {found} cannot be mapped by itself; map a segment of it instead")


def _named(given: Given) -> Iterator[tuple[Mapping[str, Any], Node]]:
    """The mappings that a file names, each with its place."""
    found = {mapping["sid"]: mapping for mapping in given.entry.document.get("mappings") or ()}
    for partial, node in given.mappings:
        if (sid := partial.get("sid")) in found:
            yield found[sid], node


# ---- servers and formats ------------------------------------------------------------------------------------------


def _server(plan: Planner, given: Given) -> None:
    """Everything about a delivery server, its secrets included as far as they are known (OB-196 … OB-202)."""
    kind, number = given.kind, given.entry.number
    secrets = {
        place.field: value for place, value in plan.secrets.items() if (place.kind, place.number) == (kind.key, number)
    }
    if not secrets and not _news(given, *(set(given.entry.document) - {"name"})):
        return
    for field, text in check_server(given.entry.document, secrets):
        written = [given.node.value[way] for way in (field, f"{field}_env", f"{field}_file") if way in given.node.value]
        lacking = text.startswith("is missing")
        # a secret that the file names but that could not be read is reported already
        if not (lacking and written and written[0].value is not None and field in given.kind.secrets):
            plan.report(written[0] if written else given.node, f"{field} {text}" if lacking else f"{field}: {text}")


def _format(plan: Planner, given: Given, warnings: list[Mistake]) -> None:
    """Templates, with the place of each fault in the file (OB-88, OB-89)."""
    document = given.entry.document
    if not _news(given, *(name for name in given.kind.fields if name != "name")):
        return
    if document.get("type") == "HTTP":
        if not document.get("template"):
            plan.report(given.at("template"), "template is missing; it is required")
        return
    if document.get("compression") not in COMPRESSIONS:
        text = f"compression: {document.get('compression')!r} is not known; choose {', '.join(COMPRESSIONS)}"
        plan.report(given.at("compression"), text)
    if document.get("timestampDigits") not in (10, 13):
        plan.report(given.at("timestampDigits"), "timestampDigits: must be 10 or 13")
    found = check_format(document)
    plan.mistakes.extend(
        _placed(given, field, at, f"E_TEMPLATE: {field}: {text}") for field, at, text in found.mistakes
    )
    warnings.extend(_placed(given, field, at, f"{field}: {text}") for field, at, text in found.warnings)


def _placed(given: Given, field: str, position: int, text: str) -> Mistake:
    node = given.at(field)
    line, column = (
        locate(node, given.source.lines, position) if isinstance(node.value, str) else (node.line, node.column)
    )
    return Mistake(node.file, line, column, text)
