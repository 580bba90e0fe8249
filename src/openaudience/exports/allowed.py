"""Mappings without those who opted out: what exports may say of anybody (20 §15)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from openaudience.identity.ids import Array
from openaudience.identity.mappings import LinkIndex
from openaudience.ordinals import bitmap_of, ordinals_of
from openaudience.runs.optouts import OptOuts

Lists = Callable[[Array], tuple[Array, Array, Array]]


class AllowedLinks(LinkIndex):
    """The mappings of ``links`` both ends of which may be exported. ``dpid``, ``to``: whose IDs they are."""

    def __init__(self, links: LinkIndex, optouts: OptOuts, dpid: int, to: int) -> None:
        super().__init__([])
        self._all = links
        self._optouts = optouts
        self._ends = dpid, to

    def devices(self, customers: Array) -> tuple[Array, Array, Array]:
        """As of all mappings."""
        return self._allowed(customers, *self._all.devices(customers), near=0)

    def customers(self, devices: Array) -> tuple[Array, Array, Array]:
        """As of all mappings."""
        return self._allowed(devices, *self._all.customers(devices), near=1)

    def pairs(self) -> tuple[Array, Array, Array, Array]:
        """As of all mappings."""
        customers, devices, first, last = self._all.pairs()
        stay = ~(self._optouts.hit(self._ends[0], customers) | self._optouts.hit(self._ends[1], devices))
        return customers[stay], devices[stay], first[stay], last[stay]

    def mapped_devices(self) -> Array:
        """As of all mappings."""
        lost = self._all.devices(ordinals_of(self._optouts.of(self._ends[0])))[1]
        return self._mapped(self._all.mapped_devices(), self._ends[1], lost, self.customers)

    def mapped_customers(self) -> Array:
        """As of all mappings."""
        lost = self._all.customers(ordinals_of(self._optouts.of(self._ends[1])))[1]
        return self._mapped(self._all.mapped_customers(), self._ends[0], lost, self.devices)

    def _mapped(self, mapped: Array, dpid: int, lost: Array, lists: Lists) -> Array:
        """Those mapped to somebody, where ``lost`` are those mapped to somebody opted out."""
        near = np.unique(lost)
        alone = near[np.diff(lists(near)[0]) == 0]
        return ordinals_of(bitmap_of(mapped) - self._optouts.of(dpid) - bitmap_of(alone))

    def _allowed(
        self, asked: Array, offs: Array, found: Array, last: Array, *, near: int
    ) -> tuple[Array, Array, Array]:
        asked_dpid, found_dpid = self._ends[near], self._ends[1 - near]
        stay = ~(self._optouts.hit(found_dpid, found) | np.repeat(self._optouts.hit(asked_dpid, asked), np.diff(offs)))
        kept = np.zeros(found.size + 1, np.int64)
        np.cumsum(stay, out=kept[1:])
        return kept[offs], found[stay], last[stay]
