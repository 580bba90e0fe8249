"""Buckets of a real object store, and of servers that answer as none should."""

from __future__ import annotations

import hashlib
import http.server
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from dropoff.hostile import hostile
from dropoff.object_house import House, make_home, opened_house
from dropoff.servers import READER, S3Server, free_ports, s3_server, weed_program
from openaudience.config import S3Section
from openaudience.dropoff import stores
from openaudience.dropoff.doors import Delivery, DeliveryChanged
from openaudience.dropoff.objects import BucketDoor, bucket
from openaudience.dropoff.stores import AccessRefused, Object, Store, opener
from openaudience.errors import StoreUnavailable

NOW = 4_000_000_000.0
DAY = 86_400.0
PARTNERS = {"acme": 1001}
PLACE = "acme/date=2027-01-15/"
NAME = "ftp_dpm_7007_1700000000.sync"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    program = weed_program()
    if program is None:
        pytest.skip("SeaweedFS (weed) is not installed")
    with s3_server(tmp_path_factory.mktemp("weed"), program) as running:
        yield running


@pytest.fixture
def name(server: S3Server, request: pytest.FixtureRequest) -> str:
    """An empty bucket."""
    return server.make_bucket("b" + hashlib.sha256(request.node.name.encode()).hexdigest()[:20])


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for no store for long."""
    monkeypatch.setattr(stores, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(stores, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(stores, "ATTEMPTS", 1)


def door(store: Store, name: str, largest: int = 1 << 30) -> BucketDoor:
    return BucketDoor(
        bucket(f"s3://{name}"),
        store,
        object_seconds=30 * DAY,
        unfinished_seconds=DAY,
        largest=largest,
        now=lambda: NOW,
    )


def opened(server: S3Server, name: str, **other: Any) -> Store:
    return opener(msgspec.structs.replace(server.settings, **other))(name)


def seen(door: BucketDoor) -> dict[str, Delivery]:
    return {one.path: one for one in door.look(PARTNERS)}


def content_of(store: Store, thing: Object) -> bytes | None:
    with store.read(thing) as blocks:
        return None if blocks is None else b"".join(blocks)


@pytest.mark.rule("IN-04")
def test_every_page_of_a_long_listing_is_read(server: S3Server, name: str) -> None:
    sent = {f"{PLACE}{number:04}-{'ab/'[number % 3]}x" for number in range(1_030)}
    s3 = server.client
    for key in sent:
        s3.put_object(Bucket=name, Key=key, Body=key.encode())
    store = opened(server, name)
    listed = list(store.list(""))
    assert len(listed) == len(sent)
    assert {one.key for one in listed} == sent
    assert {one.key for one in store.list(f"{PLACE}000")} == {key for key in sent if key.startswith(f"{PLACE}000")}
    assert list(store.list("bolt/")) == []


def test_an_object_is_told_of_alike_however_it_is_asked_for(server: S3Server, name: str) -> None:
    server.client.put_object(Bucket=name, Key=PLACE + NAME, Body=b"a\t10\n")
    store = opened(server, name)
    (listed,) = store.list("")
    assert (listed.key, listed.size) == (PLACE + NAME, 5)
    assert store.head(PLACE + NAME) == listed
    assert content_of(store, listed) == b"a\t10\n"
    assert store.head(PLACE + "other") is None
    store.delete(PLACE + NAME)
    store.delete(PLACE + NAME)
    assert store.head(PLACE + NAME) is None
    assert content_of(store, listed) is None
    assert list(store.list("")) == []


@pytest.mark.rule("IN-05")
def test_an_upload_in_parts_is_not_there_before_its_end(server: S3Server, name: str, tmp_path: Path) -> None:
    s3 = server.client
    key = PLACE + NAME
    upload = s3.create_multipart_upload(Bucket=name, Key=key)["UploadId"]
    parts = [bytes([number]) * (5 << 20) for number in (1, 2)]
    tags = [
        s3.upload_part(Bucket=name, Key=key, UploadId=upload, PartNumber=number, Body=part)["ETag"]
        for number, part in enumerate(parts, 1)
    ]
    bucket_door = door(opened(server, name), name)
    assert seen(bucket_door) == {}
    s3.complete_multipart_upload(
        Bucket=name,
        Key=key,
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]},
    )
    delivery = seen(bucket_door)[key]
    whole = b"".join(parts)
    assert bucket_door.fetch(delivery, tmp_path / "x" / NAME) == (hashlib.sha256(whole).hexdigest(), len(whole))
    assert (tmp_path / "x" / NAME).read_bytes() == whole


def test_what_a_sender_calls_compressed_is_taken_as_it_is(server: S3Server, name: str) -> None:
    import gzip

    packed = gzip.compress(b"a\t10\n" * 100)
    server.client.put_object(Bucket=name, Key="x", Body=packed, ContentEncoding="gzip", ContentType="text/plain")
    (thing,) = (store := opened(server, name)).list("")
    assert content_of(store, thing) == packed


@pytest.mark.rule("IN-05", "IN-07")
def test_another_object_under_the_same_key_is_not_taken_for_the_one_that_was_seen(
    server: S3Server, name: str, tmp_path: Path
) -> None:
    key = PLACE + NAME
    server.client.put_object(Bucket=name, Key=key, Body=b"a\t10\n")
    bucket_door = door(opened(server, name), name)
    first = seen(bucket_door)[key]
    server.client.put_object(Bucket=name, Key=key, Body=b"b\t10\n")
    second = seen(bucket_door)[key]
    assert first.stamp != second.stamp
    with pytest.raises(DeliveryChanged):
        bucket_door.fetch(first, tmp_path / "first" / NAME)
    assert not (tmp_path / "first" / NAME).exists()
    bucket_door.release(first)
    assert seen(bucket_door)[key] == second, "what is there now was never taken"
    assert bucket_door.fetch(second, tmp_path / "second" / NAME)[1] == 5
    bucket_door.release(second)
    assert seen(bucket_door) == {}


def test_an_object_replaced_while_it_is_read_is_never_a_mixture(server: S3Server, name: str) -> None:
    old, new = b"o" * (12 << 20), b"n" * (12 << 20)
    server.client.put_object(Bucket=name, Key="x", Body=old)
    (thing,) = (store := opened(server, name)).list("")
    got = b""
    try:
        with store.read(thing) as blocks:
            assert blocks is not None
            got = next(blocks)
            server.client.put_object(Bucket=name, Key="x", Body=new)
            got += b"".join(blocks)
    except StoreUnavailable:
        # the store gave up: the next look takes the new one
        assert set(got) == {ord("o")}
    else:
        assert got == old
    (there,) = store.list("")
    assert content_of(store, there) == new


@pytest.mark.rule("OP-62")
def test_keys_that_a_client_could_take_for_paths_are_read_as_they_are(
    server: S3Server, name: str, tmp_path: Path
) -> None:
    names = [
        *("a b", "a+b", "a%2Fb", "a%b", "a&b=c", "a?b", "a#b", "a;b", "ü€😀", "a\tb", "a\nb", "a\x01b", "a\x7fb"),
        *(
            "a<b>&amp;",
            "a'b\"c",
            "...",
            "~",
            "-rf",
            "$(x)",
            "%00",
            "e\u0301",
            "\u202ex",
            " x ",
            "n" * 200,
        ),
    ]
    sent = {PLACE + one for one in names}
    s3 = server.client
    for key in sent:
        s3.put_object(Bucket=name, Key=key, Body=key.encode())
    bucket_door = door(opened(server, name), name)
    there = seen(bucket_door)
    assert set(there) == sent
    for number, (key, delivery) in enumerate(there.items()):
        target = tmp_path / str(number) / "copy"
        assert bucket_door.fetch(delivery, target) == (hashlib.sha256(key.encode()).hexdigest(), len(key.encode()))
        bucket_door.release(delivery)
    assert seen(bucket_door) == {}


@pytest.mark.rule("OP-62")
def test_whatever_a_store_makes_of_a_hostile_key_it_gets_one_receipt(
    server: S3Server, name: str, tmp_path: Path
) -> None:
    """A store may refuse a key or tidy it up; what it lists then counts."""
    s3 = server.client
    paths = [path.decode("utf-8", "replace") for path in hostile()]
    for key in {begin + path for path in paths for begin in ("", PLACE)}:
        # what the store or the client refuses never gets here
        with suppress(ClientError, BotoCoreError):
            s3.put_object(Bucket=name, Key=key, Body=b"a\t10\n")
    store = opened(server, name)
    there = [one.key for one in store.list("") if not one.key.endswith("/")]
    assert len(there) > len(paths) / 2
    with opened_house(make_home(tmp_path / "made"), tmp_path, House) as house:
        house.now = NOW
        around = {path for path in tmp_path.rglob("*") if "dropoff" not in path.parts}
        taking = house.intake(house.door(f"s3://{name}", store=store))
        assert taking.round() == len(there)
        now_around = {path for path in tmp_path.rglob("*") if "dropoff" not in path.parts}
        assert now_around - around <= {house.site.folder / "dropoff.lock"}
        house.apply()
        assert len(house.receipts()) == len(there)
        assert house.copies() == []
        taking.round()
        left = [one.key for one in store.list("") if not one.key.endswith("/")]
        assert left == [], "long past their days"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"secret_access_key": "another-secret-of-some-length"}, "s3.secret_access_key"),
        ({"access_key_id": "nobody"}, "s3.access_key_id"),
    ],
)
def test_wrong_keys_are_said_to_be_wrong(server: S3Server, wrong: dict[str, str], says: str) -> None:
    store = opened(server, "first", **wrong)
    with pytest.raises(AccessRefused) as caught:
        list(store.list(""))
    assert says in str(caught.value)
    assert "bucket first" in str(caught.value)
    assert "secret-of" not in str(caught.value)
    with pytest.raises(AccessRefused):
        store.head("x")
    with pytest.raises(AccessRefused):
        store.delete("x")


def test_an_account_that_may_only_read_takes_files_and_leaves_them_there(
    server: S3Server, name: str, tmp_path: Path
) -> None:
    server.client.put_object(Bucket=name, Key=PLACE + NAME, Body=b"a\t10\n")
    store = opened(server, name, access_key_id=READER)
    reading = door(store, name)
    delivery = seen(reading)[PLACE + NAME]
    assert reading.fetch(delivery, tmp_path / "x" / NAME)[1] == 5
    reading.release(delivery)
    assert seen(reading) == {delivery.path: delivery}
    with pytest.raises(AccessRefused, match="read and delete its objects"):
        store.delete(delivery.path)


def test_a_missing_bucket_is_no_empty_one(server: S3Server) -> None:
    with pytest.raises(StoreUnavailable, match=r"bucket nowhere .*NoSuchBucket; make the bucket or correct s3.buckets"):
        list(opened(server, "nowhere").list(""))


@pytest.mark.rule("IN-04")
def test_rclone_delivers(server: S3Server, name: str, tmp_path: Path) -> None:
    beside = Path(sys.prefix) / "bin" / "rclone"
    program = str(beside) if beside.is_file() else shutil.which("rclone")
    if program is None:
        pytest.skip("rclone is not installed")
    (tmp_path / NAME).write_bytes(b"a\t10\n" * 2_000_000)
    command = [program, "copyto", str(tmp_path / NAME), f":s3:{name}/{PLACE}{NAME}", "--config", "", "--retries", "1"]
    command += ["--s3-provider", "SeaweedFS", "--s3-endpoint", server.settings.endpoint, "--s3-upload-cutoff", "5Mi"]
    keys = {"RCLONE_S3_ACCESS_KEY_ID": server.settings.access_key_id}
    keys |= {"RCLONE_S3_SECRET_ACCESS_KEY": server.settings.secret_access_key, "HOME": str(tmp_path)}
    subprocess.run(command, env=keys, check=True, timeout=60)
    bucket_door = door(opened(server, name), name)
    ((key, delivery),) = seen(bucket_door).items()
    assert (key, delivery.refusal, delivery.pid) == (PLACE + NAME, None, 1001)
    assert bucket_door.fetch(delivery, tmp_path / "copy" / NAME)[1] == 10_000_000
    assert (tmp_path / "copy" / NAME).read_bytes() == (tmp_path / NAME).read_bytes()


@pytest.mark.usefixtures("hasty")
def test_a_store_that_goes_down_is_waited_for(server: S3Server, name: str, tmp_path: Path) -> None:
    server.client.put_object(Bucket=name, Key=PLACE + NAME, Body=b"a\t10\n")
    bucket_door = door(opened(server, name), name)
    delivery = seen(bucket_door)[PLACE + NAME]
    server.kill()
    for attempt in (
        lambda: list(bucket_door.look(PARTNERS)),
        lambda: bucket_door.fetch(delivery, tmp_path / "x" / NAME),
        lambda: bucket_door.release(delivery),
    ):
        with pytest.raises(StoreUnavailable, match=f"bucket {name} at 127.0.0.1:.* does not answer.*s3.endpoint"):
            attempt()
    assert not (tmp_path / "x" / NAME).exists()
    server.start()
    assert seen(bucket_door) == {delivery.path: delivery}
    assert bucket_door.fetch(delivery, tmp_path / "x" / NAME)[1] == 5


PAGE = """<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
<IsTruncated>{more}</IsTruncated>{token}<Contents><Key>x</Key><LastModified>2027-01-15T00:00:00.000Z</LastModified>
<ETag>&quot;e&quot;</ETag><Size>5</Size></Contents></ListBucketResult>"""
X = Object("x", "e", 5, 1_799_971_200)
HEADERS = {"ETag": '"e"', "Last-Modified": "Fri, 15 Jan 2027 00:00:00 GMT", "Content-Length": "5"}
Handler = Callable[[http.server.BaseHTTPRequestHandler], None]


def answering(status: int, body: bytes = b"", **headers: str) -> Handler:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for field, value in ({"Content-Length": str(len(body))} | headers).items():
            request.send_header(field.replace("_", "-"), value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)
        request.close_connection = True

    return answer


def error(status: int, code: str) -> Handler:
    return answering(status, f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode())


@contextmanager
def pretender(answer: Handler) -> Iterator[tuple[Store, list[str]]]:
    """A bucket of a server that answers everything in one way, and the paths it was asked for."""
    asked: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer(self)

        do_HEAD = do_DELETE = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            section = S3Section(True, f"http://127.0.0.1:{running.server_address[1]}", "us-east-1", "key", "secret")
            yield opener(section)("drop"), asked
        finally:
            running.shutdown()
            thread.join()


NONSENSE = {
    "no XML": b"<html><body>welcome to nginx",
    "not a word": b"\x00\xff\xfe" * 100,
    "another document": b"<?xml version='1.0'?><hello/>",
    "an object without a size": b"<ListBucketResult><Contents><Key>x</Key></Contents></ListBucketResult>",
    "a size that is none": b"<ListBucketResult><Contents><Key>x</Key><Size>many</Size></Contents></ListBucketResult>",
    "a time that is none": b"<ListBucketResult><Contents><Key>x</Key><Size>1</Size><LastModified>soon</LastModified>"
    b"</Contents></ListBucketResult>",
}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("what", NONSENSE)
def test_what_is_no_listing_is_a_fault_of_the_store_and_no_empty_bucket(what: str) -> None:
    with (
        pretender(answering(200, NONSENSE[what])) as (store, _),
        pytest.raises(StoreUnavailable, match=r"bucket drop at 127.0.0.1:\d+ .*(s3.endpoint|refuses: 500)"),
    ):
        list(store.list(""))


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (answering(404, b"<html>not found"), "correct s3.endpoint"),
        (error(404, "NoSuchKey"), "correct s3.endpoint"),
        (error(500, "InternalError"), "InternalError; look at the store's own log"),
        (error(503, "SlowDown"), "SlowDown"),
        (answering(502, b"<html>bad gateway"), "502"),
        (error(403, "AccessDenied"), "may list the bucket"),
        (error(403, "RequestTimeTooSkewed"), "clock"),
        (error(400, "AuthorizationHeaderMalformed"), "s3.region"),
        (error(301, "PermanentRedirect"), "s3.endpoint"),
    ],
)
def test_the_message_says_what_the_store_said_and_how_to_mend_it(answer: Handler, says: str) -> None:
    with pretender(answer) as (store, _), pytest.raises(StoreUnavailable) as caught:
        list(store.list(""))
    assert says in str(caught.value)
    assert "bucket drop at 127.0.0.1:" in str(caught.value)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("token", ["", "<NextContinuationToken>t</NextContinuationToken>", "flip"])
def test_a_listing_without_an_end_is_given_up(token: str) -> None:
    turns: list[str] = []

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        turns.append(request.path)
        mark = f"<NextContinuationToken>{len(turns) % 2}</NextContinuationToken>" if token == "flip" else token
        more = "true" if len(turns) < 10 else "false"
        answering(200, PAGE.format(more=more, token=mark).encode())(request)

    with pretender(answer) as (store, _), pytest.raises(StoreUnavailable, match="lists without an end"):
        list(store.list(""))
    assert len(turns) <= 3


@pytest.mark.usefixtures("hasty")
def test_a_body_that_ends_early_is_no_object(tmp_path: Path) -> None:
    with pretender(answering(200, b"abc", **HEADERS)) as (store, _):
        with pytest.raises(StoreUnavailable, match="does not answer"):
            content_of(store, X)
        delivery = Delivery("x", "x", f"{X.modified} 5 - e", 5, 0.0)
        with pytest.raises(StoreUnavailable):
            door(store, "drop").fetch(delivery, tmp_path / "x" / "x")
    assert not (tmp_path / "x" / "x").exists()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"f"'},
        {"Content-Length": "6"},
        {"Last-Modified": "Fri, 15 Jan 2027 00:00:01 GMT"},
    ],
)
def test_a_store_that_does_not_heed_conditions_gives_no_other_object(headers: dict[str, str]) -> None:
    with pretender(answering(200, b"abcdef", **(HEADERS | {"Content-Length": "5"} | headers))) as (store, _):
        assert content_of(store, X) is None
    with pretender(answering(200, b"abcde", **HEADERS)) as (store, _):
        assert content_of(store, X) == b"abcde"


@pytest.mark.usefixtures("hasty")
def test_a_store_that_never_answers_does_not_hold_its_thread() -> None:
    over = threading.Event()

    def silent(_: http.server.BaseHTTPRequestHandler) -> None:
        over.wait(20)

    def halting(request: http.server.BaseHTTPRequestHandler) -> None:
        answering(200, b"ab", **HEADERS)(request)
        request.wfile.flush()
        over.wait(20)

    for answer, ask in (
        (silent, lambda store: list(store.list(""))),
        (silent, lambda store: store.head("x")),
        (halting, lambda store: content_of(store, X)),
    ):
        over.clear()
        with pretender(answer) as (store, _):
            try:
                with pytest.raises(StoreUnavailable, match="does not answer"):
                    ask(store)
            finally:
                over.set()


@pytest.mark.usefixtures("hasty")
def test_a_port_where_nobody_listens_is_named() -> None:
    (port,) = free_ports(1)
    store = opener(S3Section(True, f"http://127.0.0.1:{port}", "us-east-1", "key", "secret"))("drop")
    with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{port} does not answer"):
        list(store.list(""))


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("status", "code"), [(400, "InvalidRequest"), (403, "InvalidObjectState"), (400, "KMS.DisabledException")]
)
def test_an_object_that_its_sender_locked_holds_up_no_other(tmp_path: Path, status: int, code: str) -> None:
    """With a key of encryption of the sender's own, or in an archive, only that object cannot be read."""
    with pretender(error(status, code)) as (store, _):
        delivery = Delivery("x", "x", f"{X.modified} 5 - e", 5, 0.0)
        with pytest.raises(DeliveryChanged, match=code):
            door(store, "drop").fetch(delivery, tmp_path / "x" / "x")
        door(store, "drop").release(delivery)
    with pretender(error(503, "SlowDown")) as (store, _), pytest.raises(StoreUnavailable):
        door(store, "drop").fetch(delivery, tmp_path / "x" / "x")


@pytest.mark.usefixtures("hasty")
@pytest.mark.rule("OP-62")
def test_no_key_leads_to_another_bucket() -> None:
    keys = ("../other/x", "/../x", "a/../../x", "./x", "a//b", "/x", "x/", "a?b", "a#b", "..", "a\\..\\b", "%2e%2e/x")
    with pretender(answering(204)) as (store, asked):
        for key in keys:
            store.delete(key)
    from urllib.parse import unquote

    assert [unquote(path) for path in asked] == [f"/drop/{key}" for key in keys]
    assert all("?" not in path and "#" not in path for path in asked)
