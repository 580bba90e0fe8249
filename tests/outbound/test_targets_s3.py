"""Buckets: what is asked of the store with each object, large files in parts, accounts, and stores that differ."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openaudience.errors import DeliveryFailed, DeliveryRefused
from openaudience.outbound import s3
from openaudience.outbound.servers import Server
from openaudience.outbound.targets import open_target
from outbound import peers
from outbound.peers import PATIENCE, Line, Peer

MIB = 1 << 20
NAME = "f.sync"
RUN = "main/7301/17"
SECRET = "hunter2-hunter2"


@pytest.fixture(scope="module")
def store() -> Iterator[Callable[[str], Peer]]:
    with peers.store() as running:
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "generated"
    path.write_bytes(b"crm-A9 3100,3205 2900\n" * 1000)
    return path


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is sent in parts, of which the last is a small one."""
    monkeypatch.setattr(s3, "MULTIPART", 20 * MIB)
    path = tmp_path / "large"
    path.write_bytes(os.urandom(21 * MIB))
    return path


def put(peer: Peer, path: Path, *, run: str = RUN, again: bool = False, **changed: Any) -> None:
    with peer.open(**changed) as target:
        target.put(path, NAME, run=run, again=again)


def unfinished(peer: Peer) -> list[str]:
    found = peer.client.list_multipart_uploads(Bucket=peer.server.bucket).get("Uploads", ())
    return [one["Key"] for one in found]


@pytest.mark.rule("OB-196")
def test_the_key_is_the_directory_and_the_name(store: Callable[[str], Peer], file: Path) -> None:
    peer = store("directories")
    put(peer, file, directory="aam/daily")
    assert list(peer.files()) == ["aam/daily/f.sync"]


@pytest.mark.rule("OB-198")
def test_a_large_file_comes_in_parts_and_is_not_seen_before_the_last(store: Callable[[str], Peer], large: Path) -> None:
    peer = store("parts")
    with peers.Polling(peer) as somebody:
        put(peer, large)
    assert somebody.seen.get(NAME, set()) <= {21 * MIB}
    assert peer.files() == {NAME: large.read_bytes()}
    found = peer.client.head_object(Bucket="parts", Key=NAME)
    assert found["ETag"].endswith('-5"')
    assert found["ServerSideEncryption"] == "AES256"
    # its own again, and not another run's
    put(peer, large, again=True)
    with pytest.raises(DeliveryRefused, match="exists"):
        put(peer, large, run="main/7301/18", again=True)


@pytest.mark.rule("OB-198", "OB-209")
def test_parts_of_a_transfer_that_was_cut_do_not_stay(store: Callable[[str], Peer], large: Path) -> None:
    peer = store("cut")
    port = int(peer.server.endpoint.rpartition(":")[2])
    with Line(port, 8 * MIB) as line:
        broken = replace(peer.server, endpoint=f"http://127.0.0.1:{line.port}")
        with open_target(broken, peer.secrets, PATIENCE) as target, pytest.raises(DeliveryFailed):
            target.put(large, NAME, run=RUN, again=False)
    assert peer.files() == {}
    assert unfinished(peer) == [NAME]
    put(peer, large, again=True)
    assert unfinished(peer) == []
    assert peer.files() == {NAME: large.read_bytes()}


