"""Buckets of object stores as drop-offs: ``<bucket>/<partner>/date=YYYY-MM-DD/<file name>`` (IN-04).

The whole bucket is listed again and again: stores differ in the order of their listings, so there is no last key after
which only new ones come. Of large buckets the whole is listed now and then, and notifications tell what came since.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple

import structlog

from openaudience.config import Settings
from openaudience.dropoff.doors import Delivery, DeliveryChanged, overdue, write_durably
from openaudience.dropoff.notifications import Event, Notifications, sqs_queue
from openaudience.dropoff.paths import PathRefused, check_name, unfinished
from openaudience.dropoff.stores import AccessRefused, Object, Store, opener
from openaudience.errors import InputError, StoreUnavailable

LONGEST_DOOR = 255
MOST_DELETIONS = 500
"""Objects deleted in one round: clearing up must not hold up what just came."""
SETTING = re.compile(
    r"(?:(?P<partner>[^:/]+)=)?s3[an]?://(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{1,254})(?P<prefix>/.*)?", re.DOTALL
)
DATED = "date="

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where senders put objects. ``url`` is "s3://name" or "s3://name/prefix", ``prefix`` is without slashes at its
    ends. ``partner``: whose own bucket it is, None where each has a folder.
    """

    url: str
    name: str
    prefix: str
    partner: str | None

    @property
    def beginning(self) -> str:
        """What every key of the drop-off begins with."""
        return f"{self.prefix}/" if self.prefix else ""


def bucket(setting: str) -> Bucket:
    """Reads "s3://name/prefix" or "partner=s3://name"; ``s3a`` and ``s3n`` mean the same (IN-04).

    Raises InputError that names the setting.
    """
    mend = 'write "s3://bucket", "s3://bucket/prefix" or "partner=s3://bucket"'
    match = SETTING.fullmatch(setting.strip())
    if match is None:
        raise InputError(f"s3.buckets, s3.beta_buckets: {setting!r} names no bucket; {mend}")
    prefix = (match["prefix"] or "").strip("/")
    try:
        for part in prefix.split("/") if prefix else ():
            check_name(part)
    except PathRefused as refused:
        raise InputError(f"s3.buckets, s3.beta_buckets: {setting!r}: {refused}; {mend}") from None
    url = f"s3://{match['name']}/{prefix}" if prefix else f"s3://{match['name']}"
    if len(url) > LONGEST_DOOR:
        raise InputError(f"s3.buckets, s3.beta_buckets: {setting!r} is longer than {LONGEST_DOOR} characters; {mend}")
    return Bucket(url, match["name"], prefix, match["partner"])


class Folder(NamedTuple):
    """What a key says before its last slash."""

    partner: str | None
    pid: int | None
    refusal: tuple[str, str] | None


