"""A home whose data sources have recipients, and mail servers to deliver to: for tests of receipts by mail."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import yaml
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from sqlalchemy import select

from openaudience.catalog.ledger import MailRow
from openaudience.home import Home
from openaudience.runs.site import Site
from runs.killing import NOW, command

MAIL = '[mail]\nhost = "127.0.0.1"\nport = 1\n'
SYNC = ("adobe_id_0_5001_1600000000.sync", "1" * 38 + "\tC-1\n" + "2" * 38 + "\tC-2\n")
DATA = ("ftp_dpm_5001_1700000000.sync", "C-1\t10\nC-2\t10,x\nC-3\t10\nbroken\n")
WORKSPACE: dict[str, Any] = {
    "partners": [
        {
            "pid": 1001,
            "name": "acme",
            "dataSources": [
                {"dataSourceId": 5001, "name": "CRM", "idType": "COOKIE", "inboundMailingList": ["crm@acme.example"]},
                {
                    "dataSourceId": 5002,
                    "name": "Shop",
                    "idType": "COOKIE",
                    "inboundMailingList": ["Shop@acme.example", "CRM@acme.example", "second@acme.example"],
                },
            ],
            "traits": [
                {
                    "sid": 901,
                    "name": "T",
                    "traitType": "ON_BOARDED_TRAIT",
                    "dataSourceId": 5001,
                    "traitRule": 'ic == "10"',
                }
            ],
        },
        {
            "pid": 1002,
            "name": "other",
            "dataSources": [
                {
                    "dataSourceId": 6001,
                    "name": "Theirs",
                    "idType": "COOKIE",
                    "inboundMailingList": ["them@other.example"],
                }
            ],
        },
    ]
}


def prepare(folder: Path) -> Path:
    """A new home with the workspace applied; nothing was dropped yet."""
    home = folder / "home"
    assert command(home, "init")[0] == 0
    (folder / "ws.yaml").write_text(yaml.safe_dump(WORKSPACE))
    status, _, errors = command(home, "workspace", "apply", str(folder / "ws.yaml"))
    assert status == 0, errors
    (home / "openaudience.toml").write_text(MAIL)
    return home


def drop(home: Path, name: str, content: str | bytes, *options: str) -> None:
    file = home.parent / "files" / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    status, _, errors = command(home, "ingest", str(file), *options)
    assert status in (0, 1), errors


@contextmanager
def opened(home: Path, environment: str = "production", clock: Callable[[], datetime] = lambda: NOW) -> Iterator[Site]:
    with Home.open(home, clock) as opened_home:
        site = Site(opened_home, environment)
        yield site
        site.close()


def mails(home: Path, environment: str = "production") -> list[MailRow]:
    with opened(home, environment) as site, site.reading() as session:
        return list(session.scalars(select(MailRow).where(MailRow.environment == site.name).order_by(MailRow.mail)))


def to(mail: MailRow) -> list[str]:
    addresses: list[str] = json.loads(mail.recipients)
    return addresses


class Sink:
    """What a mail server was given, and what it answers."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.connections = 0
        self.refuse: dict[str, str] = {}
        """Answers to RCPT, by address."""
        self.answer: Callable[[], str] = lambda: "250 OK taken"

    async def handle_EHLO(
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        self.connections += 1
        session.host_name = hostname
        return responses

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refuse:
            return self.refuse[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        answer = self.answer()
        if answer.startswith("250"):
            self.envelopes.append(envelope)
        return answer

    @property
    def wires(self) -> list[bytes]:
        """The mails as they came."""
        return [one.original_content for one in self.envelopes if one.original_content is not None]

    @property
    def messages(self) -> list[EmailMessage]:
        return [message_from_bytes(wire, policy=default) for wire in self.wires]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def serving(sink: Sink, port: int, **options: Any) -> Iterator[None]:
    """A real mail server in a thread of its own."""
    controller = Controller(sink, hostname="127.0.0.1", port=port, **options)
    controller.start()
    try:
        yield
    finally:
        controller.stop()
