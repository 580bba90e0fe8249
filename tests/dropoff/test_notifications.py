"""Notifications about new objects: hints that may be lost, doubled, late or nonsense: only the time changes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from dropoff.object_house import DAY, FIRST, NOW, PLACE, SECOND, House, make_home, opened_house
from dropoff.servers import S3Server, free_ports, queue_program, queue_server
from openaudience.config import S3Section
from openaudience.dropoff import notifications, stores
from openaudience.dropoff.notifications import Notifications, Received, created, sqs_queue
from openaudience.dropoff.objects import BucketDoor, bucket
from openaudience.dropoff.stores import AccessRefused, Object, client, opener
from openaudience.errors import StoreUnavailable
from openaudience.runs.intake import Intake

TEST_EVENT = '{"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "drop"}'
LIST_SECONDS = 900


def body(*keys: str, bucket: str = "drop", event: str = "ObjectCreated:Put") -> str:
    """A message as Amazon writes it."""
    return json.dumps(
        {
            "Records": [
                {"eventName": event, "s3": {"bucket": {"name": bucket}, "object": {"key": quote_plus(key, safe="/")}}}
                for key in keys
            ]
        }
    )


class FakeQueue:
    """Gives a message once, and again after ``again``, until it is deleted by the newest handle."""

    def __init__(self) -> None:
        self.messages: dict[str, str] = {}
        self.failing = False
        self._handles: dict[str, str] = {}
        self._number = 0

    def send(self, text: str) -> None:
        self._number += 1
        self.messages[f"m{self._number}"] = text

    def again(self) -> None:
        self._handles.clear()

    def receive(self, wait_seconds: int) -> list[Received]:
        self._fail()
        given = []
        for one in [one for one in self.messages if one not in self._handles.values()][:10]:
            self._number += 1
            self._handles[f"h{self._number}"] = one
            given.append(Received(one, f"h{self._number}", self.messages[one]))
        return given

    def delete(self, handles: Sequence[str]) -> None:
        self._fail()
        assert 0 < len(handles) <= 10
        for handle in handles:
            if handle in self._handles:
                self.messages.pop(self._handles[handle], None)

    def _fail(self) -> None:
        if self.failing:
            raise StoreUnavailable("the queue fails")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("notifications"))


class Notified(House):
    """A house whose bucket tells a queue; the bucket has been listed once, when it was empty."""

    queue: FakeQueue
    door_of_it: BucketDoor
    taking: Intake

    def begin(self) -> None:
        """As a process that starts now."""
        self.door_of_it = self.door(notifications=Notifications(self.queue, [bucket("s3://drop")]))
        self.taking = self.intake(self.door_of_it)

    def put(self, key: str, content: bytes = b"a\t10\n", told: bool = True) -> None:
        self.shelf.put(key, content, at=self.now)
        if told:
            self.queue.send(body(key))


@pytest.fixture
def house(made: Path, tmp_path: Path) -> Iterator[Notified]:
    with opened_house(made, tmp_path, Notified) as house:
        house.queue = FakeQueue()
        house.begin()
        assert house.taking.round() == 0
        assert house.shelf.lists == 1
        yield house


@pytest.mark.rule("IN-04")
@pytest.mark.parametrize(
    ("text", "objects"),
    [
        (body("a/b c+ü%.x"), ["a/b c+ü%.x"]),
        (body("a", "b", event="s3:ObjectCreated:CompleteMultipartUpload"), ["a", "b"]),
        (body("a", event="ObjectCreated:Copy"), ["a"]),
        (body("a").replace('"a"', json.dumps(quote("x/y z", safe=""))), ["x/y z"]),
        (body("a", event="ObjectRemoved:Delete"), []),
        (body("a", event="ReducedRedundancyLostObject"), []),
        (body("a").replace('"a"', '"%FF"'), []),
        (body("a").replace('"a"', '"\\ud800"'), []),
        (body("a").replace('"a"', '""'), []),
        (TEST_EVENT, []),
        ("", []),
        ("no JSON", []),
        ("[]", []),
        ("7", []),
        ("null", []),
        ("{}", []),
        ('{"Records": null}', []),
        ('{"Records": [7]}', []),
        ('{"Records": [{"eventName": "ObjectCreated:Put"}]}', []),
        ('{"Records": [{"eventName": "ObjectCreated:Put", "s3": []}]}', []),
        ("[" * 100_000, []),
    ],
)
def test_a_message_names_the_objects_that_were_created(text: str, objects: list[str]) -> None:
    assert list(created(text)) == [("drop", key) for key in objects]


@pytest.mark.rule("IN-04", "IN-05")
def test_only_what_was_told_is_looked_at_and_a_message_goes_once_its_object_has_a_receipt(house: Notified) -> None:
    for number in range(100):
        house.put(f"{PLACE}left-{number}", told=False)
    house.put(PLACE + FIRST)
    assert house.taking.round() == 1
    assert (house.shelf.lists, house.shelf.heads) == (1, 1)
    assert house.taking.round() == 0
    assert len(house.queue.messages) == 1, "the applier has not seen it"
    house.apply()
    for _ in range(2):
        assert house.taking.round() == 0
    assert house.queue.messages == {}
    assert house.receipts() == [(FIRST, "processed", "")]
    assert (house.shelf.lists, house.shelf.heads) == (1, 1)


@pytest.mark.rule("IN-05")
def test_a_process_that_ends_in_between_takes_nothing_twice_and_loses_no_message(house: Notified) -> None:
    house.put(PLACE + FIRST)
    house.shelf.failing = {PLACE + FIRST}
    with pytest.raises(StoreUnavailable):
        house.taking.round()
    house.shelf.failing = set()
    house.queue.again()
    house.begin()
    assert house.taking.round() == 1
    house.queue.again()
    house.begin()
    assert house.taking.round() == 0
    assert len(house.queue.messages) == 1
    house.apply()
    house.queue.again()
    house.begin()
    for _ in range(3):
        assert house.taking.round() == 0
    assert house.queue.messages == {}
    assert house.receipts() == [(FIRST, "processed", "")]


@pytest.mark.rule("IN-05")
def test_what_no_message_named_is_found_by_the_next_listing(house: Notified) -> None:
    house.put(PLACE + FIRST, told=False)
    house.now = NOW + LIST_SECONDS - 1
    assert house.taking.round() == 0
    house.now = NOW + LIST_SECONDS
    assert house.taking.round() == 1
    assert house.shelf.lists == 2
    house.now -= 2 * LIST_SECONDS
    house.put(PLACE + SECOND, told=False)
    assert house.taking.round() == 1, "a clock that was set back does not put the listing off"


@pytest.mark.rule("IN-07")
def test_messages_that_come_twice_or_are_given_again_change_nothing(house: Notified) -> None:
    house.put(PLACE + FIRST)
    house.queue.send(body(PLACE + FIRST, PLACE + FIRST))
    assert house.taking.round() == 1
    house.queue.again()
    house.queue.send(body(PLACE + FIRST))
    assert house.taking.round() == 0
    house.apply()
    house.queue.again()
    for _ in range(3):
        assert house.taking.round() == 0
    house.queue.send(body(PLACE + FIRST))
    for _ in range(3):
        assert house.taking.round() == 0
    assert house.queue.messages == {}
    assert house.receipts() == [(FIRST, "processed", "")]


@pytest.mark.rule("IN-07")
def test_an_object_put_again_before_its_message_is_done_with_is_another_file(house: Notified) -> None:
    house.put(PLACE + FIRST)
    house.taking.round()
    house.now += 1
    house.put(PLACE + FIRST, b"b\t10\n")
    assert house.taking.round() == 1
    house.apply()
    for _ in range(3):
        house.taking.round()
    assert house.queue.messages == {}
    assert house.receipts() == [(FIRST, "processed", "")] * 2


def test_messages_of_what_is_gone_or_no_file_leave_the_queue(house: Notified) -> None:
    for text in (TEST_EVENT, "nonsense", body("acme/gone"), body(PLACE), body("x", bucket="another")):
        house.queue.send(text)
    house.put(PLACE, b"")
    house.put(PLACE + "x.part")
    for _ in range(2):
        assert house.taking.round() == 0
    assert house.queue.messages == {}
    house.now += 2 * DAY
    assert house.taking.round() == 1, "the unfinished one is refused in time all the same"


def test_a_message_of_several_objects_goes_when_all_are_done(house: Notified) -> None:
    house.put(PLACE + FIRST, told=False)
    house.put(PLACE + SECOND, told=False)
    house.queue.send(body(PLACE + FIRST, PLACE + SECOND, "x/gone"))
    house.shelf.failing = {PLACE + SECOND}
    with pytest.raises(StoreUnavailable):
        house.taking.round()
    house.apply()
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            house.taking.round()
    assert len(house.queue.messages) == 1
    house.shelf.failing = set()
    assert house.taking.round() == 1
    house.apply()
    for _ in range(2):
        house.taking.round()
    assert house.queue.messages == {}


def test_an_object_that_may_not_be_looked_at_does_not_stop_the_others(
    house: Notified, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.put(PLACE + FIRST)
    house.put(PLACE + SECOND)
    head = house.shelf.head

    def refusing(key: str) -> Object | None:
        if key.endswith(FIRST):
            raise AccessRefused("locked")
        return head(key)

    monkeypatch.setattr(house.shelf, "head", refusing)
    assert house.taking.round() == 1
    house.now += LIST_SECONDS
    assert house.taking.round() == 1


def test_many_messages_are_read_over_several_looks(house: Notified, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifications, "MOST_MESSAGES", 20)
    for number in range(50):
        house.put(f"{PLACE}ftp_dpm_7007_{1_700_000_000 + number}.sync", f"u{number}\t10\n".encode())
    assert [house.taking.round() for _ in range(4)] == [20, 20, 10, 0]
    house.apply()
    while house.queue.messages:
        assert house.taking.round() == 0
    assert len(house.receipts()) == 50


def test_a_queue_that_fails_is_told_of_and_does_not_keep_the_listing(house: Notified) -> None:
    house.put(PLACE + FIRST)
    house.queue.failing = True
    with pytest.raises(StoreUnavailable, match="the queue fails"):
        house.taking.round()
    house.now += LIST_SECONDS
    assert house.taking.round() == 1
    house.queue.failing = False
    house.apply()
    for _ in range(3):
        assert house.taking.round() == 0
    assert house.queue.messages == {}
    assert house.receipts() == [(FIRST, "processed", "")]


def test_each_drop_off_of_a_queue_hears_of_its_own(house: Notified) -> None:
    one, other = bucket("s3://drop/a"), bucket("s3://drop/b")
    shared = Notifications(house.queue, [one, other])
    house.queue.send(body("a/x", "b/y", "c/z", "ab/x"))
    house.queue.send(body("b/w"))
    first = shared.of(one)
    assert [event.key for event in first] == ["a/x"]
    second = shared.of(other)
    assert [event.key for event in second] == ["b/y", "b/w"]
    assert shared.of(one) == shared.of(other) == []
    for event in second:
        shared.done(event)
    shared.of(one)
    assert len(house.queue.messages) == 1
    shared.done(first[0])
    shared.done(first[0])
    shared.of(other)
    assert house.queue.messages == {}


def test_a_queue_out_of_reach_is_named_with_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(stores, "ATTEMPTS", 1)
    (port,) = free_ports(1)
    section = S3Section(access_key_id="key", secret_access_key="hidden-secret")
    queue = sqs_queue(section, url := f"http://127.0.0.1:{port}/1/q")
    for attempt in (lambda: queue.receive(0), lambda: queue.delete(["h"])):
        with pytest.raises(StoreUnavailable) as caught:
            attempt()
        assert url in str(caught.value)
        assert "s3.queue_url" in str(caught.value)
        assert "hidden" not in str(caught.value)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    program = queue_program()
    if program is None:
        pytest.skip("a server of SQS (ministack) is not installed")
    with queue_server(tmp_path_factory.mktemp("queue"), program) as running:
        yield running


@pytest.mark.rule("IN-04", "IN-05")
def test_a_real_queue_tells_of_every_object_and_is_empty_at_the_end(house: Notified, server: S3Server) -> None:
    s3, sqs = server.client, client("sqs", server.settings, server.settings.endpoint)
    server.make_bucket("drop")
    url = sqs.create_queue(QueueName="told", Attributes={"VisibilityTimeout": "2"})["QueueUrl"]
    asked = ["QueueArn", "ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]

    def attributes() -> dict[str, str]:
        found: dict[str, str] = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=asked)["Attributes"]
        return found

    told = {"QueueArn": attributes()["QueueArn"], "Events": ["s3:ObjectCreated:*"]}
    s3.put_bucket_notification_configuration(Bucket="drop", NotificationConfiguration={"QueueConfigurations": [told]})
    store = opener(server.settings)("drop")

    def begun() -> Intake:
        house.now = time.time()
        place = bucket("s3://drop")
        return house.intake(
            house.door(store=store, notifications=Notifications(sqs_queue(server.settings, url), [place]))
        )

    taking = begun()
    assert taking.round() == 0
    keys = [f"{PLACE}ftp_dpm_7007_{1_700_000_000 + number}.sync" for number in range(24)]
    for number, key in enumerate(keys):
        s3.put_object(Bucket="drop", Key=key, Body=f"u{number}\t10\n".encode())
    s3.put_object(Bucket="drop", Key="nobody/a b+ü%.x", Body=b"x")
    upload = s3.create_multipart_upload(Bucket="drop", Key=PLACE + "parts")["UploadId"]
    part = s3.upload_part(Bucket="drop", Key=PLACE + "parts", UploadId=upload, PartNumber=1, Body=b"x")["ETag"]
    s3.complete_multipart_upload(
        Bucket="drop",
        Key=PLACE + "parts",
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part}]},
    )
    taken = 0
    deadline = time.monotonic() + 30
    while taken < len(keys) + 2 and time.monotonic() < deadline:
        taken += taking.round()
    assert taken == len(keys) + 2
    house.apply()
    # a process that starts now gets again what was not done with
    taking = begun()
    left = 1
    while left and time.monotonic() < deadline:
        assert taking.round() == 0
        left = sum(int(count) for name, count in attributes().items() if name.startswith("Approximate"))
    assert left == 0
    assert sorted(house.receipts()) == sorted(
        [(key.removeprefix(PLACE), "processed", "") for key in keys]
        + [("a b+ü%.x", "rejected", "wrong_place"), ("parts", "rejected", "name_syntax")]
    )


def test_a_queue_that_is_not_there_is_named(server: S3Server) -> None:
    url = f"{server.settings.endpoint}/000000000000/nothing"
    with pytest.raises(StoreUnavailable, match=f"{url} cannot be used: .*NonExistentQueue"):
        sqs_queue(server.settings, url).receive(0)
