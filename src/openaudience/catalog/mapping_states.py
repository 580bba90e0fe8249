"""What export controls do to the mappings of a plan: refusals, and mappings active again (OB-46 … OB-48)."""

from __future__ import annotations

from collections.abc import Collection as Several
from collections.abc import Mapping
from typing import Any

from openaudience.catalog.automatic import FOLDER
from openaudience.catalog.export_controls import Controls, clash, segment_controls, trait_controls
from openaudience.catalog.objects import Collection, Entry, milliseconds
from openaudience.catalog.planning import Planner
from openaudience.errors import RuleError
from openaudience.rules.segments import read_segment, traits_of


class State:
    """The objects of an environment, as far as export controls look at them."""

    def __init__(self, objects: Collection) -> None:
        self._objects = objects
        self._below: dict[int, frozenset[int]] | None = None

    def controls(self, mapping: Mapping[str, Any], segment: Entry | None = None) -> Controls:
        """The controls of what is mapped; ``segment`` in the place of the segment that the state holds."""
        sid = mapping["sid"]
        entries = self._objects.entries
        if mapping.get("traitType") == "TRAIT":
            return trait_controls(sid, self._source, self._codes) if sid in entries["trait"] else {}
        segment = segment or entries["segment"].get(sid)
        if segment is None or not isinstance(segment.document.get("segmentRule"), str):
            return {}
        try:
            named = traits_of(read_segment(segment.document["segmentRule"].strip()))
        except RuleError:
            return {}
        return segment_controls(named, self.members, self._source, self._codes, self._merge_rule(segment))

    def blocked(self, mapping: Mapping[str, Any], labels: Several[str], segment: Entry | None = None) -> frozenset[str]:
        """The codes that keep a mapping from going out."""
        return clash(self.controls(mapping, segment), labels) if labels else frozenset()

    def members(self, sid: int) -> frozenset[int]:
        """What a folder trait consists of; of any other trait, nothing."""
        trait = self._objects.entries["trait"].get(sid)
        if trait is None or trait.document.get("traitType") != FOLDER:
            return frozenset()
        if self._below is None:
            below: dict[int, set[int]] = {}
            for number, entry in self._objects.entries["trait"].items():
                if entry.document.get("traitType") != FOLDER:
                    for folder in self._above(entry.document.get("folderId", 0)):
                        below.setdefault(folder, set()).add(number)
            self._below = {folder: frozenset(sids) for folder, sids in below.items()}
        return self._below.get(trait.document["folderId"], frozenset())

    def _above(self, folder: int) -> list[int]:
        found: list[int] = []
        folders = self._objects.entries["traitFolder"]
        while folder in folders and folder not in found:
            found.append(folder)
            folder = folders[folder].document.get("parentFolderId", 0)
        return found

    def _source(self, sid: int) -> int:
        trait = self._objects.entries["trait"].get(sid)
        return 0 if trait is None else int(trait.document.get("dataSourceId") or 0)

    def _codes(self, dpid: int) -> tuple[str, ...]:
        source = self._objects.entries["dataSource"].get(dpid)
        return () if source is None else tuple(source.document.get("dataExportRestrictions") or ())

    def _merge_rule(self, segment: Entry) -> tuple[int, tuple[str, ...], tuple[int, ...]] | None:
        rules = self._objects.entries["mergeRule"]
        number = segment.document.get("mergeRuleDataSourceId") or 0
        if number not in rules:
            return None
        document = rules[number].document
        return number, tuple(document.get("dataExportRestrictions") or ()), tuple(document.get("dataSourceIds") or ())


def settle(plan: Planner) -> None:
    """Refuses what export controls forbid; notes which mappings are active again, in destinations that no file names
    too (OB-48)."""
    old, new = State(plan.old), State(plan.new)
    for number, destination in list(plan.new.entries["destination"].items()):
        before = plan.old.entries["destination"].get(number)
        known = {} if before is None else {mapping["mappingId"]: mapping for mapping in before.document["mappings"]}
        labels = destination.document.get("dataExportLabels") or ()
        former = () if before is None else before.document.get("dataExportLabels") or ()
        freed: set[int] = set()
        for mapping in destination.document.get("mappings") or ():
            codes = new.blocked(mapping, labels)
            stored = known.get(mapping["mappingId"])
            if codes:
                _refuse(plan, new, destination, mapping, codes, fresh=stored is None)
            elif stored is not None and old.blocked(stored, former):
                freed.add(mapping["mappingId"])
        if freed:
            destination = plan.new.entries["destination"][number] = destination.clone()
            for mapping in destination.document["mappings"]:
                if mapping["mappingId"] in freed:
                    mapping["activeSince"] = milliseconds(plan.now)


def _refuse(
    plan: Planner, new: State, destination: Entry, mapping: Mapping[str, Any], codes: frozenset[str], *, fresh: bool
) -> None:
    """OB-46 for a new mapping, OB-47 for a changed rule or merge rule; what else brings a clash is allowed."""
    controls = new.controls(mapping)
    sid = mapping["sid"]
    what = "trait" if mapping.get("traitType") == "TRAIT" else "segment"
    listed = ", ".join(f"{code} of {controls[code]}" for code in sorted(codes))
    text = f"E_EXPORT_CONTROL: {what} {sid} may not go to destination {destination.number}: {listed}"
    if fresh:
        given = plan.claimed.get(("destination", destination.number))
        if given is not None:
            place = next((node for partial, node in given.mappings if partial.get("sid") == sid), given.node)
            plan.report(place, text)
        return
    given = plan.claimed.get(("segment", sid))
    if what == "segment" and given is not None and given.old is not None:
        labels = destination.document.get("dataExportLabels") or ()
        if not new.blocked(mapping, labels, given.old) and given.old.document != given.entry.document:
            changed = given.old.document.get("segmentRule") != given.entry.document.get("segmentRule")
            plan.report(given.at("segmentRule" if changed else "mergeRuleDataSourceId"), text)
