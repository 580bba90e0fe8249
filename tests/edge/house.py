"""An installation with its edge, in one process: calls go in as ASGI requests, the rest through the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openaudience.edge.app import Edge
from openaudience.edge.calls import Room
from openaudience.edge.consent import Consent
from openaudience.home import Home
from openaudience.runs.site import Site
from oracle.driver import Product

FORM = "application/x-www-form-urlencoded"
U1 = "31415926535897932384626433832795028841"
U2 = "27182818284590452353602874713526624977"
U3 = "14142135623730950488016887242096980785"
REFUSED = "gdpr=1&gdpr_consent=CQdWToAQdWToAAfABBENB4EgAIAAAAAAAAYgEawAQEagAAAA"
"""The consent of a visitor who refused purpose 10."""


@dataclass(frozen=True, slots=True)
class Response:
    """``headers``: in the order sent, names in lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def first(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)

    def raw(self, name: str) -> list[bytes]:
        return [value.encode("utf-8", "surrogateescape") for value in self.all(name)]

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def codes(self) -> list[int]:
        """The codes of the JSON answer's errors, repeats kept."""
        return [error["code"] for error in self.json.get("errors", [])]

    @property
    def cookie(self) -> str | None:
        """The value to which ``demdex`` is set."""
        found = [value for value in self.all("set-cookie") if value.startswith("demdex=")]
        return found[0].split(";")[0].removeprefix("demdex=") if found else None

    @property
    def pixel(self) -> bool:
        return self.status == 200 and self.first("content-type") == "image/gif" and self.body[:6] == b"GIF89a"


class House(Product):
    """``alias``: the partner host that calls go to unless they name another."""

    def __init__(self, home: Path, workspace: Mapping[str, Any], settings: str = "", alias: str = "acme") -> None:
        super().__init__(home, None)
        with (home / "openaudience.toml").open("a", encoding="utf-8") as file:
            file.write(f'\n[edge]\ndomain = "edge.test"\n{settings}\n')
        self.alias = alias
        self.apply(workspace)
        self.opened = Home.open(home, lambda: self.now)
        self.sites = {name: Site(self.opened, name) for name in ("production", "beta")}
        self.edge = self.another_edge()

    def another_edge(self) -> Edge:
        """One more process, as far as the store can tell."""
        settings = self.opened.settings
        consent = Consent(settings.tcf)
        rooms = {
            name: Room(Site(self.opened, name), settings, consent, self.opened.clock) for name in ("production", "beta")
        }
        self.rooms = rooms
        self.troubles: list[Exception] = []
        return Edge(
            rooms, settings, self.opened.clock, lambda error: None if error is None else self.troubles.append(error)
        )

    def call(
        self,
        target: str | bytes,
        *,
        host: str | None = None,
        cookie: str | None = None,
        body: str | bytes | None = None,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
        edge: Edge | None = None,
        scheme: str = "https",
    ) -> Response:
        """One call; ``host``: of the edge domain where it has no dot; ``cookie``: the value of ``demdex``."""
        raw = target if isinstance(target, bytes) else target.encode()
        name = self.alias if host is None else host
        sent = {"host": name if "." in name or not name else f"{name}.edge.test", **(headers or {})}
        if cookie is not None:
            sent["cookie"] = f"demdex={cookie}"
        content = b"" if body is None else body if isinstance(body, bytes) else body.encode()
        if body is not None:
            sent.setdefault("content-type", FORM)
            sent.setdefault("content-length", str(len(content)))
        if not sent["host"]:
            del sent["host"]
        path, _, query = raw.partition(b"?")
        scope: MutableMapping[str, Any] = {
            "type": "http",
            "method": method or ("GET" if body is None else "POST"),
            "raw_path": path,
            "query_string": query,
            "headers": [(key.encode(), value.encode()) for key, value in sent.items()],
            "scheme": scheme,
            "client": ("192.0.2.7", 50_000),
        }
        return asyncio.run(answered(edge or self.edge, scope, content))

    def call_raw(
        self,
        headers: list[tuple[bytes, bytes]],
        target: bytes = b"/event",
        client: str = "",
        *,
        scheme: str = "https",
        method: str = "GET",
        body: bytes = b"",
    ) -> Response:
        """A call with a target and headers of any bytes."""
        path, _, query = target.partition(b"?")
        scope: MutableMapping[str, Any] = {
            "type": "http",
            "method": method,
            "raw_path": path,
            "query_string": query,
            "headers": headers,
            "scheme": scheme,
            "client": (client, 50_000) if client else None,
        }
        return asyncio.run(answered(self.edge, scope, body))

    def event(self, query: str, **more: Any) -> Response:
        """An event that wants JSON."""
        return self.call(f"/event?d_rtbd=json&{query}", **more)

    def close(self) -> None:
        for site in self.sites.values():
            site.close()
        for room in self.rooms.values():
            room.site.close()
        self.opened.close()


async def answered(edge: Edge, scope: MutableMapping[str, Any], body: bytes) -> Response:
    """The answer to one ASGI request."""
    messages: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        messages.append(message)

    await edge(scope, receive, send)
    start = messages[0]
    headers = [(key.decode(), value.decode("utf-8", "surrogateescape")) for key, value in start["headers"]]
    return Response(start["status"], headers, b"".join(message.get("body", b"") for message in messages[1:]))


def trait(sid: int, source: int, rule: str | None, kind: str = "RULE_BASED_TRAIT", **more: Any) -> dict[str, Any]:
    return {
        "sid": sid,
        "name": f"T{sid}",
        "traitType": kind,
        "dataSourceId": source,
        **({} if rule is None else {"traitRule": rule}),
        **more,
    }


def source(dpid: int, kind: str = "CROSS_DEVICE", **more: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"dataSourceId": dpid, "name": f"D{dpid}", "idType": kind}
    if kind == "CROSS_DEVICE":
        known |= {"integrationCode": f"code{dpid}", "supportsAuthenticatedProfile": True}
    return known | more


def acme(**more: Any) -> dict[str, Any]:
    """The common ground of the specification's walk-throughs (20, section 23), and a second partner."""
    partner = {
        "pid": 900,
        "name": "acme",
        "orgId": "53A16ACB5CC1D3760A495C99@AdobeOrg",
        "redirectHosts": ["shop.example"],
        "segmentsInAnswers": True,
        "dataSources": [
            source(7001, integrationCode="crm"),
            source(7002, integrationCode="loyalty"),
            *(source(dpid) for dpid in range(7003, 7010)),
            source(8100, "COOKIE", redirectHosts=["p.example"]),
            source(8200, "COOKIE"),
        ],
        "traits": [
            trait(4001, 8100, 'c_step == "cart"'),
            trait(4002, 8200, 'c_colour == "teal"'),
            trait(4005, 8200, "p_score > 5"),
            trait(4101, 7001, 'tier == "gold"', "ON_BOARDED_TRAIT"),
            trait(4102, 8100, 'ic == "10"', "ON_BOARDED_TRAIT"),
        ],
        "segments": [{"sid": 6001, "name": "S6001", "dataSourceId": 8100, "segmentRule": "4001T AND 4002T"}],
    }
    partner.update(more)
    other = {
        "pid": 901,
        "name": "bolt",
        "orgId": "11111111AAAAAAAA22222222@AdobeOrg",
        "dataSources": [source(9100, "COOKIE"), source(9101)],
        "traits": [trait(9001, 9100, 'c_step == "cart"')],
    }
    return {"partners": [partner, other]}
