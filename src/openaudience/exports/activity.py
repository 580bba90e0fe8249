"""Who was active lately: the active-user filter of full runs (OB-73)."""

from __future__ import annotations

import numpy as np
from pyroaring import BitMap

from openaudience.catalog.audiences import Destination
from openaudience.exports.keys import Key
from openaudience.exports.look import Look
from openaudience.ordinals import bitmap_of
from openaudience.profiles.index import joined_key
from openaudience.runs.site import DAY
from openaudience.runs.world import DEVICES


def active_users(look: Look, destination: Destination, key: Key) -> BitMap | None:
    """The users of a key that pass the filter of a full run at ``look.now``; None if it lets all pass.

    ``customer``: a trait of the account was realized within the look-back; ``platform``: any trait was, or an ID was
    synced. Loads in force are all that is known of the past.
    """
    if destination.sync_type == "lifetime" or destination.lookback is None:
        return None
    since = look.now - destination.lookback * DAY
    ours = destination.pid if destination.sync_type == "customer" else None
    users = _realized(look, key.users, since, ours)
    if destination.sync_type == "platform":
        users |= _synced(look, key.users, since)
    return users


def _realized(look: Look, namespace: int, since: int, pid: int | None) -> BitMap:
    """Profiles for which a trait (of one account, or any) was realized at or after ``since``."""
    users = BitMap()
    sids = [trait.sid for trait in look.audiences.traits.values() if pid is None or trait.pid == pid]
    for load in look.loads:
        if load.namespace != namespace or load.at < since:
            continue
        bitmaps = look.world.load(load.load)
        if bitmaps is None:
            continue
        there = set(bitmaps.keys())
        for sid in sids:
            if joined_key(sid) in there:
                users |= bitmaps.get(joined_key(sid))
    return users


def _synced(look: Look, namespace: int, since: int) -> BitMap:
    """Devices or customers of a namespace with a mapping synced at or after ``since``."""
    first = min((load.position for load in look.loads if load.at >= since), default=None)
    users = BitMap()
    if first is None:
        return users
    for dpid, to in look.world.link_namespaces():
        if to != DEVICES or dpid not in look.sources or namespace not in (DEVICES, dpid):
            continue
        customers, devices, _, last = look.world.links(dpid).pairs()
        recent = last >= first << 32
        users |= bitmap_of(np.unique((devices if namespace == DEVICES else customers)[recent]))
    return users
