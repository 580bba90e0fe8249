"""What is configured about segments, merge rules and destinations, as evaluation and exports see it (30, 40)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from openaudience.catalog.export_controls import Controls, clash, segment_controls, trait_controls
from openaudience.catalog.facade import Catalog
from openaudience.catalog.tables import DataSourceRow, DocumentRow, FolderRow, TraitRow
from openaudience.errors import RuleError
from openaudience.rules.segments import FOLDER, SegmentTree, read_segment, satisfied_by_nothing, traits_of
from openaudience.vocabulary import Trait


@dataclass(frozen=True, slots=True)
class MergeRule:
    """A profile merge rule (QL-1001 … QL-1010). Number 0 is the built-in device rule (QL-1020)."""

    number: int
    pid: int
    name: str
    authenticated: Literal["NO_CROSS_DEVICE", "CURRENT_AUTHENTICATED", "LAST_AUTHENTICATED", "ALL_CROSS_DEVICE"]
    device: Literal["NO_DEVICE", "DEVICE", "PROFILE_LINK", "EXTERNAL_GRAPH"]
    sources: tuple[int, ...] = ()
    controls: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment (QL-701 … QL-706). ``merge_rule``: 0 = built-in (QL-1020)."""

    sid: int
    pid: int
    name: str
    dpid: int
    rule: str
    merge_rule: int
    active: bool
    integration_code: str | None = None
    legacy_id: int | None = None


@dataclass(frozen=True, slots=True)
class Mapped:
    """A mapping of a segment or trait to a destination (OB-28 … OB-36).

    ``alias``: the destination value, resolved (OB-29). ``end`` is the first day not exported. ``since`` (UTC seconds):
    when it was created or last became active again; what was delivered before is forgotten (OB-33, OB-67).
    ``blocked``: codes of export controls that meet labels of the destination (OB-43); such a mapping is inactive.
    """

    mapping: int
    sid: int
    kind: Literal["SEGMENT", "TRAIT"]
    alias: str
    start: date
    end: date | None
    since: int
    active: bool
    blocked: frozenset[str] = frozenset()

    def live(self, today: date) -> bool:
        """Whether the mapping is exported by a run that starts on the UTC day ``today`` (OB-30)."""
        return self.active and not self.blocked and self.start <= today and (self.end is None or today < self.end)


@dataclass(frozen=True, slots=True)
class Destination:
    """A destination of a type that is exported in files (OB-01 … OB-04, fields OB-08 … OB-24).

    ``in_file_sources``: None = all first-party sources (``all_first_party``). ``lookback`` in days, None = no filter.
    ``incremental`` and ``full``: days between runs, None = never.
    """

    number: int
    pid: int
    name: str
    type: Literal["S2S", "BULK_SEGMENT", "BULK_TRAIT", "BULK_ID"]
    active: bool
    batch: bool
    user_id_key: int
    target: int
    alias: str
    labels: frozenset[str]
    unsegment: bool
    accepts_device_ids: bool
    sync_type: Literal["customer", "platform", "lifetime"]
    lookback: int | None
    incremental: int | None
    full: int | None
    iter_content: Literal["changes", "state"]
    sample: int
    in_file_sources: tuple[int, ...] | None
    server: int | None
    format: int | None
    mappings: tuple[Mapped, ...] = ()


DAYS = {"24h": 1, "7d": 7, "30d": 30}
"""Days between runs, and of a look-back, as they are configured; anything else is never."""
BUILT_IN = MergeRule(0, 0, "This device", "NO_CROSS_DEVICE", "DEVICE")
"""In force where no merge rule is defined (QL-1020)."""


KINDS = ("segments", "mergeRules", "destinations", "destinationServers", "destinationFormats")
FILE_TYPES = ("S2S", "BULK_SEGMENT", "BULK_TRAIT", "BULK_ID")


