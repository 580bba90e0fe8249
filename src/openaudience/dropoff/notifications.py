"""What an object store says in a queue about new objects: hints where to look, never the truth.

They may come twice, late, in any order or not at all; a message leaves the queue only when each object that it names
has been dealt with, so that a crash in between makes the queue name it again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote_plus, urlsplit

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from openaudience.config import S3Section
from openaudience.dropoff.stores import client
from openaudience.errors import StoreUnavailable

AT_ONCE = 10
MOST_MESSAGES = 5_000
"""Messages taken from the queue in one look; the rest comes with the next."""
WAIT_SECONDS = 1
"""A queue of several servers asks all of them only if it may wait."""

log = structlog.get_logger()


class Received(NamedTuple):
    """A message as the queue gives it: it bears its ``id`` for ever, and the ``handle`` until it is given again."""

    id: str
    handle: str
    body: str


class Queue(Protocol):
    """A queue that gives a message again unless it is deleted in time. Raises ``StoreUnavailable``."""

    def receive(self, wait_seconds: int) -> list[Received]:
        """Up to ten messages."""

    def delete(self, handles: Sequence[str]) -> None:
        """Deletes up to ten messages."""


class Place(Protocol):
    """A drop-off of which notifications may speak: what ``objects.Bucket`` has."""

    @property
    def url(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def beginning(self) -> str: ...


@dataclass(slots=True)
class Message:
    """A message in work; ``left``: bucket and key of the objects still to be dealt with."""

    handle: str
    left: set[tuple[str, str]] = field(default_factory=set)


class Event(NamedTuple):
    """An object was created."""

    bucket: str
    key: str
    message: str


class Notifications:
    """The queue of one environment. Safe to be used by the doors of several threads."""

    def __init__(self, queue: Queue, places: Sequence[Place]) -> None:
        self._queue = queue
        self._places = places
        self._lock = threading.Lock()
        self._messages: dict[str, Message] = {}
        self._finished: list[str] = []
        self._waiting: dict[str, list[Event]] = {place.url: [] for place in places}

    def of(self, place: Place) -> list[Event]:
        """What came for one drop-off since it was last asked for. Raises ``StoreUnavailable``."""
        with self._lock:
            self._clear()
            received = 0
            while received < MOST_MESSAGES:
                several = self._queue.receive(WAIT_SECONDS if received == 0 else 0)
                received += len(several)
                for one in several:
                    self._sort(one)
                if len(several) == 0:
                    break
            self._clear()
            mine = self._waiting[place.url]
            self._waiting[place.url] = []
            return mine

    def done(self, event: Event) -> None:
        """The object has been dealt with; its message leaves the queue with the next look."""
        with self._lock:
            message = self._messages.get(event.message)
            if message is None:
                return
            message.left.discard((event.bucket, event.key))
            if not message.left:
                del self._messages[event.message]
                self._finished.append(message.handle)

    def _sort(self, received: Received) -> None:
        if received.id in self._messages:
            # given again because the work took long: it is still known here
            self._messages[received.id].handle = received.handle
            return
        message = Message(received.handle)
        for bucket, key in created(received.body):
            place = next((one for one in self._places if one.name == bucket and key.startswith(one.beginning)), None)
            if place is not None and (bucket, key) not in message.left:
                message.left.add((bucket, key))
                self._waiting[place.url].append(Event(bucket, key, received.id))
        if message.left:
            self._messages[received.id] = message
        else:
            self._finished.append(received.handle)

    def _clear(self) -> None:
        while self._finished:
            self._queue.delete(self._finished[:AT_ONCE])
            del self._finished[:AT_ONCE]


def created(body: str) -> Iterator[tuple[str, str]]:
    """Bucket and key of each object that a message says was created; none of a test message or any other."""
    try:
        document = json.loads(body)
        if "Records" not in document and document.get("Event") != "s3:TestEvent":
            raise ValueError("no records")
        for record in document.get("Records", ()):
            if str(record["eventName"]).startswith(("ObjectCreated:", "s3:ObjectCreated:")):
                thing = record["s3"]
                key = unquote_plus(str(thing["object"]["key"]), errors="strict")
                # what is no UTF-8 or empty is the key of no object
                if key.encode():
                    yield str(thing["bucket"]["name"]), key
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        log.warning("notification_not_understood", body=body[:200])


def sqs_queue(section: S3Section, url: str) -> Queue:
    """A queue of Amazon SQS or what speaks like it. Raises ``SystemFailure`` if there are no credentials."""
    place = urlsplit(url)
    queue = client("sqs", section, section.queue_endpoint or f"{place.scheme}://{place.netloc}")

    class SqsQueue:
        def receive(self, wait_seconds: int) -> list[Received]:
            answer = self._call("receive_message", MaxNumberOfMessages=AT_ONCE, WaitTimeSeconds=wait_seconds)
            return [Received(one["MessageId"], one["ReceiptHandle"], one["Body"]) for one in answer.get("Messages", ())]

        def delete(self, handles: Sequence[str]) -> None:
            entries = [{"Id": str(place), "ReceiptHandle": handle} for place, handle in enumerate(handles)]
            self._call("delete_message_batch", Entries=entries)

        def _call(self, name: str, **arguments: Any) -> dict[str, Any]:
            try:
                answer: dict[str, Any] = getattr(queue, name)(QueueUrl=url, **arguments)
            except (BotoCoreError, ClientError) as error:
                raise StoreUnavailable(
                    f"the queue {url} cannot be used: {error}; check s3.queue_url, s3.queue_endpoint, s3.region "
                    "and that the account may receive and delete its messages"
                ) from None
            return answer

    return SqsQueue()