class BucketDoor:
    """One bucket of one environment (a ``Door``).

    ``object_seconds``: how long objects stay (IN-06). ``largest``: bytes above which an object is refused without
    being copied (IN-20). With ``notifications`` a look sees only what they name, and everything once in
    ``list_seconds``: a lost or doubled notification changes nothing but the time. A notification is done with once the
    intake knows the object and lets go of it.
    """

    settles = False

    def __init__(
        self,
        bucket: Bucket,
        store: Store,
        *,
        object_seconds: float,
        unfinished_seconds: float,
        largest: int,
        notifications: Notifications | None = None,
        list_seconds: float = 0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.name = bucket.url
        self._bucket = bucket
        self._store = store
        self._object_seconds = object_seconds
        self._unfinished = unfinished_seconds
        self._largest = largest
        self._notifications = notifications
        self._list_seconds = list_seconds
        self._now = now
        self._listed: float | None = None
        self._deletions = 0
        self._told: dict[str, list[Event]] = {}
        self._seen: dict[str, Delivery] = {}
        self._kept: set[tuple[str, str]] = set()

    def look(self, partners: Mapping[str, int]) -> Iterator[Delivery]:
        self._deletions = 0
        if self._notifications is not None:
            soon = self._listed is not None and 0 <= self._now() - self._listed < self._list_seconds
            self._hear(self._notifications, forgive=not soon)
            if soon:
                yield from self._look_at_told(partners)
                return
        began = self._now()
        # a store may show an object on two pages while others come and go
        there = {found.key: found for found in self._store.list(self._bucket.beginning)}
        yield from self._deliveries(there.values(), partners)
        self._listed = began

    def fetch(self, delivery: Delivery, target: Path) -> tuple[str, int]:
        if delivery.size > self._largest:
            # what is refused for its size must not fill the disk; the object itself stays where it is
            return write_durably(target, iter(()))[0], delivery.size
        modified, size, _, etag = delivery.stamp.split(" ", 3)
        try:
            with self._store.read(Object(delivery.path, etag, int(size), int(modified))) as blocks:
                if blocks is not None:
                    return write_durably(target, blocks)
        except AccessRefused as refused:
            # the bucket is readable, else it had not been listed: one such object does not stop the others
            log.warning("object_refused", bucket=self.name, key=delivery.path, reason=str(refused))
            raise DeliveryChanged(f"{delivery.path} may not be read: {refused}") from None
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        self._seen.pop(delivery.path, None)
        raise DeliveryChanged(f"{delivery.path} was replaced or deleted")

    def release(self, delivery: Delivery) -> None:
        key = delivery.path
        if self._notifications is not None:
            self._seen.pop(key, None)
            for event in self._told.pop(key, ()):
                self._notifications.done(event)
        if self._now() - delivery.since < self._object_seconds or self._deletions >= MOST_DELETIONS:
            return
        if (key, delivery.stamp) in self._kept:
            return
        self._deletions += 1
        try:
            found = self._store.head(key)
            if found is not None and _stamp(found) == delivery.stamp:
                self._store.delete(key)
        except AccessRefused as refused:
            # a sender or the store may have locked it: it must not keep others from being let go
            log.warning("object_not_deleted", bucket=self.name, key=key, reason=str(refused))
            self._kept.add((key, delivery.stamp))

    def _hear(self, notifications: Notifications, forgive: bool) -> None:
        try:
            events = notifications.of(self._bucket)
        except StoreUnavailable as unavailable:
            if not forgive:
                raise
            # the listing needs no queue
            log.warning("queue_unavailable", bucket=self.name, reason=str(unavailable))
            return
        for event in events:
            self._told.setdefault(event.key, []).append(event)
            self._seen.pop(event.key, None)

    def _look_at_told(self, partners: Mapping[str, int]) -> Iterator[Delivery]:
        """What notifications named since the last listing and the intake has not let go of."""
        assert self._notifications is not None
        for key in list(self._told):
            if key not in self._seen:
                try:
                    found = self._store.head(key)
                except AccessRefused as refused:
                    log.warning("object_refused", bucket=self.name, key=key, reason=str(refused))
                    found = None
                delivery = next(self._deliveries([found], partners), None) if found is not None else None
                if delivery is None:
                    # gone, no file, or one that only the next listing has to watch
                    for event in self._told.pop(key):
                        self._notifications.done(event)
                    continue
                self._seen[key] = delivery
            yield self._seen[key]

    def _deliveries(self, objects: Iterable[Object], partners: Mapping[str, int]) -> Iterator[Delivery]:
        now = self._now()
        folders: dict[str, Folder] = {}
        begin = len(self._bucket.beginning)
        for found in objects:
            key = found.key
            if key.endswith("/"):
                continue
            above, _, name = key[begin:].rpartition("/")
            folder = folders.get(above)
            if folder is None:
                folder = folders[above] = self._folder(above, partners)
            refusal = folder.refusal
            if refusal is None:
                if name in (".", ".."):
                    refusal = _wrong("The name of the file is no name.", folder.partner)
                elif unfinished(name):
                    if now - found.modified < self._unfinished:
                        continue
                    refusal = overdue(self._unfinished)
                elif found.size > self._largest:
                    refusal = (
                        "too_large_compressed",
                        f"The object is larger than {self._largest:,} bytes. It stays in the bucket, uncopied. "
                        "Split it into several files.",
                    )
            yield Delivery(
                path=key,
                name=name,
                stamp=_stamp(found),
                size=found.size,
                since=found.modified,
                partner=folder.partner,
                pid=folder.pid,
                refusal=refusal,
            )

    def _folder(self, above: str, partners: Mapping[str, int]) -> Folder:
        first, _, rest = above.partition("/")
        own = self._bucket.partner
        if own is not None:
            pid = partners.get(own)
            if pid is None:
                return Folder(None, None, _wrong("The bucket belongs to a partner that is not known here.", None))
            if first != own:
                return Folder(own, pid, _wrong("The key begins with another name than the bucket's owner.", own))
            partner = own
        else:
            pid = partners.get(first)
            if pid is None:
                return Folder(None, None, _wrong("The key begins with the name of no partner.", None))
            partner = first
        day = rest.partition("/")[0]
        if not day.startswith(DATED):
            refusal = _wrong("The file lies in no dated folder.", partner)
        elif not _is_day(day.removeprefix(DATED)):
            refusal = _wrong("The name of the dated folder is no date.", partner)
        elif rest != day:
            refusal = _wrong("The file lies in a folder within the dated folder.", partner)
        else:
            return Folder(partner, pid, None)
        return Folder(partner, pid, refusal)


def bucket_doors(settings: Settings, *, beta: bool, now: Callable[[], float] = time.time) -> list[BucketDoor]:
    """The buckets of one environment as the settings name them (IN-01, IN-02); none unless s3.enabled.

    Raises ``InputError`` for settings that name no bucket or one twice, ``SystemFailure`` if there are no credentials.
    """
    section = settings.s3
    if not section.enabled:
        return []
    buckets = [bucket(setting) for setting in (section.beta_buckets if beta else section.buckets)]
    for place, one in enumerate(buckets):
        for other in buckets[place + 1 :]:
            if one.name == other.name and (
                one.beginning.startswith(other.beginning) or other.beginning.startswith(one.beginning)
            ):
                raise InputError(
                    f"s3.{'beta_' if beta else ''}buckets: {one.url} and {other.url} overlap; name each place once"
                )
    open_bucket = opener(section)
    url = section.beta_queue_url if beta else section.queue_url
    notifications = Notifications(sqs_queue(section, url), buckets) if url else None
    return [
        BucketDoor(
            one,
            open_bucket(one.name),
            object_seconds=settings.retention.object_days * 86400,
            unfinished_seconds=settings.dropoff.unfinished_hours * 3600,
            largest=settings.limits.compressed_bytes,
            notifications=notifications,
            list_seconds=section.list_seconds,
            now=now,
        )
        for one in buckets
    ]


def _wrong(what: str, partner: str | None) -> tuple[str, str]:
    return "wrong_place", f"{what} Send it as {partner or '<partner name>'}/date=YYYY-MM-DD/<file name>."


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _stamp(found: Object) -> str:
    """Which upload an object is. An ETag is no digest of the whole, and the same for the same bytes sent again."""
    mark = "-"
    if not found.key.isprintable():
        # two keys that are shown alike are two files all the same
        mark = hashlib.sha256(found.key.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"{found.modified} {found.size} {mark} {found.etag}"
