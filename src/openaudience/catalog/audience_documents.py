"""Segments and destinations as objects of the API (API-116, API-180, API-196, API-199)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from openaudience.catalog.audiences import Audiences
from openaudience.catalog.facade import Catalog
from openaudience.catalog.tables import TraitRow

ONLY_OF = {
    "url": "PUSH",
    "secureUrl": "PUSH",
    "tagCode": "PUSH",
    "secureTagCode": "PUSH",
    "valueAlias": "ADS",
}
"""Fields of a mapping that only destinations of one type show."""


def segment_documents(audiences: Audiences) -> list[dict[str, Any]]:
    """Segments by sid, ``sid`` first (API-97); ``mergeRuleDataSourceId`` is the rule in force, 0 the built-in one."""
    return [
        {"sid": sid, "pid": pid, **document, "mergeRuleDataSourceId": audiences.segments[sid].merge_rule}
        for sid, (pid, document) in audiences.documents("segments").items()
    ]


def destination_documents(catalog: Catalog, session: Session, audiences: Audiences) -> list[dict[str, Any]]:
    """Destinations by number with their mappings, which say what they map and whether it goes out now."""
    found = audiences.documents("destinations")
    single = {
        mapping["sid"]
        for _, document in found.values()
        for mapping in document.get("mappings") or ()
        if mapping.get("traitType") == "TRAIT"
    }
    query = select(TraitRow.number, TraitRow.name, TraitRow.document).where(
        TraitRow.environment == catalog.environment, TraitRow.number.in_(single)
    )
    elements = {sid: (name, document.get("description")) for sid, name, document in session.execute(query)}
    for sid, (_, document) in audiences.documents("segments").items():
        elements[sid] = document["name"], document.get("description")
    documents = []
    for number, (pid, document) in found.items():
        labels = frozenset(document.get("dataExportLabels") or ())
        mappings = []
        for mapping in document.get("mappings") or ():
            sid = mapping["sid"]
            segment = audiences.segments.get(sid)
            live = (segment is None or segment.active) and not audiences.blocked(sid, labels)
            mappings.append(_mapping(number, document["destinationType"], mapping, elements[sid], live=live))
        documents.append({"destinationId": number, "pid": pid, **document, "mappings": mappings})
    return documents


def _mapping(
    destination: int, kind: str, mapping: Mapping[str, Any], element: tuple[str, str | None], *, live: bool
) -> dict[str, Any]:
    shown = {name: value for name, value in mapping.items() if name != "activeSince"}
    shown |= {
        "destinationMappingId": mapping["mappingId"],
        "destinationId": destination,
        "traitValue": 0,
        "elementName": element[0],
        "elementDescription": element[1],
        "elementStatus": "active" if live else "inactive",
        "tagCode": None,
        "secureTagCode": None,
    }
    return {name: value for name, value in shown.items() if ONLY_OF.get(name, kind) == kind}
