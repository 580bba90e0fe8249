"""The signals of one call, and the rule-based traits that they realise (section 10 of the specification)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from openaudience.calls.model import Sent
from openaudience.edge.partners import Partner, Partners
from openaudience.edge.request import Request, decoded, number
from openaudience.inbound.records import clean
from openaudience.rules.traits import CONTROL_KEYS

PRIVATE = "p_"
HEADER = "h_"

HEADERS = {
    "h_host": "host",
    "h_user-agent": "user-agent",
    "h_accept-language": "accept-language",
    "h_referer": "referer",
    "h_referrer": "referer",
    "h_date": "date",
}
"""Signals that come from the headers of the call alone: key → header (RT-1011)."""


@dataclass(slots=True, repr=False)
class Record:
    """The signals of a call after clean-up, keys and values in their original spelling (QL-105 … QL-107).

    ``pairs``: what rules see. ``kept``: beside it, whether the pair may be stored or logged at all; private pairs,
    what is derived from them, and headers may not (RT-1010, RT-1011, QL-1303). Nothing prints the values.
    """

    pairs: list[tuple[str, str]]
    kept: list[bool]


def record(request: Request, headers: Mapping[str, str], partner: Partner | None) -> Record:
    """The record of a call. ``headers``: by name in lower case.

    Names are judged after clean-up and without regard to case, as rules compare them, so that no spelling makes a
    control parameter a signal, a private value a logged one, or a sent value a header.
    """
    pairs: list[tuple[str, str]] = []
    kept: list[bool] = []
    for (name, value), (_, raw) in zip(request.parameters, request.raw, strict=True):
        key = clean(name).lstrip("-")
        folded = key.casefold()
        if not key or key[0] == "_" or folded in CONTROL_KEYS or folded in HEADERS:
            continue
        keep = not folded.startswith((PRIVATE, HEADER))
        for one in _values(raw, value) if b"," in raw else (clean(value),):
            pairs.append((key, one))
            kept.append(keep)
    for key, header in HEADERS.items():
        if (sent := headers.get(header)) is not None:
            pairs.append((key, sent))
            kept.append(False)
    if partner is not None and partner.derived:
        _derive(pairs, kept, partner)
    return Record(pairs, kept)


def realized(
    record: Record, request: Request, partner: Partner | None, partners: Partners
) -> tuple[list[int], list[Sent]]:
    """The rule-based traits that a call realises, each once, ascending, and its signals as they are to be logged.

    ``d_sid`` names traits without a rule check (RT-1009); ``d_tdpid`` and ``d_tdpid_ic`` leave those of some data
    sources only (RT-1012). A signal is used when it satisfies any comparison of the partner's rules (RT-1013).
    """
    if partner is None:
        return [], []
    matcher = partner.matcher
    leaves: set[int] = set()
    sent: list[Sent] = []
    for (key, value), keep in zip(record.pairs, record.kept, strict=True):
        satisfied = matcher.leaves(key, value)
        leaves.update(satisfied)
        if keep:
            sent.append(Sent(key, value, bool(satisfied)))
    sids = {sid for leaf in leaves for sid in matcher.simple.get(leaf, ())}
    sids |= matcher.decide(matcher.complex & leaves)
    for numbers in request.all("d_sid"):
        for one in numbers.split(","):
            sid = number(one.strip(" "))
            if sid is not None and sid in partner.traits:
                sids.add(sid)
    sources = _sources(request, partner, partners)
    if sources is not None:
        sids = {sid for sid in sids if partner.traits.get(sid) in sources}
    return sorted(sids), sent


def _sources(request: Request, partner: Partner, partners: Partners) -> set[int] | None:
    """The data sources whose traits the call is limited to; None: all."""
    numbers, names = request.all("d_tdpid"), request.all("d_tdpid_ic")
    if not numbers and not names:
        return None
    sources = {dpid for one in numbers if (dpid := number(one)) is not None}
    for name in names:
        source = partners.code(name, partner.pid)
        if source is not None:
            sources.add(source.dpid)
    return sources


def _values(raw: bytes, value: str) -> list[str]:
    """The values of a parameter whose text holds raw commas, after clean-up (RT-1004, RT-1005, QL-102, QL-104).

    Quotes protect commas where one opens and one closes a value. Empty values beside others are dropped.
    """
    pieces = [decoded(piece) for piece in raw.split(b",")] if b"%" in raw else value.split(",")
    if '"' in value:
        pieces = _joined(pieces)
    return [one for piece in pieces if (one := clean(piece))] or [""]


def _joined(pieces: list[str]) -> list[str]:
    """Puts together again what quotes hold together. In one pass: a quote that never closes is an ordinary character,
    and then none after it closes either."""
    joined: list[str] = []
    start = None
    for place, piece in enumerate(pieces):
        text = piece.strip(" ")
        opens = start is None and text.startswith('"')
        if opens:
            start = place
        if start is None:
            joined.append(piece)
        elif text.endswith('"') and (not opens or len(text) > 1):
            joined.append(",".join(pieces[start : place + 1]))
            start = None
    return joined if start is None else joined + pieces[start:]


def _derive(pairs: list[tuple[str, str]], kept: list[bool], partner: Partner) -> None:
    """Adds the derived signals of the pairs sent, each once; none of them derives further ones (QL-1302, QL-1303)."""
    places: dict[tuple[str, str], int] = {}
    folded = [(key.casefold(), value.casefold()) for key, value in pairs]
    for place, pair in enumerate(folded):
        places.setdefault(pair, place)
    for source in folded:
        for key, value in partner.derived.get(source, ()):
            target = key.casefold(), value.casefold()
            keep = not source[0].startswith(PRIVATE) and not target[0].startswith((PRIVATE, HEADER))
            place = places.setdefault(target, len(pairs))
            if place == len(pairs):
                pairs.append((key, value))
                kept.append(keep)
            elif keep:
                kept[place] = True
