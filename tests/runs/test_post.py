"""The post office against real mail servers: every answer, every outage, nothing smuggled in, nothing sent twice."""

from __future__ import annotations

import json
import shutil
import smtplib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from aiosmtpd.smtp import AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from openaudience.catalog.ledger import MailRow
from openaudience.errors import InputError
from openaudience.runs.post import PostOffice, summary
from openaudience.runs.site import Site
from runs.killing import NOW, command
from runs.posting import DATA, Sink, drop, free_port, mails, opened, prepare, serving, to

MINUTE = 60
HOUR = 60 * MINUTE


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now

    @property
    def passed(self) -> int:
        return int((self.now - NOW).total_seconds())

    @passed.setter
    def passed(self, seconds: int) -> None:
        self.now = NOW + timedelta(seconds=seconds)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("post"))


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def home(prepared: Path, tmp_path: Path, port: int) -> Path:
    home = Path(shutil.copytree(prepared, tmp_path / "home"))
    settings(home, port)
    return home


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(home: Path, clock: Clock) -> Iterator[Site]:
    with opened(home, clock=clock) as site:
        yield site


def settings(home: Path, port: int, mail: str = "", receipts: str = "") -> None:
    (home / "openaudience.toml").write_text(
        f'[mail]\nhost = "127.0.0.1"\nport = {port}\ntimeout_seconds = 5\n{mail}\n[receipts]\n{receipts}\n'
    )


def queue(site: Site, *recipients: str, subject: str = "Result", body: str = "Receipt\n") -> None:
    with site.writing() as session:
        row = MailRow(
            environment=site.name,
            receipt=len(mails_of(site)) + 1,
            job=1,
            recipients=json.dumps(recipients or ["crm@acme.example"]),
            subject=subject,
            body=body,
            state="queued",
            attempts=0,
            queued=site.now(),
            due=site.now(),
        )
        session.add(row)


def mails_of(site: Site) -> list[MailRow]:
    return mails(site.home.path)


def states(site: Site) -> list[str]:
    return [mail.state for mail in mails_of(site)]


# ---- what arrives ------------------------------------------------------------------------------------------------


@pytest.mark.rule("IN-82", "UI-31", "UI-33")
def test_a_receipt_arrives(home: Path, sink: Sink, port: int, clock: Clock) -> None:
    settings(home, port, receipts='from = "Audience data <noreply@host.example>"')
    drop(home, *DATA)
    (queued,) = mails(home)
    with serving(sink, port), opened(home, clock=clock) as site:
        clock.passed = 40
        office = PostOffice(site)
        assert office.deliver_due() == 1
        assert office.deliver_due() == 0
    (envelope,), (message,) = sink.envelopes, sink.messages
    assert (envelope.mail_from, envelope.rcpt_tos) == ("noreply@host.example", ["crm@acme.example"])
    assert message["From"] == "Audience data <noreply@host.example>"
    assert message["To"] == "crm@acme.example"
    assert message["Subject"] == queued.subject
    assert parsedate_to_datetime(message["Date"]) == NOW
    assert message["Auto-Submitted"] == "auto-generated"
    assert (message.get_content_type(), message.get_content_charset()) == ("text/plain", "utf-8")
    assert str(message["Message-ID"]).endswith("@host.example>")
    assert lines(message.get_content()) == queued.body
    # a parser that knows nothing of mail finds the lines in what came over the wire
    assert b"\r\nStored Records: 0\r\nTotal devices: 0\r\n" in sink.wires[0]
    (mail,) = mails(home)
    assert (mail.state, mail.sent, mail.attempts, mail.error) == ("sent", int(clock.now.timestamp()), 1, None)


def lines(text: str) -> str:
    """The lines of a mail as a program sees them that took it off the wire."""
    return text.replace("\r\n", "\n")


@pytest.mark.rule("UI-31")
@pytest.mark.parametrize("body", ["Grüße — 1=2\n.\n..dot\n", "x" * 5000 + "\n", "From here\n", "=C3\n \n\n"])
def test_texts_arrive_as_they_are(site: Site, sink: Sink, port: int, body: str) -> None:
    queue(site, subject="Ergebnis für — 日本", body=body)
    with serving(sink, port):
        assert PostOffice(site).deliver_due() == 1
    (message,) = sink.messages
    assert lines(message.get_content()) == body
    assert message["Subject"] == "Ergebnis für — 日本"
    assert max(map(len, sink.wires[0].splitlines())) < 1000


