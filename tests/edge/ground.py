"""The common ground of the walk-throughs: two partners, their data sources and rule-based traits."""

from __future__ import annotations

from openaudience.catalog.audiences import Audiences
from openaudience.edge.partners import Partner, Partners, Source
from openaudience.edge.request import Request, read
from openaudience.rules.traits import parse
from openaudience.vocabulary import GLOBAL_SOURCES, IdKind

RULES = {
    4001: (8100, 'c_step == "cart"'),
    4002: (8200, 'c_colour == "teal"'),
    4005: (8200, "p_score > 5"),
    4006: (8100, 'h_host == "acme.edge.test" AND c_probe == "host"'),
    4007: (8100, 'h_referrer contains "shop.example" AND c_probe == "page"'),
    4008: (8100, 'c_class == "car"'),
    4009: (8100, 'c_class == "car" AND c_never == "x"'),
    4010: (8100, 'c_kind == "vehicle"'),
}
WITHOUT_RULE = {4003: 8100}
"""Rule-based traits of acme that only ``d_sid`` realises."""

ACME = Partner(
    900,
    "acme",
    access=frozenset({9200, 9400}),
    traits={sid: dpid for sid, (dpid, _) in RULES.items()} | WITHOUT_RULE,
    rules=tuple((sid, parse(rule)) for sid, (_, rule) in RULES.items()),
    derived={
        ("c_item", "suv"): (("c_class", "car"), ("c_wheels", "4")),
        ("c_item", "van"): (("c_class", "car"),),
        ("c_class", "car"): (("c_kind", "vehicle"),),
        ("p_tier", "gold"): (("c_rich", "Yes"),),
        ("c_card", "gold"): (("c_rich", "yes"),),
        ("h_accept-language", "de"): (("c_lang", "german"),),
        ("c_mood", "blue"): (("p_mood", "low"),),
    },
)
OWN = Partner(902, "own")
"""Has data sources of an early version, with codes that nobody gets any more."""
BOLT = Partner(901, "bolt", traits={5001: 9100}, rules=((5001, parse('c_step == "cart"')),))

SOURCES = [
    Source(7001, 900, "crm", IdKind.CROSS_DEVICE, authenticated=True),
    Source(7002, 900, "loyalty", IdKind.CROSS_DEVICE, authenticated=True),
    *(Source(dpid, 900, None, IdKind.CROSS_DEVICE) for dpid in range(7003, 7010)),
    Source(7010, 900, "asleep", IdKind.CROSS_DEVICE, active=False),
    Source(7011, 900, "known", IdKind.CROSS_DEVICE, state=1),
    Source(7012, 900, "open", IdKind.CROSS_DEVICE, guard=False),
    Source(8100, 900),
    Source(8200, 900, "ads"),
    Source(8300, 900, "barred"),
    Source(9100, 901, "crm"),
    Source(9200, 901, "quiet"),
    Source(9300, 901, "lent", shared=True),
    Source(9400, 901, "given", shared=True),
    Source(9501, 902, "DSID_20914"),
    Source(9502, 902, "DSID_19"),
    *(Source(dpid, 0, kind=IdKind.DAID) for dpid in GLOBAL_SOURCES),
]

PARTNERS = Partners(
    1,
    {900: ACME, 901: BOLT, 902: OWN},
    {source.dpid: source for source in SOURCES},
    Audiences({}, {}, {}, {}, {}, {}, {}, {}),
)

FORM = "application/x-www-form-urlencoded"


def got(target: str | bytes, body: bytes | None = None, content_type: str = FORM) -> Request:
    """A call by its target; a body makes it a POST."""
    raw = target.encode() if isinstance(target, str) else target
    path, _, query = raw.partition(b"?")
    return read("GET" if body is None else "POST", path, query, content_type, body or b"")
