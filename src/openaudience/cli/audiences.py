"""Commands about segments and populations (OP-18, OP-20)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING

from openaudience.cli.data import opened_site, show
from openaudience.errors import UsageError

if TYPE_CHECKING:
    from openaudience.cli import Options


def segments(options: Options) -> int:
    from openaudience.runs.inquiry import Inquiry

    with opened_site(options) as site:
        documents = Inquiry(site).segment_documents()
    if options.as_json:
        show(documents)
        return 0
    for one in documents:
        population = one["population"]
        state = "" if one["status"] == "ACTIVE" else "  (paused)"
        print(
            f"{one['sid']:>8}  {population['device']:>12,} devices  {population['cross_device']:>12,} customers  "
            f"{one['name']}{state}"
        )
    if not documents:
        print("no segments")
    return 0


def destinations(options: Options) -> int:
    from openaudience.runs.inquiry import Inquiry

    with opened_site(options) as site:
        documents = Inquiry(site).destination_documents()
    if options.as_json:
        show(documents)
        return 0
    for one in documents:
        mappings = one["mappings"]
        idle = sum(mapping["elementStatus"] == "inactive" for mapping in mappings)
        state = f"  ({idle:,} of them inactive)" if idle else ""
        kind = f"{one['destinationType']:<14}"
        print(f"{one['destinationId']:>8}  {kind} {len(mappings):>6,} mappings  {one['name']}{state}")
    if not documents:
        print("no destinations")
    return 0


def estimate(options: Options, rule: str) -> int:
    from openaudience.runs.estimates import Estimates
    from openaudience.runs.inquiry import Inquiry

    with opened_site(options) as site:
        document = Estimates(Inquiry(site)).estimate(rule)
    if options.as_json:
        show(document)
    else:
        print(f"{document['total']['estimate']:,} profiles satisfy the rule now (exact, merge rules left aside)")
        print(f"{document['real_time']['estimate']:,} of them are devices that made a call within 30 days")
    return 0


def populations(options: Options, sid: int, day: str | None) -> int:
    from openaudience.profiles.stays import RANGES
    from openaudience.runs.inquiry import Inquiry
    from openaudience.runs.populations import Populations

    try:
        chosen = None if day is None else date.fromisoformat(day)
    except ValueError:
        raise UsageError(f"--date {day}: write a date such as 2026-03-31") from None
    with opened_site(options) as site:
        document = Populations(Inquiry(site), chosen).document(sid)
    if options.as_json:
        show(document)
        return 0
    print(f"{sid} {document['name']}: data through {document['date']}, computed {document['computed']}")
    live = document["live"]
    print(f"live: {live['device']:,} devices, {live['cross_device']:,} customers")
    print(f"{'':<38}" + "".join(f"{f'{days} d':>12}" for days in RANGES))
    if "device" in document:
        for kind, word in (("device", "devices"), ("cross_device", "customers")):
            for name, title in (
                ("uniques", "unique realisations"),
                ("count", "realisations"),
                ("populationUniques", "population"),
            ):
                _row(f"{title}, {word}", [document[kind][f"{name}{days}Day"] for days in RANGES])
    else:
        word = "devices" if document["counts"] == "device" else "customers"
        for name, title in (("instantUniques", "real-time population"), ("totalUniques", "total population")):
            _row(f"{title}, {word}", [document[f"{name}{days}Day"] for days in RANGES])
    for bar in document["identities"]:
        print(f"{bar['population']:>12,} customers of {bar['name']}")
    return 0


def _row(title: str, figures: Sequence[int | None]) -> None:
    print(f"{title:<38}" + "".join(f"{'—' if figure is None else f'{figure:,}':>12}" for figure in figures))


def overlaps(options: Options, sids: Sequence[int], others: Sequence[int] | None) -> int:
    from openaudience.runs.inquiry import Inquiry
    from openaudience.runs.populations import overlap_document

    with opened_site(options) as site:
        document = overlap_document(Inquiry(site), sids, others or sids)
    if options.as_json:
        show(document)
        return 0
    print(f"{'':>24}" + "".join(f"{column['sid']:>14}" for column in document["columns"]))
    print(f"{'all':>24}" + "".join(f"{column['size']:>14,}" for column in document["columns"]))
    for row, counts in zip(document["rows"], document["overlaps"], strict=True):
        cells = "".join(f"{'' if count is None else f'{count:,}':>14}" for count in counts)
        print(f"{row['sid']:>10}{row['size']:>14,}{cells}")
    return 0
