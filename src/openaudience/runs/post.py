"""The post office: hands queued receipts to the mail server, again and again while it is down (UI-31, UI-33).

SMTP cannot promise exactly-once: a crash between the server's answer and its note in the catalog sends a mail twice.
Both copies bear one Message-ID.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import re
import smtplib
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any

from sqlalchemy import func, select

from openaudience.catalog.ledger import MailRow
from openaudience.errors import InputError, StoreUnavailable
from openaudience.runs import mailing
from openaudience.runs.applying import utc
from openaudience.runs.site import DAY, Site
from openaudience.store.files import locked

RETRIES = (60, 5 * 60, 15 * 60, 60 * 60)
"""Seconds to wait after the first, second … failed attempt; the last one goes on (UI-33)."""

PATIENCE = DAY
"""Seconds after which a mail that cannot be handed over is given up (UI-33)."""

LONGEST_LINE = 990
"""Bytes of a line that every mail server takes as it is."""

_SENDER = re.compile(
    r"(?:(?P<name>[^<>@,:;\"\\\x00-\x1f\x7f-\x9f]*)<)?"
    r"(?P<address>[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9.-]+)(?(name)>)"
)
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

Refused = Mapping[str, tuple[int, bytes]]


class PostOffice:
    """Hands the mails of one environment to the server of ``[mail]``.

    ``connect`` opens a connection, ready to send; tests give another one. Raises InputError, here and nowhere later,
    where ``receipts.from`` or ``receipts.always`` hold no e-mail addresses.
    """

    def __init__(self, site: Site, connect: Callable[[Site], smtplib.SMTP] | None = None) -> None:
        self._site = site
        self._connect = connect or connected
        bad = mailing.invalid(site.settings.receipts.always)
        if bad is not None:
            raise InputError(f"receipts.always: {bad!r} is no e-mail address; correct it in openaudience.toml")
        self._sender = sender_of(site)

    def deliver_due(self, stopping: Callable[[], bool] = lambda: False) -> int:
        """Sends what is due and tells how many mails the server took.

        Ends early when ``stopping()`` is true between two mails. Does nothing while another post office is at work on
        this environment. A server that does not take mails is no error: they are due again by the schedule.
        """
        with self._alone() as free:
            return self._deliver(stopping) if free else 0

    def _deliver(self, stopping: Callable[[], bool]) -> int:
        waiting = self._due()
        taken, lost = 0, 0
        server: smtplib.SMTP | None = None
        try:
            while waiting and not stopping():
                try:
                    server = server or self._connect(self._site)
                except (OSError, InputError) as error:
                    self._postpone(waiting, _words(error))
                    break
                mail = self._mail(waiting.pop(0))
                try:
                    refused = _send(server, self.message(mail), self._sender, json.loads(mail.recipients))
                except OSError as error:
                    self._postpone([mail.mail], _words(error))
                    if not _lost(server, error):
                        continue
                    server.close()
                    server, lost = None, lost + 1
                    if lost == 2:
                        # twice running: it is the server, not the mail
                        self._postpone(waiting, _words(error))
                        break
                else:
                    taken += self._note(mail, refused)
                    lost = 0
        finally:
            if server is not None:
                with suppress(OSError):
                    server.quit()
        return taken

    def send_test(self, address: str) -> str:
        """Mails a receipt marked as a test and gives the server's answer (UI-73).

        Raises InputError for what is no address, StoreUnavailable with the server's words where it takes no mail.
        """
        settings = self._site.settings.mail
        if not settings.host:
            raise InputError("no mail server is configured; set mail.host in openaudience.toml")
        if mailing.invalid([address]):
            raise InputError(f"{address!r} is no e-mail address; name one such as data-team@example.com")
        subject, text = mailing.sample(self._site)
        now = self._site.now()
        mail = MailRow(
            environment=self._site.name,
            receipt=0,
            recipients=json.dumps([address]),
            subject=subject,
            body=text,
            queued=now,
        )
        try:
            server = self._connect(self._site)
            try:
                server.ehlo_or_helo_if_needed()
                _accepted(server.mail(self._sender))
                _accepted(server.rcpt(address))
                answer = _accepted(server.data(self.message(mail).as_bytes()))
            finally:
                server.close()
        except OSError as error:
            raise StoreUnavailable(
                f"the mail server {settings.host}:{settings.port} did not take the mail: {_words(error)}"
            ) from error
        return answer

    def message(self, mail: MailRow) -> EmailMessage:
        """The mail as it is sent, byte for byte the same at every attempt."""
        message = EmailMessage(policy=SMTP)
        # who else gets a receipt is nobody's business: the lists of several partners may be joined
        recipients = json.loads(mail.recipients)
        message["From"] = self._site.settings.receipts.from_
        message["To"] = recipients[0] if len(recipients) == 1 else "undisclosed-recipients:;"
        # what reads as an encoded word would be decoded while the header is made, line ends and all
        message["Subject"] = _one_line(mail.subject).replace("=?", "= ?")
        message["Date"] = format_datetime(utc(mail.queued))
        message["Message-ID"] = self._message_id(f"{mail.environment} {mail.receipt} {mail.queued}")
        message["Auto-Submitted"] = "auto-generated"
        # plain wherever it can be, so that who looks for the receipt's lines need not decode anything
        plain = mail.body.isascii() and max(map(len, mail.body.splitlines())) < LONGEST_LINE
        message.set_content(mail.body, charset="utf-8", cte="7bit" if plain else "quoted-printable")
        return message

    def _message_id(self, what: str) -> str:
        digest = hmac.new(self._site.home.secret.secret, f"mail {what}".encode(), hashlib.sha256).hexdigest()
        return f"<{digest[:40]}@{self._sender.rpartition('@')[2]}>"

    # ---- the queue -------------------------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Gives whether no other post office is at work on this environment, and keeps others out."""
        with locked(self._site.folder / "mail.lock", fcntl.LOCK_EX | fcntl.LOCK_NB) as free:
            yield free

    def _due(self) -> list[int]:
        site = self._site
        query = select(MailRow.mail).where(
            MailRow.environment == site.name, MailRow.state == "queued", MailRow.due <= site.now()
        )
        with site.reading() as session:
            return list(session.scalars(query.order_by(MailRow.due, MailRow.mail)))

    def _mail(self, number: int) -> MailRow:
        with self._site.reading() as session:
            return session.get_one(MailRow, number)

    def _note(self, mail: MailRow, refused: Refused) -> int:
        """Notes whom the server took the mail for; gives 1 if anybody.

        Each row is about recipients who fared alike: those the server wants later have a mail of their own again, and
        so have those it refused for good.
        """
        recipients = json.loads(mail.recipients)
        parts = {
            "sent": [one for one in recipients if one not in refused],
            "queued": [one for one in recipients if one in refused and refused[one][0] < 500],
            "failed": [one for one in recipients if one in refused and refused[one][0] >= 500],
        }
        with self._site.writing() as session:
            row = session.get_one(MailRow, mail.mail)
            first = True
            for state, some in parts.items():
                if not some:
                    continue
                if not first:
                    row = MailRow(**{name: getattr(mail, name) for name in _COPIED})
                    session.add(row)
                first = False
                row.recipients = json.dumps(some)
                words = "; ".join(f"{one}: {_answer(*refused[one])}" for one in some if one in refused)
                if state == "queued":
                    self._later(row, words)
                else:
                    row.state, row.attempts, row.error = state, mail.attempts + 1, words or None
                    row.sent = self._site.now() if state == "sent" else None
        return 1 if parts["sent"] else 0

    def _postpone(self, numbers: Sequence[int], error: str) -> None:
        """Notes a failed attempt of several mails."""
        with self._site.writing() as session:
            for number in numbers:
                self._later(session.get_one(MailRow, number), error)

    def _later(self, row: MailRow, error: str) -> None:
        """Makes a mail due again by the schedule, a last time a day after it was queued; gives it up after that."""
        now = self._site.now()
        wait = RETRIES[min(row.attempts, len(RETRIES) - 1)]
        row.attempts, row.error = row.attempts + 1, error
        if now >= row.queued + PATIENCE:
            row.state = "failed"
        else:
            row.due = min(now + wait, row.queued + PATIENCE)


