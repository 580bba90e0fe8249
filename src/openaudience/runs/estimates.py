"""The size that a segment rule would have now, exact and without saving it (QL-1201 … QL-1204)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from pyroaring import BitMap

from openaudience.catalog.audiences import BUILT_IN, MergeRule
from openaudience.catalog.checks import THIRD_PARTY
from openaudience.errors import RuleError
from openaudience.ordinals import bitmap_of
from openaudience.rules.segments import FrequencyTerm, SegmentTree, parse_segment
from openaudience.rules.tree import leaves
from openaudience.runs.inquiry import Inquiry
from openaudience.runs.site import DAY
from openaudience.runs.world import DEVICES
from openaudience.segments.evaluation import Evaluation, Segments

MOST_FREQUENCIES = 4
REAL_TIME_DAYS = 30
_TRAIT = re.compile(r"\b([0-9]{1,10})T\b", re.IGNORECASE)
_FREQUENCY = re.compile(r"\bfrequency\b", re.IGNORECASE)


class Estimates:
    """Sizes of rules in one look at an environment; keep it for several rules."""

    def __init__(self, look: Inquiry) -> None:
        self._look = look

    def estimate(self, text: str) -> dict[str, dict[str, int]]:
        """``{total, real_time}``, each ``{estimate, lower, upper}``, the three equal as nothing is sampled.

        Every stored profile is judged alone, whatever merge rule the segment would have (QL-1203). The real-time size
        is that of 30 days (``real_time``).

        Raises RuleError: the rule's own fault (QL-1204), or ``E_ESTIMATE_RF`` for more than four frequencies.
        """
        found = self._satisfying(text)
        return {
            "total": _exact(sum(map(len, found.values()))),
            "real_time": _exact(self._calling(text, found, REAL_TIME_DAYS)),
        }

    def total(self, text: str) -> int:
        """Profiles, devices and customers, that satisfy the rule now. Raises as ``estimate``."""
        return sum(map(len, self._satisfying(text).values()))

    def real_time(self, text: str, days: int = REAL_TIME_DAYS) -> int:
        """Devices that satisfy the rule now and made a call of its partner within so many days of 24 hours (QL-1201).

        Raises as ``estimate``.
        """
        return self._calling(text, self._satisfying(text), days)

    def _calling(self, text: str, found: Mapping[int, BitMap], days: int) -> int:
        look = self._look
        called = look.called(DEVICES, self._partner(text), begin=look.now - days * DAY + 1).select("ord").unique()
        return found.get(DEVICES, BitMap()).intersection_cardinality(bitmap_of(called.collect()["ord"].to_numpy()))

    def _satisfying(self, text: str) -> dict[int, BitMap]:
        """By namespace, the profiles that satisfy a rule now, without those opted out (RT-1508)."""
        tree = self.parsed(text)
        # each namespace has a merge rule of its own, by which every profile of it is judged alone
        rules = {namespace: _alone(namespace) for namespace in self._look.qualified.namespaces()}
        segments = Segments({namespace: (tree, namespace) for namespace in rules}, rules)
        evaluation = Evaluation(segments, self._look.qualified, self._look.world.links, self._look.now // DAY)
        found: dict[int, BitMap] = {}
        partner = self._partner(text)
        for _, members in evaluation.run():
            for namespace, profiles in members.items():
                inside = profiles - self._look.world.opted_out(partner, namespace)
                found[namespace] = found.get(namespace, BitMap()) | inside
        return found

    def parsed(self, text: str) -> SegmentTree:
        """The tree of a rule over the traits of one partner: the one whose trait it names first (QL-007)."""
        tree = parse_segment(text, traits=_Traits(self, self._partner(text)), max_traits=self._limit)
        count = sum(isinstance(term, FrequencyTerm) for term in leaves(tree))
        if count > MOST_FREQUENCIES:
            raise RuleError(
                "E_ESTIMATE_RF",
                [found.start() for found in _FREQUENCY.finditer(text)][MOST_FREQUENCIES],
                f"the rule has {count} FREQUENCY terms, an estimate takes at most {MOST_FREQUENCIES}; "
                "the rule itself can be saved",
            )
        return tree

    def _partner(self, text: str) -> int:
        """Whose rule it is: the partner of the first trait that it names and that there is; 0 if there is none."""
        named = (int(number) for number in _TRAIT.findall(text))
        return next((self._look.traits[sid].pid for sid in named if sid in self._look.traits), 0)

    @property
    def _limit(self) -> int:
        return int(self._look.site.settings.limits.traits_per_segment)

    @cached_property
    def _third_party(self) -> frozenset[int]:
        """Data sources that are not the account's own (QL-806)."""
        documents = self._look.site.catalog.data_source_documents()
        return frozenset(one["dataSourceId"] for one in documents if one.get("type") == THIRD_PARTY)


class _Traits:
    """The traits of one partner, as rules ask for them (``rules.segments.Lookup``)."""

    def __init__(self, estimates: Estimates, pid: int) -> None:
        self._estimates = estimates
        self._audiences = estimates._look.audiences
        self._pid = pid

    def type(self, sid: int) -> str | None:
        trait = self._audiences.traits.get(sid)
        return None if trait is None or trait.pid != self._pid else trait.type

    def third_party(self, sid: int) -> bool:
        return self._audiences.source(sid) in self._estimates._third_party

    def members(self, sid: int) -> frozenset[int]:
        return self._audiences.folder_members(sid)


def _alone(namespace: int) -> MergeRule:
    if namespace == DEVICES:
        return BUILT_IN
    return MergeRule(namespace, 0, "", "ALL_CROSS_DEVICE", "NO_DEVICE", (namespace,))


def _exact(size: int) -> dict[str, Any]:
    return {"estimate": size, "lower": size, "upper": size}
