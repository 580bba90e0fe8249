"""Whom an opt-out call opts out, and whom the refusal of consent does (20, section 15 and RT-1805)."""

from __future__ import annotations

from collections.abc import Iterable

from openaudience.calls.model import PLATFORM, Call, OptOut, Origin
from openaudience.calls.store import View
from openaudience.edge import codes
from openaudience.edge.answers import NOTARGET
from openaudience.edge.visit import Visit, new_uuid


def platform(visit: Visit) -> Call | None:
    """The browser's device, for all partners (RT-1501); None: it has none, so that there is nothing to store."""
    if visit.cookie is None:
        return None
    return _call(visit, [OptOut(PLATFORM, 0, visit.cookie)])


def partner(visit: Visit, view: View) -> Call | None:
    """Customer IDs with the devices of their newest mappings, or the device named (RT-1502 … RT-1505).

    For the partner concerned, which there has to be. Notes the IDs in the faults of the call.
    """
    assert visit.concerned is not None
    pid = visit.concerned.pid
    rows: dict[OptOut, str] = {}
    devices: list[str] = [visit.named] if visit.named else []
    for one in visit.declared.ids:
        rows[OptOut(pid, one.source.dpid, one.id)] = one.shown
        if not visit.named:
            uuid = visit.published.device_of(view, one.source.dpid, one.id)
            devices.append(uuid or visit.cookie or new_uuid())
    if not visit.declared.count and not devices and visit.cookie:
        # an ID that was meant and cannot be read says nothing of the browser (RT-1504, RT-1514)
        devices.append(visit.cookie)
    shown = list(rows.values()) or devices or ([NOTARGET] if visit.marked else [])
    rows.update((OptOut(pid, 0, uuid), uuid) for uuid in devices)
    visit.faults += [codes.opted_out(one) for one in shown]
    return _call(visit, rows) if rows else None


def refused(visit: Visit, view: View) -> Call | None:
    """Every ID of the call, also the browser's device, for the partner concerned (RT-1805). The answer tells of the
    refusal only."""
    assert visit.concerned is not None
    faults = list(visit.faults)
    call = partner(visit, view)
    visit.faults = faults
    rows = [] if call is None else list(call.optouts)
    if visit.cookie and not visit.named:
        rows.append(OptOut(visit.concerned.pid, 0, visit.cookie))
    return _call(visit, rows) if rows else None


def _call(visit: Visit, rows: Iterable[OptOut]) -> Call:
    pid = None if visit.concerned is None else visit.concerned.pid
    return Call(
        int(visit.now.timestamp()), pid, "", False, Origin.EVENT, optouts=tuple(dict.fromkeys(rows)), tid=visit.tid
    )
