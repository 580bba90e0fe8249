"""A home with destinations whose runs are made by hand: a clock that only moves when told, recipients in folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from exports.receivers import Receivers
from openaudience.catalog.exports import ExportRow
from openaudience.errors import OpenAudienceError
from openaudience.exports.history import run_documents
from openaudience.exports.runner import Runner
from openaudience.home import Home
from openaudience.runs.site import Site
from oracle.driver import Product
from oracle.walkthroughs import onboarded

TICK = datetime(2024, 3, 9, 14, tzinfo=UTC)
"""1709992800000, the first tick of the walk-throughs."""
USERS = "abcd"


def document(*destinations: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A workspace: segment 3100 = trait 8001, IDs of 52011; a server for each destination, rows of OB-350."""
    servers = [
        {"serverId": number, "name": f"Folder {number}", "type": "LOCAL", "directory": f"/nowhere/{number}"}
        for number in range(1, len(destinations) + 1)
    ]
    partner = {
        "pid": 1510,
        "name": "acme",
        "dataSources": [{"dataSourceId": 52011, "name": "CRM", "idType": "COOKIE", "outboundS2S": True}],
        "traits": [onboarded(8001, 52011)],
        "segments": [{"sid": 3100, "name": "A", "dataSourceId": 52011, "segmentRule": "8001T"}],
        "destinationServers": servers,
        "destinationFormats": [
            {
                "formatId": 1,
                "name": "Short",
                "fileName": "<ORDER_ID>_<SYNC_MODE>_<TIMESTAMP>SPLITNUM.sync",
                "row": '<DP_UUID> <SEGMENT_LIST;separator=","> <REMOVED_SEGMENT_LIST;separator=",">',
                **more,
            }
        ],
        "destinations": [
            {
                "destinationId": 7300 + number,
                "name": f"Recipient {number}",
                "destinationType": "S2S",
                "dataSourceId": 52011,
                "userIdKey": 52011,
                "serverId": number,
                "formatId": 1,
                "mappings": [{"sid": 3100, "startDate": "2024-03-01"}],
                **given,
            }
            for number, given in enumerate(destinations, 1)
        ],
    }
    return {"partners": [partner]}


class Office:
    """One home and its recipients."""

    def __init__(self, folder: Path, *destinations: Mapping[str, Any], start: datetime = TICK, **format: Any) -> None:
        self.folder = folder
        self.product = Product(folder / "home", None)
        self.product.now = start - timedelta(days=1)
        self.product.apply(document(*destinations, **format))
        self.receivers = Receivers(folder / "received")
        self._stamp = 1700000000
        self.sync(*USERS)
        self.product.now = start
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.pauses: list[float] = []
        self._home: Home | None = None
        self.site: Site
        self.open()

    def open(self) -> None:
        """What a new process would have."""
        self.close()
        self._home = Home.open(self.product.home, lambda: self.product.now)
        self.site = Site(self._home, "production")
        self.runner = self.make_runner()

    def close(self) -> None:
        if self._home is not None:
            self.site.close()
            self._home.close()
            self._home = None

    def make_runner(self, **more: Any) -> Runner:
        usual: dict[str, Any] = {"connect": self.receivers.connect, "pause": self.pause, "tell": self.tell}
        return Runner(self.site, **{**usual, **more})

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.product.now += timedelta(seconds=seconds)

    def tell(self, event: str, **figures: Any) -> None:
        self.told.append((event, figures))

    # ---- data ------------------------------------------------------------------------------------------------

    def sync(self, *users: str) -> None:
        self._drop("adobe_id_0_52011", [f"{ord(user):038d}\t{user}1" for user in users])

    def gain(self, *users: str) -> None:
        self._drop("ftp_dpm_52011", [f"{user}1\td_sid=8001" for user in users])

    def lose(self, *users: str) -> None:
        self._drop("ftp_dpm_52011", [f"{user}1\td_unsid=8001" for user in users])

    def _drop(self, name: str, lines: list[str]) -> None:
        self._stamp += 1
        (receipt,) = self.product.drop([(f"{name}_{self._stamp}.sync", "".join(f"{x}\n" for x in lines).encode())])
        assert receipt["status"] == "processed", receipt

    # ---- time and runs ---------------------------------------------------------------------------------------

    def at(self, day: int, hour: int = 14, minute: int = 0) -> None:
        """Sets the clock: a day and time in March 2024."""
        self.product.now = datetime(2024, 3, day, hour, minute, tzinfo=UTC)

    def scheduled(self) -> list[ExportRow]:
        """Makes what is due now."""
        return self.runner.finish(self.runner.enter_due())

    def run(self, *destinations: int, mode: Any = "iter") -> list[ExportRow]:
        """Makes a run outside the schedule for each destination."""
        return self.runner.finish(self.runner.enter(destinations or (7301,), mode))

    def documents(self) -> list[dict[str, Any]]:
        return run_documents(self.site)

    def refused(self, what: Callable[[], object]) -> str:
        """What is said when something is refused."""
        try:
            what()
        except OpenAudienceError as error:
            return str(error)
        raise AssertionError("it was not refused")