_COPIED = ("environment", "receipt", "job", "recipients", "subject", "body", "state", "attempts", "queued", "due")


def summary(site: Site) -> dict[str, Any]:
    """How the mails of an environment stand: numbers ``queued``, ``sent``, ``failed``; ``oldest_due`` in UTC seconds
    and the last ``error``, both of what is queued, or null.
    """
    here = MailRow.environment == site.name
    with site.reading() as session:
        counts = dict.fromkeys(("queued", "sent", "failed"), 0)
        for state, count in session.execute(select(MailRow.state, func.count()).where(here).group_by(MailRow.state)):
            counts[state] = count
        waiting = here & (MailRow.state == "queued")
        oldest = session.scalar(select(func.min(MailRow.due)).where(waiting))
        error = session.scalars(
            select(MailRow.error).where(waiting, MailRow.error.is_not(None)).order_by(MailRow.mail.desc()).limit(1)
        ).first()
    return {**counts, "oldest_due": oldest, "error": error}


def sender_of(site: Site) -> str:
    """The address in ``receipts.from``, which may stand behind a name: ``Audience data <noreply@example.com>``."""
    text = site.settings.receipts.from_
    match = _SENDER.fullmatch(text)
    if match is None:
        raise InputError(f"receipts.from: {text!r} is no e-mail address; correct it in openaudience.toml")
    return match["address"]


