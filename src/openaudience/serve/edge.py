"""The part ``edge``: HTTP calls of sites and partners (20-identity-and-realtime), in one process of perhaps several."""

from __future__ import annotations

import json
import os
from functools import partial

import uvicorn

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
from openaudience.serve.protocol import Protocol, most_connections
from openaudience.serve.sockets import bound
from openaudience.serve.state import FOLDER, Listening
from openaudience.store.files import replace_text

FLUSH_SECONDS = 5.0
END_SECONDS = 3


def edge(life: Life, home: Home) -> None:
    """The body of the parts ``edge``, ``edge-2`` …"""
    settings = home.settings
    sites = [Site(home, "production"), Site(home, "beta")]
    consent = Consent(settings.tcf)
    Protocol.most_connections = most_connections()
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
                try:
                    for room in rooms.values():
                        room.deny.flush()
                    _tell(home, life.state.part, application, rooms)
                except (OpenAudienceError, OSError):
                    raise
                except Exception as error:
                    # calls are answered whatever becomes of figures, so this must not end the process
                    life.log.error("failed", what="deny list", **described(error))
                    raise SystemFailure(
                        f"deny list and figures could not be written: {type(error).__name__}"
                    ) from error
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
    document = application.figures.document() | {
        "pid": os.getpid(),
        "redirects_refused": {name: room.redirects_refused.copy() for name, room in rooms.items()},
        "colons": {name: room.colons for name, room in rooms.items()},
    }
    try:
        replace_text(home.path / FOLDER / f"{part}{FIGURES}", json.dumps(document))
    except StoreUnavailable:
        return  # the figures of five seconds later do as well