class Audiences:
    """One consistent reading of what is configured about segments, traits and destinations of an environment."""

    def __init__(
        self,
        traits: Mapping[int, Trait],
        folders: Mapping[int, int],
        own: Mapping[int, frozenset[int]],
        folder_of: Mapping[int, int],
        merge_rules: Mapping[int, MergeRule],
        segments: Mapping[int, Segment],
        documents: Mapping[str, Mapping[int, tuple[int, Mapping[str, Any]]]],
        controls: Mapping[int, frozenset[str]],
    ) -> None:
        """``documents``: by kind and number the partner and the object as the API shows it; ``controls``: by DPID."""
        self.traits = traits
        self._documents = documents
        self._controls = controls
        self.merge_rules = merge_rules
        self.segments = segments
        self._parents = folders
        self._own = own
        self._folder_of = folder_of

    @classmethod
    def of(cls, catalog: Catalog, session: Session) -> Audiences:
        """Reads everything in a few queries."""
        environment = catalog.environment
        traits = {trait.sid: trait for trait in catalog.traits(session=session, automatic=True)}
        of_trait = select(TraitRow.number, TraitRow.folder).where(TraitRow.environment == environment)
        folder_of = {sid: folder for sid, folder in session.execute(of_trait)}  # noqa: C416 (dict() sees a mapping in it)
        of_folder = select(FolderRow.number, FolderRow.parent).where(
            FolderRow.environment == environment, FolderRow.tree == "traits"
        )
        parents = {number: parent for number, parent in session.execute(of_folder)}  # noqa: C416 (as above)
        documents: dict[str, dict[int, tuple[int, Mapping[str, Any]]]] = {kind: {} for kind in KINDS}
        query = select(DocumentRow.kind, DocumentRow.number, DocumentRow.pid, DocumentRow.document).where(
            DocumentRow.environment == environment, DocumentRow.kind.in_(KINDS)
        )
        for kind, number, pid, document in session.execute(query.order_by(DocumentRow.number)):
            documents[kind][number] = pid, document
        sources = select(DataSourceRow.number, DataSourceRow.document).where(DataSourceRow.environment == environment)
        controls = {
            dpid: frozenset(document.get("dataExportRestrictions") or ()) for dpid, document in session.execute(sources)
        }
        rules = {0: BUILT_IN}
        for number, (pid, document) in documents["mergeRules"].items():
            rules[number] = _merge_rule(number, pid, document)
        segments = {
            number: Segment(
                number,
                pid,
                document["name"],
                document["dataSourceId"],
                document["segmentRule"],
                document.get("mergeRuleDataSourceId") or 0,
                document.get("status", "ACTIVE") == "ACTIVE" and _usable(document["segmentRule"]),
                document.get("integrationCode"),
                document.get("legacyId"),
            )
            for number, (pid, document) in documents["segments"].items()
        }
        own: dict[int, set[int]] = {}
        for trait in traits.values():
            own.setdefault(trait.pid, set()).add(trait.dpid)
        pids = {pid: frozenset(dpids) for pid, dpids in own.items()}
        return cls(traits, parents, pids, folder_of, rules, segments, documents, controls)

    @cached_property
    def _below(self) -> dict[int, frozenset[int]]:
        """The plain traits in each folder and below it."""
        found: dict[int, set[int]] = {}
        for sid, folder in self._folder_of.items():
            if self.traits[sid].type == FOLDER:
                continue
            at = folder
            while at:
                found.setdefault(at, set()).add(sid)
                at = self._parents.get(at, 0)
        return {folder: frozenset(sids) for folder, sids in found.items()}

    def trees(self) -> dict[int, SegmentTree]:
        """The parsed rules of all segments that have one."""
        return {sid: read_segment(segment.rule) for sid, segment in self.segments.items() if _usable(segment.rule)}

    def folder_members(self, sid: int) -> frozenset[int]:
        """What a folder trait consists of (QL-605); of any other trait, nothing."""
        trait = self.traits.get(sid)
        if trait is None or trait.type != FOLDER:
            return frozenset()
        return self._below.get(self._folder_of[sid], frozenset())

    def documents(self, kind: str) -> Mapping[int, tuple[int, Mapping[str, Any]]]:
        """By number the partner and the stored fields of each object of one of ``KINDS``; not to be changed."""
        return self._documents[kind]

    # ---- destinations ----------------------------------------------------------------------------------------

    @cached_property
    def destinations(self) -> dict[int, Destination]:
        """The destinations that are exported in files, by number."""
        return {
            number: self._destination(number, pid, document)
            for number, (pid, document) in self._documents["destinations"].items()
            if document["destinationType"] in FILE_TYPES
        }

    def server_document(self, number: int) -> Mapping[str, Any]:
        """A delivery server as the API shows it (API-203), without secrets."""
        return self._documents["destinationServers"][number][1]

    def format_document(self, number: int) -> Mapping[str, Any]:
        """A file format as the API shows it (API-204)."""
        return self._documents["destinationFormats"][number][1]

    def controls(self, sid: int) -> Controls:
        """The export controls of a segment or a trait, each with what brings it (OB-43, OB-49)."""
        segment = self.segments.get(sid)
        if segment is None:
            return trait_controls(sid, self.source, self._controls_of)
        rule = self.merge_rules[segment.merge_rule]
        return segment_controls(
            traits_of(read_segment(segment.rule)) if _usable(segment.rule) else (),
            self.folder_members,
            self.source,
            self._controls_of,
            (rule.number, rule.controls, rule.sources),
        )

    def blocked(self, sid: int, labels: Collection[str]) -> frozenset[str]:
        """The codes that keep a segment or trait from destinations with these labels (OB-43)."""
        return clash(self.controls(sid), labels) if labels else frozenset()

    def blocked_source(self, dpid: int, labels: Collection[str]) -> frozenset[str]:
        """The codes that keep the IDs of a data source from destinations with these labels (OB-49)."""
        return self._controls_of(dpid).intersection(labels)

    def _controls_of(self, dpid: int) -> frozenset[str]:
        return self._controls.get(dpid, frozenset())

    def _destination(self, number: int, pid: int, document: Mapping[str, Any]) -> Destination:
        labels = frozenset(document.get("dataExportLabels") or ())
        sources = document.get("inFileDataSources")
        target = document.get("dataSourceId")
        return Destination(
            number=number,
            pid=pid,
            name=document["name"],
            type=document["destinationType"],
            active=document["status"] == "ACTIVE",
            batch=bool(document.get("batch", True)),
            user_id_key=document.get("userIdKey") or 0,
            target=target or 0,
            alias=document.get("foreignAccountId") or "",
            labels=labels,
            unsegment=document.get("unsegment", True),
            accepts_device_ids=document.get("acceptsDeviceIds", True),
            sync_type=document.get("syncType") or "lifetime",
            lookback=DAYS.get(document.get("syncLookback") or "never"),
            incremental=DAYS.get(document.get("incrementalSchedule") or "24h"),
            full=DAYS.get(document.get("fullSchedule") or "never"),
            iter_content=document.get("iterContent") or "changes",
            sample=document.get("sampleRateDenominator") or 1,
            in_file_sources=None if sources == "all_first_party" else tuple(sources or ()),
            server=document.get("serverId"),
            format=document.get("formatId"),
            mappings=tuple(self._mapped(mapping, document, labels) for mapping in document.get("mappings") or ()),
        )

    def _mapped(self, mapping: Mapping[str, Any], destination: Mapping[str, Any], labels: frozenset[str]) -> Mapped:
        sid = mapping["sid"]
        created = int(destination.get("createTime") or 0)
        start = mapping.get("startDate")
        return Mapped(
            mapping=mapping["mappingId"],
            sid=sid,
            kind=mapping["traitType"],
            alias=self._alias(mapping, destination),
            start=date.fromisoformat(start) if start else datetime.fromtimestamp(created / 1000, UTC).date(),
            end=date.fromisoformat(mapping["endDate"]) if mapping.get("endDate") else None,
            since=int(mapping.get("activeSince") or created) // 1000,
            active=True,
            blocked=self.blocked(sid, labels),
        )

    def _alias(self, mapping: Mapping[str, Any], destination: Mapping[str, Any]) -> str:
        """The destination value (OB-29)."""
        sid = mapping["sid"]
        if mapping.get("traitAlias"):
            return str(mapping["traitAlias"])
        if destination.get("mappingAutoFiller") == "IC" and sid in self.segments:
            return self.segments[sid].integration_code or str(sid)
        return str(sid)

    # what qualifications ask (``runs.qualified.TraitKinds``)

    def kind(self, sid: int) -> str | None:
        """The literal of QL-201 … QL-206."""
        trait = self.traits.get(sid)
        return None if trait is None else trait.type

    def source(self, sid: int) -> int:
        """The data source of a trait."""
        return self.traits[sid].dpid

    def members(self, sid: int) -> frozenset[int]:
        """As ``folder_members``."""
        return self.folder_members(sid)

    def sources_of(self, sid: int) -> frozenset[int]:
        """The data sources of the partner that a trait belongs to."""
        return self._own.get(self.traits[sid].pid, frozenset())

    def partner(self, sid: int) -> int:
        """The partner that a trait belongs to."""
        return self.traits[sid].pid


def _usable(rule: str) -> bool:
    """Whether a stored rule is one; homes of early versions may hold others, which nobody can be judged by."""
    try:
        return not satisfied_by_nothing(read_segment(rule))
    except RuleError:
        return False


def _merge_rule(number: int, pid: int, document: Mapping[str, Any]) -> MergeRule:
    sources = tuple(document.get("dataSourceIds") or ())
    device: Any = document.get("deviceOption") or "NO_DEVICE"
    if device == "PROFILE_LINK" and len(sources) != 1:
        # of an early version, which did not refuse it: what is left without the link
        device = "DEVICE"
    return MergeRule(
        number,
        pid,
        document["name"],
        document["authenticatedOption"],
        device,
        sources,
        frozenset(document.get("dataExportRestrictions") or ()),
    )
