"""The IDs under which users are exported: whose ordinals they are, how they read, in which order they go (40 §4).

An exported ID is an ordinal of the key's namespace: of the devices for UUID and ECID keys, else of the key source. In
formats with one row per user the exported ordinal is that of the user, and its IDs are looked up for each row.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from openaudience.exports.allowed import AllowedLinks
from openaudience.exports.look import Look
from openaudience.exports.order import byte_order
from openaudience.identity import ecid
from openaudience.identity.ids import Array
from openaudience.identity.keys import compiled
from openaudience.identity.mappings import LinkIndex
from openaudience.ordinals import bitmap_of, ordinals_of
from openaudience.runs.optouts import OptOuts
from openaudience.runs.world import DEVICES
from openaudience.vocabulary import UUID_DPID, IdKind

ECID_KEY = 4
"""The user ID key that stands for Experience Cloud IDs (OB-11, OB-56)."""

Form = Literal["uuid", "ecid", "linked", "customer"]


def form_of(look: Look, key: int, target: int) -> Form:
    """What the IDs of a user ID key are (OB-54 … OB-58)."""
    if key == ECID_KEY:
        return "ecid"
    source = look.sources.get(target if key == UUID_DPID else key)
    kind = None if source is None else source.kind
    if kind is IdKind.ECID:
        return "ecid"
    if key == UUID_DPID or kind is IdKind.UUID:
        return "uuid"
    return "customer" if kind is IdKind.CROSS_DEVICE else "linked"


class Key:
    """The user ID key of a destination. ``by_user``: one row per user instead of one per ID (OB-87)."""

    def __init__(self, look: Look, dpid: int, target: int, pid: int, *, by_user: bool) -> None:
        self.look = look
        self.dpid = dpid
        self.form: Form = form_of(look, dpid, target)
        self.by_user = by_user
        self.organisation = look.organisation(pid)
        self.by_device = self.form != "customer"
        """Whether users are devices, else customers of the key source."""
        self.namespace = dpid if self.form == "customer" or (self.form == "linked" and not by_user) else DEVICES
        """Whose ordinals stand for exported IDs."""
        self.users = DEVICES if self.by_device else dpid
        """Whose ordinals the users are."""
        self.optouts = OptOuts(look.world, [pid])
        """Who may not be exported by the partner (RT-1508)."""
        self._fan: _Fan | None = None

    @property
    def name(self) -> str:
        """Equal for keys whose ordinals mean the same: what one of them delivered, another can build on."""
        return f"{self.form}/{self.namespace}/{self.dpid}"

    @property
    def links(self) -> LinkIndex:
        """The mappings of the key source's IDs to devices, without those who opted out."""
        return self.links_of(self.dpid)

    def links_of(self, dpid: int, to: int = DEVICES) -> LinkIndex:
        """As ``links``, of any data source."""
        links = self.look.world.links(dpid, to)
        return AllowedLinks(links, self.optouts, dpid, to) if self.optouts else links

    # ---- users → exported ordinals ---------------------------------------------------------------------------

    def exported(self, users: BitMap) -> BitMap:
        """The exported ordinals of users: all their IDs (OB-52, OB-53); by-user: the users with one (OB-51)."""
        if self.form == "ecid" and self.organisation is None:
            return BitMap()
        users = self.allowed(users)
        if self.form != "linked":
            return users
        if self._fan is None:
            self._fan = _Fan(self.links, self.look.world.count(DEVICES), self.look.world.count(self.dpid))
        return users & self._fan.mapped if self.by_user else self._fan.out(users)

    def allowed(self, users: BitMap) -> BitMap:
        """Those users who did not opt out."""
        return users - self.optouts.of(self.users) if self.optouts else users

    def pairs(self, users: BitMap) -> NDArray[np.uint64]:
        """All pairs of a device and an ID as device << 32 | ID, ascending, of the given devices (OB-04)."""
        users = users - self.optouts.of(DEVICES) if self.optouts else users
        if self.form in ("linked", "customer"):
            customer, device, _, _ = self.links.pairs()
        else:
            device = customer = ordinals_of(users)
        pairs = (device.astype(np.uint64) << np.uint64(32)) | customer.astype(np.uint64)
        pairs.sort()
        wanted = np.zeros(self.look.world.count(DEVICES), np.bool_)
        wanted[ordinals_of(users)] = True
        chosen: NDArray[np.uint64] = pairs[wanted[pairs >> np.uint64(32)]]
        return chosen

    # ---- text ------------------------------------------------------------------------------------------------

    def texts(self, ids: Array) -> tuple[Array, Array]:
        """The exported texts of IDs of the key, in the order given: (blob uint8, offsets int64[n + 1])."""
        if self.form == "ecid":
            return self.ecids(ids)
        return self.look.world.ids(self.dpid if self.form in ("linked", "customer") else DEVICES).texts(ids)

    def uuids(self, devices: Array) -> tuple[Array, Array]:
        """The UUIDs of devices; −1 gives the empty text."""
        there = devices >= 0
        if there.all():
            return self.look.world.ids(DEVICES).texts(devices)
        blob, offs = self.look.world.ids(DEVICES).texts(devices[there])
        lengths = np.zeros(devices.size, np.int64)
        lengths[there] = np.diff(offs)
        return blob, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])

    def ecids(self, devices: Array) -> tuple[Array, Array]:
        """The ECIDs of devices under the partner's organisation; empty texts where there is none (OB-59)."""
        if self.organisation is None:
            return np.empty(0, np.uint8), np.zeros(devices.size + 1, np.int64)
        blob, offs = self.uuids(devices)
        filled = np.flatnonzero(np.diff(offs))
        texts = ecid.texts(*ecid.to_ecids(self.organisation, *ecid.halves(blob, offs[filled])))
        return texts.reshape(-1), offs

    def ordered(self, rows: BitMap) -> NDArray[np.uint32]:
        """Exported ordinals in the order of their rows: by the ID's bytes, by-user by the UUID's (OB-86)."""
        ordinals = ordinals_of(rows)
        texts = self.uuids if self.by_user and self.by_device else self.texts
        return ordinals[byte_order(ordinals, texts)]

    # ---- devices of rows -------------------------------------------------------------------------------------

    def devices(self, rows: NDArray[np.uint32]) -> tuple[Array, Array, Array]:
        """(offsets, devices, order keys of the syncs) of exported ordinals."""
        if self.namespace == DEVICES:
            return np.arange(rows.size + 1), rows, np.zeros(rows.size, np.int64)
        return self.links.devices(rows)

    def newest_devices(self, rows: NDArray[np.uint32]) -> NDArray[np.int64]:
        """The device of the most recent sync of each exported ordinal, −1 where there is none (OB-53, OB-61)."""
        if self.namespace == DEVICES:
            return rows.astype(np.int64)
        newest: NDArray[np.int64] = self.links.newest_devices(rows)
        return newest


