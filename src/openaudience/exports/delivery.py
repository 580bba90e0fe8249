"""Brings the files of a run to the recipient: one after the other, with retries (OB-207 … OB-209)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from openaudience.catalog.exports import ExportFileRow, ExportRow
from openaudience.catalog.secrets import stored
from openaudience.catalog.tables import DocumentRow
from openaudience.errors import OpenAudienceError, TerminalError
from openaudience.exports.register import Register, attempts_of
from openaudience.runs import faults
from openaudience.runs.site import Site

if TYPE_CHECKING:
    from openaudience.outbound.targets import Target

Connect = Callable[[Site, int, Mapping[str, Any]], "Target"]
"""Gives a connection to a server: its number and its document."""
Tell = Callable[..., None]
"""Hears of events, with their figures, for the log."""


def servers(site: Site) -> dict[int, str]:
    """The names of all delivery servers, by number."""
    query = select(DocumentRow.number, DocumentRow.name).where(
        DocumentRow.environment == site.name, DocumentRow.kind == "destinationServers"
    )
    with site.reading() as session:
        return {number: name for number, name in session.execute(query)}  # noqa: C416 (dict() sees a mapping in it)


def connect(site: Site, number: int, document: Mapping[str, Any]) -> Target:
    """A connection to a delivery server, made when it is first used.

    Raises SystemFailure for secrets that do not open with the key of this home.
    """
    from openaudience.outbound.servers import Server
    from openaudience.outbound.targets import Timeouts, open_target

    with site.reading() as session:
        kept = {
            place: one
            for place, one in stored(session, site.name).items()
            if place.kind == "destinationServers" and place.number == number
        }
    vault = site.home.vault
    secrets = {place.field: vault.unseal(site.name, place, one.value) for place, one in kept.items()}
    settings = site.settings.export
    return open_target(Server.of(number, document), secrets, Timeouts(settings.connect_seconds, settings.idle_seconds))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What deliveries need beside the catalog. ``pause`` waits for some seconds, or less when ``stopping`` is true."""

    connect: Connect
    pause: Callable[[float], object]
    stopping: Callable[[], bool]
    tell: Tell


class Delivery:
    """One run on its way. ``name`` names it for ever: what bears it at the recipient's is this run's own (OB-209).
    ``server`` gives number and document of the server, or says why nothing may be sent any more.
    """

    def __init__(
        self,
        site: Site,
        register: Register,
        row: ExportRow,
        name: str,
        folder: Path,
        server: Callable[[], tuple[int, Mapping[str, Any]] | str],
        around: Surroundings,
    ) -> None:
        self._site = site
        self._register = register
        self._row = row
        self._name = name
        self._folder = folder
        self._server = server
        self._around = around
        self._open = ExitStack()
        self._target: Target | None = None

    def carry_out(self) -> bool:
        """Sends what is not delivered yet; False if it was stopped in the middle. The run has its outcome then."""
        try:
            for file in self._register.files(self._row.run):
                why = None if file.state == "delivered" else self._send(file)
                if why is not None:
                    if why:
                        self._register.failed(self._row.run, why)
                    return bool(why)
        finally:
            self._hang_up()
        faults.reach("export.all-sent")
        self._register.delivered(self._row.run)
        faults.reach("export.delivered")
        return True

    def _send(self, file: ExportFileRow) -> str | None:
        """Sends a file: None if the recipient has it, else why the run is given up; '' if it was stopped."""
        again = file.state == "sending"
        attempts = attempts_of(file)
        while True:
            if attempts and not self._wait_since(attempts):
                return ""
            if self._around.stopping():
                return ""
            begun = self._register.now()
            self._register.sending(file.file)
            faults.reach("export.sending")
            message, final = self._attempt(file, again)
            if message is None:
                faults.reach("export.sent")
            self._register.attempted(file.file, begun, message)
            faults.reach("export.noted")
            if message is None:
                return None
            again = True
            attempts.append({"time": begun, "message": message})
            final = final or len(attempts) > len(self._retries)
            self._around.tell("export-attempt-failed", file=file.name, attempt=len(attempts), why=message)
            if final:
                return f"{file.name}: {message}"

    @property
    def _retries(self) -> Sequence[int]:
        return self._site.settings.export.retry_seconds

    def _wait_since(self, attempts: Sequence[Mapping[str, Any]]) -> bool:
        """Waits until the next attempt is due; False if it was stopped meanwhile."""
        wait = self._retries[min(len(attempts), len(self._retries)) - 1] if self._retries else 0
        due = attempts[-1]["time"] + wait * 1000
        while (left := (due - self._register.now()) / 1000) > 0:
            if self._around.stopping():
                return False
            # a clock that was set back must not make it longer than a wait from now
            self._around.pause(min(left, wait))
        return True

    def _attempt(self, file: ExportFileRow, again: bool) -> tuple[str | None, bool]:
        """One attempt: why it failed, None if it did not; and whether another one is of no use."""
        path = self._folder / file.name
        if not path.is_file():
            return f"{path} is not there any more", True
        try:
            if self._target is None:
                server = self._server()
                if isinstance(server, str):
                    return server, True
                self._target = self._open.enter_context(self._around.connect(self._site, *server))
            self._target.put(path, file.name, run=self._name, again=again)
        except TerminalError as error:
            return str(error), True
        except OpenAudienceError as error:
            self._hang_up()
            return str(error), False
        except Exception as error:
            # not its words: nobody has checked them for secrets
            self._hang_up()
            return f"the delivery failed inside the program: {type(error).__name__}; please report it", False
        return None, False

    def _hang_up(self) -> None:
        """The next attempt begins with a connection of its own."""
        self._target = None
        try:
            self._open.close()
        except Exception as error:
            self._around.tell("export-close-failed", why=type(error).__name__)