@pytest.mark.rule("OP-65")
def test_recipients_do_not_see_each_other(site: Site, sink: Sink, port: int) -> None:
    queue(site, "one@a.example", "two@b.example")
    with serving(sink, port):
        assert PostOffice(site).deliver_due() == 1
    (envelope,) = sink.envelopes
    assert envelope.rcpt_tos == ["one@a.example", "two@b.example"]
    assert b"@b.example" not in sink.wires[0].split(b"\r\n\r\n")[0]


def test_many_mails_take_one_connection(site: Site, sink: Sink, port: int) -> None:
    for number in range(30):
        queue(site, subject=str(number))
    with serving(sink, port):
        assert PostOffice(site).deliver_due() == 30
    assert [message["Subject"] for message in sink.messages] == [str(number) for number in range(30)]
    assert len({message["Message-ID"] for message in sink.messages}) == 30
    assert sink.connections == 1


def test_stops_between_two_mails(site: Site, sink: Sink, port: int) -> None:
    queue(site)
    queue(site)
    with serving(sink, port):
        office = PostOffice(site)
        assert office.deliver_due(lambda: bool(sink.envelopes)) == 1
        assert states(site) == ["sent", "queued"]
        assert office.deliver_due() == 1


HOSTILE = (
    "Result\r\nBcc: thief@evil.example",
    "Result\n\nFile name: forged",
    "a\rb\x00c\x1b[2J\x85d\u2028e",
    "=?utf-8?q?=0D=0ABcc=3A_thief=40evil.example?=",
    "==??utf-8?q?=0D=0ABcc=3A_thief=40evil.example?=",
    "=\n?utf-8?q?=0D=0ABcc=3A_thief=40evil.example?=",
    f"{'é' * 30} =?utf-8?b?DQpCY2M6IHRoaWVmQGV2aWwuZXhhbXBsZQ==?=",
    "x" * 3000,
    "\udcff",
    "",
)


@pytest.mark.rule("OP-62")
@pytest.mark.parametrize("subject", HOSTILE)
def test_no_header_can_be_smuggled_in(home: Path, sink: Sink, port: int, subject: str) -> None:
    """Subjects hold what the setting and a file name say."""
    with opened(home) as site, serving(sink, port):
        queue(site, subject="placeholder")
        office = PostOffice(site)
        (mail,) = mails(home)
        mail.subject = subject
        smtp = smtplib.SMTP("127.0.0.1", port, "localhost")
        smtp.send_message(office.message(mail), "a@b.example", ["crm@acme.example"])
        smtp.quit()
    (message,) = sink.messages
    assert sink.envelopes[0].rcpt_tos == ["crm@acme.example"]
    headers = "Auto-Submitted Content-Transfer-Encoding Content-Type Date From MIME-Version Message-ID Subject To"
    assert sorted(message.keys()) == headers.split()
    assert lines(message.get_content()) == "Receipt\n"


@pytest.mark.rule("OP-62")
@pytest.mark.parametrize(
    "name", ["a\r\nBcc: thief@evil.example", "a\n\nStored Records: 5", "\x1b]0;x\x07", "é" * 60 + "\r"]
)
def test_names_of_files_write_no_headers_and_no_lines(home: Path, sink: Sink, port: int, name: str) -> None:
    settings(home, port, receipts='always = ["boss@host.example"]\nsubject = "<status> <DPID>"')
    drop(home, name, "C-1\t10\n")
    with serving(sink, port), opened(home) as site:
        assert PostOffice(site).deliver_due() == 1
    (message,) = sink.messages
    assert sink.envelopes[0].rcpt_tos == ["boss@host.example"]
    assert message["Bcc"] is None
    assert sum(line.startswith(("Stored Records", "Bcc")) for line in message.get_content().splitlines()) == 1


@pytest.mark.parametrize(
    ("receipts", "words"),
    [
        ('from = "nobody"', "receipts.from: 'nobody' is no e-mail address"),
        ('from = "a@b.example\\nBcc: c@d.example"', "receipts.from"),
        ('from = "a@b.example, c@d.example> <"', "receipts.from"),
        ('always = ["a@b.example", "c@d"]', "receipts.always: 'c@d' is no e-mail address"),
        ('always = ["a@b.example\\nBcc: c@d.example"]', "receipts.always"),
    ],
)
def test_wrong_addresses_in_the_settings_are_named(home: Path, port: int, receipts: str, words: str) -> None:
    settings(home, port, receipts=receipts)
    with opened(home) as site, pytest.raises(InputError, match=words):
        PostOffice(site)


# ---- servers that do not take mail -------------------------------------------------------------------------------


