"""The HTTP side: ``/healthz``, ``/readyz``, ``/metrics`` (OP-41)."""

from __future__ import annotations

from functools import partial

import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from openaudience.errors import SystemFailure
from openaudience.home import Home
from openaudience.serve.figures import Figures
from openaudience.serve.life import Life
from openaudience.serve.readiness import checks, failing_exports, mails
from openaudience.serve.sockets import bound
from openaudience.serve.state import Listening

COUNT_SECONDS = 10.0
END_SECONDS = 2
MOST_AT_ONCE = 200


def web(life: Life, home: Home) -> None:
    """The body of the part ``web``."""
    settings = home.settings.web
    with bound("web", settings.listen, settings.port) as listening:
        figures = Figures(home)
        server = uvicorn.Server(
            uvicorn.Config(
                application(home, figures),
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
                loop="asyncio",
                http="h11",
                limit_concurrency=MOST_AT_ONCE,
                timeout_graceful_shutdown=END_SECONDS,
            )
        )

        def serve() -> None:
            server.run(sockets=[listening])
            if not life.stopping:
                raise SystemFailure("the HTTP server ended by itself; the log says why")

        def end() -> None:
            life.wait()
            server.should_exit = True

        def count() -> float:
            figures.refresh()
            return COUNT_SECONDS

        address, port = listening.getsockname()[:2]
        life.ready(Listening("web", address, port=port))
        life.together({"http": serve, "end": end, "figures": partial(life.repeat, "figures", count)})


def application(home: Home, figures: Figures) -> Starlette:
    """The three pages."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(figures)

    # None of them is a coroutine: they ask disk and catalog, and run in threads of the framework
    def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    def readyz(_: Request) -> Response:
        found = checks(home)
        good = all(check.why is None for check in found)
        document = {
            "ready": good,
            "checks": {check.name: {"ok": check.why is None, "why": check.why} for check in found},
            "mails": mails(home),
            "failing_exports": failing_exports(home),
        }
        return JSONResponse(document, status_code=200 if good else 503)

    def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return Starlette(
        routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)],
    )
