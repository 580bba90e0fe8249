"""The mail part: hands receipts to the mail server as they are due (UI-31 … UI-33)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from openaudience.catalog.migrate import ENVIRONMENTS
from openaudience.home import Home
from openaudience.runs.post import PostOffice
from openaudience.runs.site import Site
from openaudience.serve.life import Life

LOOK_SECONDS = 2.0


def mail(life: Life, home: Home) -> None:
    """The body of the part ``mail``."""
    loops: dict[str, Callable[[], None]] = {}
    for name in ENVIRONMENTS:
        site = Site(home, name)
        loops[f"{name} mail"] = partial(_deliver, life, site, PostOffice(site))
    life.ready()
    life.together(loops)


def _deliver(life: Life, site: Site, office: PostOffice) -> None:
    log = life.log.bind(environment=site.name)

    def step() -> float:
        if sent := office.deliver_due(lambda: life.stopping):
            log.info("mails-sent", mails=sent)
        return LOOK_SECONDS

    life.repeat(f"{site.name} mail", step, log)
