"""Object stores that speak S3: list, look at, read and delete objects, with every key that a sender can make.

Clients that take a key for a path drop a leading or trailing slash, and one object called ``a//b``, ``../x`` or with a
control character makes their whole listing fail: one sender could hide the files of all others. boto3 takes a key for
what it is (IN-04, OP-62).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from openaudience.config import S3Section
from openaudience.dropoff.doors import BLOCK
from openaudience.errors import InputError, StoreUnavailable, SystemFailure

CONNECT_SECONDS = 10
ANSWER_SECONDS = 20
ATTEMPTS = 3
"""How long and how often a store is waited for: one that hangs must not hold its thread for ever."""
GONE = frozenset({"404", "NoSuchKey", "NotFound", "PreconditionFailed", "412"})
DENIED = frozenset({"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden"})
BUSY = frozenset({"429", "408", "SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests"})


@dataclass(frozen=True, slots=True)
class Object:
    """An object as the store tells of it. ``etag`` is without quotation marks; it names a content but is no MD5.
    ``size`` in bytes. ``modified``: UTC seconds, whole.
    """

    key: str
    etag: str
    size: int
    modified: int


class AccessRefused(StoreUnavailable):
    """The store answers, but does not let this account do that with this object or at all."""


class Store(Protocol):
    """One bucket. All methods raise ``StoreUnavailable``, which names the bucket and says how to mend it."""

    def list(self, prefix: str) -> Iterator[Object]:
        """All objects whose key begins so, in whatever order the store likes."""

    def head(self, key: str) -> Object | None:
        """The object as it is now, None if there is none."""

    def read(self, thing: Object) -> AbstractContextManager[Iterator[bytes] | None]:
        """The content in blocks, None if it is gone or another one. Ends early only by raising."""

    def delete(self, key: str) -> None:
        """Deletes the object; that it is gone already is no error."""


class S3Store:
    """A bucket of any S3-compatible store; ``client`` is what ``client`` makes."""

    def __init__(self, bucket: str, client: Any) -> None:
        self.bucket = bucket
        self._client = client

    def list(self, prefix: str) -> Iterator[Object]:
        token: dict[str, str] = {}
        followed: set[str] = set()
        while True:
            page = self._call("list_objects_v2", Prefix=prefix, **token)
            with self._understood("list_objects_v2"):
                more = page["IsTruncated"]
                there = [
                    _object(found["Key"], found.get("ETag", ""), found["Size"], found["LastModified"])
                    for found in page.get("Contents", ())
                ]
            yield from there
            if not more:
                return
            following = page.get("NextContinuationToken")
            if not following or following in followed:
                raise StoreUnavailable(f"{self._where()} lists without an end; look at the store's own log")
            followed.add(following)
            token = {"ContinuationToken": following}

    def head(self, key: str) -> Object | None:
        found = self._of_object("head_object", key)
        return None if found is None else self._described(key, found)

    @contextmanager
    def read(self, thing: Object) -> Iterator[Iterator[bytes] | None]:
        answer = self._of_object("get_object", thing.key, IfMatch=f'"{thing.etag}"')
        if answer is None:
            yield None
            return
        with closing(answer["Body"]) as body:
            # not every store heeds If-Match
            yield self._blocks(body) if self._described(thing.key, answer) == thing else None

    def delete(self, key: str) -> None:
        self._of_object("delete_object", key)

    def _blocks(self, body: Any) -> Iterator[bytes]:
        try:
            # ends with an error if the store sends less than it said
            yield from body.iter_chunks(BLOCK)
        except (BotoCoreError, ClientError, OSError) as error:
            raise self._unreachable(error) from None

    def _of_object(self, name: str, key: str, **arguments: Any) -> dict[str, Any] | None:
        """The answer; None if the object is not there, or is another one."""
        try:
            return self._call(name, Key=key, **arguments)
        except _Missing:
            return None

    def _call(self, name: str, **arguments: Any) -> dict[str, Any]:
        try:
            with self._understood(name):
                answer: dict[str, Any] = getattr(self._client, name)(Bucket=self.bucket, **arguments)
            return answer
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            if code in GONE:
                raise _Missing(f"{self._where()} says {code}; correct s3.endpoint and s3.buckets") from None
            raise self._refused(code, of_object="Key" in arguments and 400 <= status < 500) from None
        except (BotoCoreError, OSError) as error:
            raise self._unreachable(error) from None

    @contextmanager
    def _understood(self, name: str) -> Iterator[None]:
        """Something that is no store, or speaks another version, may answer anything."""
        try:
            yield
        except (ResponseParserError, RecursionError, KeyError, ValueError, TypeError, AttributeError) as error:
            text = f"{self._where()} answers {name} in no way that S3 does: {str(error)[:200]}"
            raise StoreUnavailable(f"{text}; correct s3.endpoint, or look at the store's own log") from None

    def _described(self, key: str, answer: dict[str, Any]) -> Object:
        with self._understood("get_object"):
            return _object(key, answer["ETag"], answer["ContentLength"], answer["LastModified"])

    def _unreachable(self, error: Exception) -> StoreUnavailable:
        return StoreUnavailable(f"{self._where()} does not answer: {error}; check s3.endpoint and that the store is up")

    def _where(self) -> str:
        return f"the object store of bucket {self.bucket} at {urlsplit(self._client.meta.endpoint_url).netloc}"

    def _refused(self, code: str, of_object: bool) -> StoreUnavailable:
        text = f"{self._where()} refuses: {code or 'no reason given'}"
        if code == "NoSuchBucket":
            return StoreUnavailable(f"{text}; make the bucket or correct s3.buckets and s3.beta_buckets")
        if code == "RequestTimeTooSkewed":
            return StoreUnavailable(f"{text}; set the clock of this machine")
        if code in ("AuthorizationHeaderMalformed", "PermanentRedirect", "301", "307"):
            return StoreUnavailable(f"{text}; correct s3.region and s3.endpoint")
        if code in DENIED:
            return AccessRefused(
                f"{text}; check s3.access_key_id and s3.secret_access_key, "
                "and that they may list the bucket, read and delete its objects"
            )
        if of_object and code not in BUSY:
            # a sender may choose a key of encryption or an archive that lets nobody read what it sent
            return AccessRefused(f"{text}; the sender has to send it again as a plain object")
        return StoreUnavailable(f"{text}; look at the store's own log")


class _Missing(StoreUnavailable):
    """What was asked for is not there: of an object that is an answer, of a whole bucket it is none."""


def client(service: str, section: S3Section, endpoint: str) -> Any:
    """A client of boto3 for "s3" or "sqs"; no ``endpoint``: Amazon's.

    Without keys in the settings boto3 looks for the usual variables, profiles, and the role of the machine. Raises
    ``InputError`` for an endpoint that is no address, ``SystemFailure`` if there are no credentials.
    """
    if endpoint and (urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname):
        raise InputError(f"s3.endpoint: {endpoint!r} is no address; write https://host or http://host:port")
    session = boto3.session.Session()
    if not section.access_key_id and session.get_credentials() is None:
        raise SystemFailure(
            "no credentials for object storage: set s3.access_key_id and s3.secret_access_key, "
            "or give this machine a role that may read it"
        )
    return session.client(
        service,
        endpoint_url=endpoint or None,
        region_name=section.region,
        aws_access_key_id=section.access_key_id or None,
        aws_secret_access_key=section.secret_access_key or None,
        config=Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=ANSWER_SECONDS,
            retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
            # stores other than Amazon's are reached by one name
            s3={"addressing_style": "path"} if endpoint else {},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


Opener = Callable[[str], Store]


def opener(section: S3Section) -> Opener:
    """Opens buckets of the store that the settings name, all with one client."""
    shared = client("s3", section, section.endpoint)
    return lambda bucket: S3Store(bucket, shared)


def _object(key: str, etag: str, size: int, modified: Any) -> Object:
    return Object(key, etag.strip('"'), int(size), int(modified.timestamp()))
