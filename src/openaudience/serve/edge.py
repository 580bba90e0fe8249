"""The part ``edge``: HTTP calls of sites and partners (20-identity-and-realtime), in one process of perhaps several."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from functools import partial

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from openaudience.config import EdgeSection
from openaudience.edge.app import Edge
from openaudience.edge.calls import Room
from openaudience.edge.consent import Consent
from openaudience.errors import OpenAudienceError, StoreUnavailable, SystemFailure
from openaudience.home import Home
from openaudience.runs.site import Site
from openaudience.serve.figures import FIGURES
from openaudience.serve.life import Life
from openaudience.serve.logs import described
from openaudience.serve.sockets import bound
from openaudience.serve.state import FOLDER, Listening
from openaudience.store.files import replace_text

MOST_OF_A_TARGET = 60_000
"""Bytes that are kept of a request target; the parser of targets takes no more than 65,535."""
FLUSH_SECONDS = 5.0
END_SECONDS = 3


class Protocol(HttpToolsProtocol):
    """HTTP as uvicorn reads it, except for request targets that it would refuse or cut.

    Of one that is far too long, enough is kept for the edge to say so (RT-503). A raw ``#``, which a caller ought to
    have encoded, is part of a value; taken for a fragment it would cut an ID short.
    """

    def on_url(self, url: bytes) -> None:
        room = MOST_OF_A_TARGET - len(self.url)
        if room > 0:
            super().on_url(url[:room].replace(b"#", b"%23"))


def edge(life: Life, home: Home) -> None:
    """The body of the parts ``edge``, ``edge-2`` …"""
    settings = home.settings
    sites = [Site(home, "production"), Site(home, "beta")]
    consent = Consent(settings.tcf)
    try:
        rooms = {site.name: Room(site, settings, consent, home.clock) for site in sites}
        application = Edge(rooms, settings, home.clock, partial(_trouble, life))
        with bound("edge", settings.edge.listen, settings.edge.port, shared=settings.edge.workers > 1) as listening:
            server = uvicorn.Server(config(application, settings.edge))

            def serve() -> None:
                server.run(sockets=[listening])
                if not life.stopping:
                    raise SystemFailure("the HTTP server of the edge ended by itself; the log says why")

            def end() -> None:
                life.wait()
                server.should_exit = True

            def flush() -> float:
                for room in rooms.values():
                    room.deny.flush()
                _tell(home, life.state.part, application, rooms)
                return FLUSH_SECONDS

            address, port = listening.getsockname()[:2]
            life.ready(Listening("edge", address, port=port))
            life.together({"http": serve, "end": end, "flush": partial(life.repeat, "deny list", flush)})
            for room in rooms.values():
                room.deny.flush()
    finally:
        for site in sites:
            site.close()


def config(application: Edge, settings: EdgeSection) -> uvicorn.Config:
    """How the edge is served: raw requests to it, no log of them, TLS where there is a certificate."""
    return uvicorn.Config(
        application,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        lifespan="off",
        ws="none",
        loop="uvloop",
        http=Protocol,
        proxy_headers=False,
        ssl_certfile=settings.certificate or None,
        ssl_keyfile=settings.private_key or None,
        timeout_graceful_shutdown=END_SECONDS,
    )


def _trouble(life: Life, error: Exception | None) -> None:
    """Tells the health page and the log what the edge cannot do now (OP-44)."""
    if error is None:
        if life.state.well("calls"):
            life.log.info("works-again", what="calls")
        return
    why = str(error) if isinstance(error, OpenAudienceError) else type(error).__name__
    if life.state.trouble("calls", why):
        life.log.warning("cannot-work", what="calls", **described(error))


def _tell(home: Home, part: str, application: Edge, rooms: dict[str, Room]) -> None:
    """Figures of this process, where the web part finds them (OP-41)."""
    document = asdict(application.figures) | {
        "pid": os.getpid(),
        "redirects_refused": {name: room.redirects_refused for name, room in rooms.items()},
        "colons": {name: room.colons for name, room in rooms.items()},
    }
    try:
        replace_text(home.path / FOLDER / f"{part}{FIGURES}", json.dumps(document))
    except StoreUnavailable:
        return  # the figures of five seconds later do as well