@pytest.mark.rule("OB-198", "OB-209")
def test_a_transfer_in_parts_that_comes_too_late_replaces_nothing(
    store: Callable[[str], Peer], large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = store("late")
    send = s3.S3Target._send_parts

    def late(*arguments: object) -> None:
        peer.plant(NAME, b"theirs")
        send(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(s3.S3Target, "_send_parts", late)
    with pytest.raises(DeliveryRefused, match="exists"):
        put(peer, large)
    assert peer.files() == {NAME: b"theirs"}
    assert unfinished(peer) == []


@pytest.mark.rule("OB-209")
def test_an_object_is_known_by_its_run_whatever_it_holds(store: Callable[[str], Peer], file: Path) -> None:
    peer = store("runs")
    put(peer, file)
    with pytest.raises(DeliveryRefused, match="exists"):
        put(peer, file, run="main/7301/18")
    file.write_bytes(b"made anew by the same run")
    put(peer, file, again=True)
    assert peer.files() == {NAME: b"made anew by the same run"}


# ---- a store that is looked at from inside -------------------------------------------------------------------


class Fake:
    """A store with no objects that notes the headers of each put; ``answers``: what it does with it."""

    def __init__(self) -> None:
        self.puts: list[dict[str, str]] = []
        self.requests: list[tuple[str, str]] = []
        self.refuses: Callable[[dict[str, str]], tuple[int, str] | None] = lambda headers: None
        self.looks = 404
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(outer.looks, b"")

            def do_PUT(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                self.rfile.read(int(headers.get("content-length", 0)))
                outer.puts.append(headers)
                refused = outer.refuses(headers)
                if refused is None:
                    self.answer(200, b"")
                else:
                    text = f"<Error><Code>{refused[1]}</Code><Message>no {SECRET}</Message></Error>"
                    self.answer(refused[0], text.encode())

            def do_DELETE(self) -> None:
                self.answer(204, b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
                outer.requests.append((self.headers["authorization"], body))
                self.answer(200, ASSUMED.encode())

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


ASSUMED = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
<AccessKeyId>ASSUMED</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>tok</SessionToken>
<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"""


@pytest.fixture
def fake() -> Iterator[Fake]:
    running = Fake()
    yield running
    running.stop()


def send(fake: Fake, file: Path, secrets: dict[str, str] | None = None, **changed: Any) -> dict[str, str]:
    """The headers of the put that came last."""
    server = Server(1, "Fake", "S3", bucket="b", endpoint=fake.address, access_key="AK")
    given = {"secretAccessKey": SECRET} if secrets is None else secrets
    with open_target(replace(server, **changed), given, PATIENCE) as target:
        target.put(file, NAME, run=RUN, again=False)
    return fake.puts[-1]


@pytest.mark.rule("OB-198")
def test_each_object_is_encrypted_and_belongs_to_the_owner_of_the_bucket(fake: Fake, file: Path) -> None:
    headers = send(fake, file)
    assert headers["x-amz-server-side-encryption"] == "AES256"
    assert headers["x-amz-acl"] == "bucket-owner-full-control"
    plain = send(fake, file, encrypted=False)
    assert "x-amz-server-side-encryption" not in plain
    # a store that does not encrypt so is none of Amazon's
    assert "x-amz-acl" not in plain


@pytest.mark.rule("OB-209")
def test_a_store_that_knows_no_conditions_gets_none(fake: Fake, file: Path) -> None:
    fake.refuses = lambda headers: (501, "NotImplemented") if "if-none-match" in headers else None
    send(fake, file)
    assert ["if-none-match" in one for one in fake.puts].count(False) == 1


@pytest.mark.rule("OB-209")
def test_who_may_only_put_still_replaces_nothing(fake: Fake, file: Path) -> None:
    fake.looks = 403
    assert send(fake, file)["if-none-match"] == "*"
    fake.refuses = lambda headers: (412, "PreconditionFailed")
    with pytest.raises(DeliveryRefused, match="exists"):
        send(fake, file)


@pytest.mark.rule("OB-212")
@pytest.mark.parametrize("code", ["AccessDenied", "SignatureDoesNotMatch", "SlowDown", "SomethingElse"])
def test_what_a_store_says_is_told_without_secrets(fake: Fake, file: Path, code: str) -> None:
    fake.refuses = lambda headers: (403, code)
    with pytest.raises(DeliveryFailed, match=code) as caught:
        send(fake, file)
    assert SECRET not in str(caught.value)


@pytest.mark.rule("OB-197")
def test_a_role_is_taken_with_the_machine_s_own_account(
    fake: Fake, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", fake.address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "MACHINE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "m")
    headers = send(fake, file, secrets={}, access_key="", role="arn:aws:iam::1:role/out")
    assert "Credential=ASSUMED/" in headers["authorization"]
    assert headers["x-amz-security-token"] == "tok"
    ((authorization, body),) = fake.requests
    assert "Credential=MACHINE/" in authorization
    assert "role%2Fout" in body
    headers = send(fake, file, secrets={}, access_key="")
    assert "Credential=MACHINE/" in headers["authorization"]


@pytest.mark.rule("OB-197")
def test_a_machine_without_an_account_is_told(fake: Fake, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(DeliveryFailed, match="login: this machine has no account"):
        send(fake, file, secrets={}, access_key="")


def test_what_is_no_store_is_told(fake: Fake, file: Path) -> None:
    fake.looks = 302
    with pytest.raises(DeliveryFailed):
        send(fake, file)


@pytest.mark.rule("OB-211")
@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (404, "NoSuchBucket", "path: there is no such bucket"),
        (403, "AccessDenied", "permission: "),
        (403, "InvalidAccessKeyId", "login: "),
        (403, "RequestTimeTooSkewed", "login: .*set the clock"),
        (400, "AuthorizationHeaderMalformed", "path: .*correct region"),
    ],
)
def test_a_test_tells_what_a_store_minds(fake: Fake, status: int, code: str, told: str) -> None:
    fake.refuses = lambda headers: (status, code)
    server = Server(1, "Fake", "S3", bucket="b", endpoint=fake.address, access_key="AK")
    with open_target(server, {"secretAccessKey": SECRET}) as target, pytest.raises(DeliveryFailed, match=told):
        target.test()