@pytest.mark.rule("UI-33")
def test_the_schedule_while_the_server_is_down(site: Site, clock: Clock) -> None:
    queue(site)
    office = PostOffice(site)
    attempts: list[int] = []
    while states(site) == ["queued"]:
        (mail,) = mails_of(site)
        clock.passed = mail.due - int(NOW.timestamp())
        if attempts:
            clock.passed -= 1
            assert office.deliver_due() == 0
            assert mails_of(site)[0].attempts == mail.attempts
            clock.passed += 1
        attempts.append(clock.passed // MINUTE)
        assert office.deliver_due() == 0
        assert mails_of(site)[0].attempts == len(attempts)
    assert attempts == [0, 1, 6, 21, *range(81, 24 * 60, 60), 24 * 60]
    (mail,) = mails_of(site)
    assert mail.state == "failed"
    assert "refused" in (mail.error or "")
    assert summary(site) == {"queued": 0, "sent": 0, "failed": 1, "oldest_due": None, "error": None}


@pytest.mark.rule("UI-33")
def test_down_and_up_again(site: Site, sink: Sink, port: int, clock: Clock) -> None:
    queue(site)
    queue(site)
    office = PostOffice(site)
    assert office.deliver_due() == 0
    assert [(mail.attempts, mail.due) for mail in mails_of(site)] == [(1, int(NOW.timestamp()) + MINUTE)] * 2
    assert summary(site)["oldest_due"] == int(NOW.timestamp()) + MINUTE
    assert "refused" in summary(site)["error"]
    clock.passed = MINUTE
    with serving(sink, port):
        assert office.deliver_due() == 2
    clock.passed = HOUR
    assert office.deliver_due() == 0
    assert states(site) == ["sent", "sent"]
    assert len(sink.envelopes) == 2


@pytest.mark.rule("UI-33")
def test_a_mail_that_nobody_tried_for_days_is_tried_once(site: Site, sink: Sink, port: int, clock: Clock) -> None:
    queue(site)
    clock.passed = 3 * 24 * HOUR
    with serving(sink, port):
        assert PostOffice(site).deliver_due() == 1


@pytest.mark.rule("UI-33")
def test_refused_recipients_do_not_hold_the_others(site: Site, sink: Sink, port: int, clock: Clock) -> None:
    sink.refuse = {"gone@a.example": "550 no such user", "busy@a.example": "450 try later"}
    queue(site, "gone@a.example", "one@a.example", "busy@a.example", "two@a.example")
    office = PostOffice(site)
    with serving(sink, port):
        assert office.deliver_due() == 1
        assert [(mail.state, to(mail), mail.error) for mail in mails_of(site)] == [
            ("sent", ["one@a.example", "two@a.example"], None),
            ("queued", ["busy@a.example"], "busy@a.example: 450 try later"),
            ("failed", ["gone@a.example"], "gone@a.example: 550 no such user"),
        ]
        sink.refuse = {}
        assert office.deliver_due() == 0
        clock.passed = MINUTE
        assert office.deliver_due() == 1
        clock.passed = 24 * HOUR
        assert office.deliver_due() == 0
    assert [envelope.rcpt_tos for envelope in sink.envelopes] == [
        ["one@a.example", "two@a.example"],
        ["busy@a.example"],
    ]
    assert len({message["Message-ID"] for message in sink.messages}) == 1
    assert summary(site) == {"queued": 0, "sent": 2, "failed": 1, "oldest_due": None, "error": None}


@pytest.mark.rule("UI-33")
def test_a_mail_whose_every_recipient_is_refused(site: Site, sink: Sink, port: int, clock: Clock) -> None:
    sink.refuse = {"gone@a.example": "550 no such user", "busy@a.example": "450 try later"}
    queue(site, "gone@a.example")
    queue(site, "busy@a.example")
    queue(site, "one@a.example")
    with serving(sink, port):
        assert PostOffice(site).deliver_due() == 1
    assert states(site) == ["failed", "queued", "sent"]
    assert sink.connections == 1


@pytest.mark.rule("UI-33")
@pytest.mark.parametrize("answer", ["451 not now", "554 not this one"])
def test_a_mail_that_is_refused_does_not_hold_the_others(
    site: Site, sink: Sink, port: int, clock: Clock, answer: str
) -> None:
    answers = iter([answer, "250 OK", "250 OK"])
    sink.answer = lambda: next(answers)
    queue(site, subject="first")
    queue(site, subject="second")
    with serving(sink, port):
        assert PostOffice(site).deliver_due() == 1
        assert [(mail.state, mail.error) for mail in mails_of(site)] == [("queued", answer), ("sent", None)]
        clock.passed = MINUTE
        assert PostOffice(site).deliver_due() == 1
    assert [message["Subject"] for message in sink.messages] == ["second", "first"]


@pytest.mark.rule("UI-33")
def test_a_server_that_hangs_holds_nobody_for_long(site: Site, clock: Clock) -> None:
    """Ten mails, and a server that says nothing: two attempts tell that it is the server."""
    for _ in range(10):
        queue(site)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tries = []

        def connect(site: Site) -> smtplib.SMTP:
            tries.append(1)
            return smtplib.SMTP("127.0.0.1", silent.getsockname()[1], "localhost", timeout=0.1)

        assert PostOffice(site, connect).deliver_due() == 0
    assert len(tries) == 1
    assert {(mail.state, mail.attempts) for mail in mails_of(site)} == {("queued", 1)}
    assert "timed out" in summary(site)["error"]


@pytest.mark.rule("UI-33")
@pytest.mark.parametrize("deaths", [1, 10])
def test_a_server_that_dies_in_the_middle(site: Site, deaths: int) -> None:
    """A connection that breaks on one mail: the others go out over another one, unless that breaks too."""
    for number in range(5):
        queue(site, subject=str(number))
    with breaking_server(deaths) as (port, taken):
        office = PostOffice(site, lambda _: smtplib.SMTP("127.0.0.1", port, "localhost", timeout=5))
        assert office.deliver_due() == (4 if deaths == 1 else 0)
    assert taken == ([1] * 4 if deaths == 1 else [])
    assert [mail.attempts for mail in mails_of(site)] == [1] * 5
    assert states(site)[0] == "queued"


@contextmanager
def breaking_server(deaths: int) -> Iterator[tuple[int, list[int]]]:
    """Speaks just enough SMTP, and hangs up on the first ``deaths`` mails."""
    taken: list[int] = []
    left = [deaths]

    def session(peer: socket.socket) -> None:
        with peer, peer.makefile("rb") as commands:
            peer.sendall(b"220 hello\r\n")
            for line in commands:
                word = line[:4].upper()
                if word == b"DATA":
                    if left[0]:
                        left[0] -= 1
                        return
                    peer.sendall(b"354 go on\r\n")
                    while commands.readline() != b".\r\n":
                        pass
                    taken.append(1)
                peer.sendall(b"221 bye\r\n" if word == b"QUIT" else b"250 OK\r\n")
                if word == b"QUIT":
                    return

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            session(peer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1], taken
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


# ---- twice -------------------------------------------------------------------------------------------------------


@pytest.mark.rule("OP-42")
def test_two_post_offices_never_send_a_mail_twice(home: Path, site: Site, sink: Sink, port: int) -> None:
    for _ in range(3):
        queue(site)
    with serving(sink, port), opened(home) as other:
        second = PostOffice(other)
        gave: list[int] = []

        def answer() -> str:
            gave.append(second.deliver_due())
            return "250 OK"

        sink.answer = answer
        assert PostOffice(site).deliver_due() == 3
    assert gave == [0, 0, 0]
    assert len(sink.envelopes) == 3


@pytest.mark.rule("UI-33")
def test_a_crash_after_the_servers_answer_gives_the_same_mail_again(
    site: Site, sink: Sink, port: int, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(site)

    def dies(*_: object) -> int:
        raise KeyboardInterrupt

    with serving(sink, port):
        with monkeypatch.context() as patch:
            patch.setattr(PostOffice, "_note", dies)
            with pytest.raises(KeyboardInterrupt):
                PostOffice(site).deliver_due()
        clock.passed = HOUR
        assert PostOffice(site).deliver_due() == 1
    first, second = sink.wires
    assert first == second


def test_environments_have_their_own_mails(home: Path, site: Site, sink: Sink, port: int) -> None:
    queue(site)
    with serving(sink, port), opened(home, "beta") as beta:
        assert PostOffice(beta).deliver_due() == 0
        assert summary(beta)["queued"] == 0
    assert states(site) == ["queued"]


# ---- TLS and log-in ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


def server_tls(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


def authenticator(server: object, session: object, envelope: object, mechanism: str, data: object) -> AuthResult:
    good = (getattr(data, "login", b""), getattr(data, "password", b"")) == (b"oa", b"right")
    return AuthResult(success=good, handled=good)


@pytest.mark.parametrize(
    ("mail", "offers", "error"),
    [
        ('tls = "starttls"\nca_file = "CA"', "starttls", None),
        ('tls = "tls"\nca_file = "CA"', "tls", None),
        # never less than what the settings ask for
        ('tls = "starttls"', "starttls", "certificate verify failed"),
        ('tls = "tls"', "tls", "certificate verify failed"),
        ('tls = "starttls"\nca_file = "CA"', "none", "STARTTLS extension not supported"),
        ('tls = "starttls"\nca_file = "missing.pem"', "starttls", "mail.ca_file: missing.pem cannot be read"),
        ('user = "oa"\npassword = "right"', "login", None),
        ('user = "oa"\npassword = "wrong"', "login", "535 "),
        ("", "login", "530 "),
        ('user = "oa"\npassword = "right"', "none", "AUTH extension not supported"),
        ('tls = "starttls"\nca_file = "CA"\nuser = "oa"\npassword = "right"', "starttls and login", None),
    ],
)
@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
def test_tls_and_log_in(
    home: Path, sink: Sink, port: int, certificate: tuple[Path, Path], mail: str, offers: str, error: str | None
) -> None:
    settings(home, port, mail.replace("CA", str(certificate[0])))
    options: dict[str, object] = {}
    if "starttls" in offers:
        options |= {"tls_context": server_tls(certificate), "require_starttls": True}
    elif "tls" in offers:
        options |= {"ssl_context": server_tls(certificate)}
    if "login" in offers:
        options |= {"authenticator": authenticator, "auth_required": True, "auth_require_tls": "tls" in offers}
    with ExitStack() as stack:
        site = stack.enter_context(opened(home))
        queue(site)
        stack.enter_context(serving(sink, port, **options))
        assert PostOffice(site).deliver_due() == (1 if error is None else 0)
    (row,) = mails(home)
    if error is None:
        assert (row.state, len(sink.envelopes)) == ("sent", 1)
    else:
        assert (row.state, row.attempts, len(sink.envelopes)) == ("queued", 1, 0)
        assert error in (row.error or "")
        assert "wrong" not in (row.error or "")


def test_a_relative_ca_file_lies_in_the_home(home: Path, sink: Sink, port: int, certificate: tuple[Path, Path]) -> None:
    shutil.copy(certificate[0], home / "ca.pem")
    settings(home, port, 'tls = "tls"\nca_file = "ca.pem"')
    with opened(home) as site, serving(sink, port, ssl_context=server_tls(certificate)):
        queue(site)
        assert PostOffice(site).deliver_due() == 1


# ---- the test mail -----------------------------------------------------------------------------------------------


@pytest.mark.rule("UI-73")
def test_a_test_mail_shows_the_servers_answer(home: Path, sink: Sink, port: int) -> None:
    sink.answer = lambda: "250 OK queued as 4711"
    with serving(sink, port):
        status, shown, errors = command(home, "mail", "test", "me@acme.example")
    assert (status, shown) == (0, "the mail server answered: 250 OK queued as 4711\n"), errors
    (message,) = sink.messages
    assert sink.envelopes[0].rcpt_tos == ["me@acme.example"]
    assert message["Subject"].startswith("[TEST] ")
    assert message.get_content().startswith("TEST: ")
    assert mails(home) == []


@pytest.mark.rule("UI-73")
@pytest.mark.parametrize(
    ("address", "refused", "answer", "status", "words"),
    [
        ("nobody", {}, "250 OK", 1, "'nobody' is no e-mail address"),
        ("me@a.example", {"me@a.example": "550 no such user"}, "250 OK", 3, "did not take the mail: 550 no such user"),
        ("me@a.example", {}, "554 spam", 3, "did not take the mail: 554 spam"),
    ],
)
def test_a_test_mail_that_is_refused(
    home: Path, sink: Sink, port: int, address: str, refused: dict[str, str], answer: str, status: int, words: str
) -> None:
    sink.refuse, sink.answer = refused, lambda: answer
    with serving(sink, port):
        ended, shown, errors = command(home, "mail", "test", address)
    assert (ended, shown) == (status, "")
    assert words in errors


@pytest.mark.rule("UI-73")
def test_a_test_mail_without_a_server(home: Path, port: int) -> None:
    status, _, errors = command(home, "mail", "test", "me@a.example")
    assert status == 3
    assert f"the mail server 127.0.0.1:{port} did not take the mail" in errors
    (home / "openaudience.toml").write_text("")
    status, _, errors = command(home, "mail", "test", "me@a.example")
    assert (status, errors) == (1, "error: no mail server is configured; set mail.host in openaudience.toml\n")
