"""A call while it is being decided: what was sent, what is known of it so far, and how it is answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from openaudience.calls.model import Sent
from openaudience.edge.codes import Fault
from openaudience.edge.consent import Verdict
from openaudience.edge.declared import Declared
from openaudience.edge.partners import Partner, Source
from openaudience.edge.published import Published
from openaudience.edge.request import Request
from openaudience.identity import ecid


class Stop(Exception):
    """The call ends here; its faults say why (RT-501). ``Visit.stop`` makes it."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a host stands for. ``label``: what stands before the edge domain, or None for another host."""

    host: str
    label: str | None


@dataclass(slots=True)
class Visit:
    """A call while it is being decided."""

    request: Request
    headers: Mapping[str, str]
    place: Place
    secure: bool
    now: datetime
    published: Published
    tid: str
    partner: Partner | None = None
    """Whose call it is: his are the codes and the organisation (RT-514)."""
    concerned: Partner | None = None
    """To whom its data belong: of a sync, the owner of the data source (RT-707)."""
    faults: list[Fault] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    cookie: str | None = None
    marked: bool = False
    """Whether the browser bears the mark of a platform opt-out (RT-1511)."""
    named: str | None = None
    """The device that ``d_uuid`` or ``d_mid`` names."""
    declared: Declared = field(default_factory=Declared)
    asking: Source | None = None
    """The data source whose provider asks for the device's ID alone (RT-712)."""
    traits: list[int] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    uuid: str = ""
    segments: list[int] = field(default_factory=list)
    refused_host: str | None = None
    """The host that no redirect may lead to (RT-705)."""

    @property
    def as_json(self) -> bool:
        return wants_json(self.request)

    @property
    def organisation(self) -> str | None:
        """Under which the call's ECIDs stand (RT-110)."""
        return None if self.partner is None else self.partner.org

    def stop(self, *faults: Fault) -> Stop:
        """Notes the faults that end the call; to be raised."""
        self.faults += faults
        return Stop()


def new_uuid() -> str:
    """The ID of a new device (RT-112)."""
    return str(ecid.new_uuids(1).tobytes().decode())


def wants_json(request: Request) -> bool:
    """Whether a call is answered in JSON; a sync always ends in an image or a redirect (RT-710)."""
    return request.endpoint == "id" or (request.first("d_rtbd") == "json" and request.endpoint != "ibs")