def connected(site: Site) -> smtplib.SMTP:
    """A connection to the server of ``[mail]``, secured and logged in as it says; never less than that.

    Raises OSError as ``smtplib`` does, InputError for a ``ca_file`` that cannot be read.
    """
    settings = site.settings.mail
    # the name in the greeting: asking the resolver for the machine's own name may take half a minute
    name = sender_of(site).rpartition("@")[2]
    timeout = float(settings.timeout_seconds)
    if settings.tls == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(
            settings.host, settings.port, name, timeout=timeout, context=_trust(site)
        )
    else:
        server = smtplib.SMTP(settings.host, settings.port, name, timeout=timeout)
    try:
        if settings.tls == "starttls":
            server.starttls(context=_trust(site))
        if settings.user:
            server.login(settings.user, settings.password)
    except BaseException:
        server.close()
        raise
    return server


def _trust(site: Site) -> ssl.SSLContext:
    file = site.settings.mail.ca_file
    try:
        return ssl.create_default_context(cafile=str(site.home.path / file) if file else None)
    except OSError as error:
        raise InputError(f"mail.ca_file: {file} cannot be read as certificates: {error.strerror or error}") from None


def _send(server: smtplib.SMTP, message: EmailMessage, sender: str, recipients: Sequence[str]) -> Refused:
    """Sends one mail; gives whom the server refused. Raises OSError where it took the mail for nobody else's sake."""
    try:
        return server.sendmail(sender, list(recipients), message.as_bytes())
    except smtplib.SMTPRecipientsRefused as error:
        # 421 in the middle: the server is going, and nobody has the mail
        if any(code == 421 for code, _ in error.recipients.values()):
            raise smtplib.SMTPServerDisconnected("421 the server closed the connection") from None
        return error.recipients


def _accepted(reply: tuple[int, bytes]) -> str:
    """The server's words where they mean yes; raises SMTPResponseException where they do not."""
    if reply[0] >= 300:
        raise smtplib.SMTPResponseException(*reply)
    return _answer(*reply)


def _lost(server: smtplib.SMTP, error: OSError) -> bool:
    """Whether the connection is of no use any more."""
    if isinstance(error, smtplib.SMTPServerDisconnected) or not isinstance(error, smtplib.SMTPException):
        return True
    return server.sock is None


def _words(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        return _answer(error.smtp_code, error.smtp_error)
    return _one_line(str(error) or type(error).__name__)


def _answer(code: int, text: bytes | str) -> str:
    return _one_line(f"{code} {text.decode('utf-8', 'replace') if isinstance(text, bytes) else text}")


def _one_line(text: str) -> str:
    return _CONTROLS.sub(" ", text).strip()
