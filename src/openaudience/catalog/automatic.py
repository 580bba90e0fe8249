"""Traits that nobody defines: those of folders, of all active devices, of devices synced with a data source.

They come, are renamed and go with what they stand for (QL-207, QL-603, RT-220). Their numbers lie far above all
others, so that they never take one that a workspace file is about to use, and follow from the number of what they
stand for, so that a rule means the same in every environment and installation that a workspace is applied to.
"""

from __future__ import annotations

from collections.abc import Collection as Collected
from typing import Any

from openaudience.catalog.objects import Collection, Entry
from openaudience.catalog.schema import AUTOMATIC_TYPES, BY_NAME, TRAIT_FIELDS

FOLDER = "FOLDER_TRAIT"
ACTIVE = "ACTIVE_AUDIENCE_TRAIT"
SYNCED = "DATA_SOURCE_SYNCED_TRAIT"
FIRST = 2_000_000_000
"""From here on all numbers of traits and segments are the platform's own."""
RANGES = {FOLDER: (FIRST, 40_000_000), SYNCED: (2_040_000_000, 100_000_000), ACTIVE: (2_140_000_000, 7_000_000)}
"""By type the number to which that of the folder, data source or partner is added, and how many there are."""
OTHERS = 2_147_000_000
"""Where numbers are taken from for what has a number too high for its range."""
SYSTEM_SOURCE = 0
"""The data source of folder traits until it is changed, and of the active audience: the platform's own."""

Key = tuple[str, int, int]
"""Type, partner, and the folder or data source that it stands for."""


def automatic(entry: Entry) -> bool:
    """Whether an object is such a trait."""
    return entry.kind.name == "trait" and entry.document.get("traitType") in AUTOMATIC_TYPES


def complete(new: Collection) -> None:
    """Makes the automatic traits what folders, data sources and partners ask for."""
    traits = new.entries["trait"]
    there = {_key(entry): number for number, entry in traits.items() if automatic(entry)}
    wanted = _wanted(new, there)
    for key, number in there.items():
        if key not in wanted:
            del traits[number]
    for key, fields in wanted.items():
        number = there.get(key, 0)
        if not number:
            number = _number(new, key)
            defaults = {name: field.default for name, field in TRAIT_FIELDS.items()}
            traits[number] = Entry(BY_NAME["trait"], number, key[1], defaults | fields)
        elif traits[number].document["name"] != fields["name"]:
            traits[number] = traits[number].clone()
            traits[number].document["name"] = fields["name"]


def _number(new: Collection, key: Key) -> int:
    base, room = RANGES[key[0]]
    of = key[2] or key[1]
    number = base + of
    while of >= room or number in new.entries["trait"] or number in new.entries["segment"]:
        number, of = new.take("automatic", OTHERS), 0
    return number


def _wanted(new: Collection, there: Collected[Key]) -> dict[Key, dict[str, Any]]:
    found: dict[Key, dict[str, Any]] = {}
    for pid in sorted(new.entries["partner"]):
        found[ACTIVE, pid, 0] = _fields(ACTIVE, "Active Audience", "All devices of the last 120 days", SYSTEM_SOURCE)
    for number, source in sorted(new.entries["dataSource"].items()):
        document = source.document
        # once made it stays, whatever is switched off: segments may use it (QL-207, RT-220)
        synced = document.get("inboundS2S") or document.get("outboundS2S") or (SYNCED, source.pid, number) in there
        if source.pid and synced:
            found[SYNCED, source.pid, number] = _fields(SYNCED, source.name, "All devices with an ID of it", number)
    for number, folder in sorted(new.entries["traitFolder"].items()):
        fields = _fields(FOLDER, f"{folder.name} Folder Trait", "Auto Created Folder Trait", SYSTEM_SOURCE)
        found[FOLDER, folder.pid, number] = fields | {"folderId": number}
    return found


def _fields(kind: str, name: str, description: str, dpid: int) -> dict[str, Any]:
    return {"traitType": kind, "name": name, "description": description, "dataSourceId": dpid, "ttl": 0}


def _key(entry: Entry) -> Key:
    document = entry.document
    of = {FOLDER: "folderId", SYNCED: "dataSourceId"}.get(document["traitType"])
    return document["traitType"], entry.pid, document[of] if of else 0
