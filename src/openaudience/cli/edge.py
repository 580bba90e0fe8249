"""Commands about the HTTP edge: IDs on the deny list (RT-1604)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openaudience.cli.data import opened_site, show
from openaudience.dropoff.paths import printable
from openaudience.errors import InputError

if TYPE_CHECKING:
    from openaudience.cli import Options


def denied(options: Options) -> int:
    from openaudience.clock import iso
    from openaudience.runs.applying import utc

    with opened_site(options) as site:
        denials = site.calls.denials()
    if options.as_json:
        show(
            [
                {"data_source": one.dpid, "id": one.id, "since": iso(utc(one.since)), "calls": one.count}
                for one in denials
            ]
        )
        return 0
    for one in denials:
        print(f"{iso(utc(one.since))}  {one.count:>12,} calls refused  {_written(one.dpid, one.id)}")
    if not denials:
        print("no ID is denied")
    return 0


def allow(options: Options, text: str) -> int:
    from openaudience.identity.formats import aam_reason
    from openaudience.vocabulary import UUID_DPID

    dpid, colon, id = text.partition(":")
    if not colon:
        dpid, id = str(UUID_DPID), text
    if not (dpid.isascii() and dpid.isdigit()) or (not colon and aam_reason(id) is not None):
        raise InputError(f"{text!r} is no ID: write a 38-digit UUID, or DPID:user ID such as 5001:C-1")
    with opened_site(options) as site:
        taken = site.calls.allow(int(dpid), id)
    if not taken:
        raise InputError(f"{text} is not on the deny list; `openaudience denied` shows who is")
    if options.as_json:
        show({"data_source": int(dpid), "id": id, "allowed": True})
    else:
        print(f"{_written(int(dpid), id)} may call again")
    return 0


def _written(dpid: int, id: str) -> str:
    """An ID as ``allow`` takes it."""
    return f"{dpid}:{printable(id)}" if dpid else id