class _Fan:
    """From devices to all their IDs in a source, for many sets of devices."""

    def __init__(self, links: LinkIndex, devices: int, ids: int) -> None:
        nodes = links.mapped_devices()
        self.mapped = bitmap_of(nodes)
        offs, self._other, _ = links.customers(nodes)
        self._begin = np.zeros(devices + 1, np.int64)
        self._begin[nodes + np.int64(1)] = np.diff(offs)
        np.cumsum(self._begin, out=self._begin)
        self._marks = np.zeros(ids, np.bool_)

    def out(self, devices: BitMap) -> BitMap:
        nodes = ordinals_of(devices & self.mapped)
        marks = self._marks
        if nodes.size * 16 < marks.size:
            return bitmap_of(np.unique(_gather(nodes, self._begin, self._other)))
        _mark(nodes, self._begin, self._other, marks)
        found = np.flatnonzero(marks).astype(np.uint32)
        marks[:] = False
        return bitmap_of(found)


@compiled
def _gather(nodes: Array, begin: Array, other: Array) -> Array:
    count = 0
    for node in nodes:
        count += begin[np.int64(node) + 1] - begin[node]
    out = np.empty(count, np.uint32)
    count = 0
    for node in nodes:
        for at in range(begin[node], begin[np.int64(node) + 1]):
            out[count] = other[at]
            count += 1
    return out


@compiled
def _mark(nodes: Array, begin: Array, other: Array, marks: Array) -> None:
    for node in nodes:
        for at in range(begin[node], begin[np.int64(node) + 1]):
            marks[other[at]] = True
