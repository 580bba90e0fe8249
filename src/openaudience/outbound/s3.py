"""Delivery to a bucket of Amazon S3 or any store that speaks it (OB-196 … OB-198)."""

from __future__ import annotations

import hashlib
import socket
import ssl
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials
from botocore.exceptions import BotoCoreError, ClientError, ConnectTimeoutError, ReadTimeoutError

from openaudience.errors import DeliveryFailed, DeliveryRefused
from openaudience.outbound.servers import Server
from openaudience.outbound.targets import WRITE_TEST, Timeouts, Voice, check_name, file_size, join, reading

MULTIPART = 64 << 20
"""Bytes above which a file is sent in parts."""
MOST_PARTS = 10_000
ATTEMPTS = 2
RUN, DIGEST = "openaudience-run", "openaudience-md5"
"""Metadata that say whose an object is (OB-209)."""
THERE = frozenset({"412", "PreconditionFailed"})
MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
UNKNOWN = frozenset({"501", "NotImplemented"})
KEYS = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "InvalidClientTokenId"}
)
DENIED = frozenset({"401", "403", "AccessDenied", "Forbidden", "AllAccessDisabled"})
ELSEWHERE = frozenset({"301", "307", "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed"})


@dataclass(frozen=True, slots=True)
class _Source:
    """A file that is to be sent, and what stands beside it in the store."""

    path: Path
    size: int
    digest: bytes
    metadata: Mapping[str, str]


class S3Target:
    """An object is visible only when it is complete; its metadata name the run that it belongs to."""

    def __init__(self, server: Server, secrets: Mapping[str, str], timeouts: Timeouts) -> None:
        where = urlsplit(server.endpoint).netloc if server.endpoint else "Amazon S3"
        self.server = server
        self.voice = Voice(server, f"bucket {server.bucket} at {where}", secrets.values())
        self._secrets = secrets
        self._timeouts = timeouts
        self._made: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._made is not None:
            with suppress(Exception):
                self._made.close()
            self._made = None

    def put(self, path: Path, name: str, *, run: str, again: bool) -> None:
        check_name(self.voice, name)
        key = join(self.server.directory, name)
        source = _source(self.voice, path, run)
        there = self._head(key)
        if there is not None:
            if self._is_ours(there, source):
                return
            if there.get("Metadata", {}).get(RUN) != run:
                raise self.voice.exists(key)
        if again and source.size > MULTIPART:
            self._drop_parts(key)
        try:
            self._send(key, source, over=there is not None)
        except _There:
            # a repetition of the library's own finds what its first request put
            there = self._head(key)
            if there is None or not self._is_ours(there, source):
                raise self.voice.exists(key) from None

    def test(self) -> None:
        key = join(self.server.directory, WRITE_TEST)
        self._call("put_object", Key=key, Body=b"", **self._terms())
        self._call("delete_object", Key=key)

    # ---- steps -----------------------------------------------------------------------------------------------

    def _head(self, key: str) -> dict[str, Any] | None:
        """The object of that key; None if there is none, or this account may not look."""
        try:
            return self._call("head_object", Key=key)
        except (_Missing, _Denied):
            return None

    def _is_ours(self, there: Mapping[str, Any], source: _Source) -> bool:
        metadata = there.get("Metadata", {})
        return there.get("ContentLength") == source.size and source.metadata.items() <= metadata.items()

    def _send(self, key: str, source: _Source, *, over: bool) -> None:
        terms = {"Key": key, **self._terms(), "Metadata": dict(source.metadata)}
        once = {} if over else {"IfNoneMatch": "*"}
        if source.size > MULTIPART:
            self._send_parts(key, source, terms, once)
            return
        try:
            self._send_whole(source, terms | once)
        except _Unknown:
            # not every store knows conditions; the look before has to do there
            self._send_whole(source, terms)

    def _send_whole(self, source: _Source, terms: Mapping[str, Any]) -> None:
        with self._opened(source.path) as body:
            self._call("put_object", Body=body, ContentMD5=b64encode(source.digest).decode(), **terms)

    def _send_parts(self, key: str, source: _Source, terms: Mapping[str, Any], once: Mapping[str, Any]) -> None:
        upload = self._call("create_multipart_upload", **terms)["UploadId"]
        size = max(MULTIPART // 4, -(-source.size // MOST_PARTS))
        parts: list[dict[str, Any]] = []
        try:
            with self._opened(source.path) as file:
                while block := file.read(size):
                    number = len(parts) + 1
                    # the part is in memory, so the library can send it again by itself
                    answer = self._call(
                        "upload_part",
                        Key=key,
                        UploadId=upload,
                        PartNumber=number,
                        Body=block,
                        ContentMD5=b64encode(hashlib.md5(block, usedforsecurity=False).digest()).decode(),
                    )
                    parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            complete = {"Key": key, "UploadId": upload, "MultipartUpload": {"Parts": parts}}
            try:
                self._call("complete_multipart_upload", **complete, **once)
            except _Unknown:
                self._call("complete_multipart_upload", **complete)
        except BaseException:
            # parts of an upload that nobody ends are paid for as long as they lie there
            with suppress(DeliveryFailed):
                self._call("abort_multipart_upload", Key=key, UploadId=upload)
            raise

    def _drop_parts(self, key: str) -> None:
        """Ends what an earlier attempt left unfinished, where this account may."""
        with suppress(DeliveryFailed):
            for upload in self._call("list_multipart_uploads", Prefix=key).get("Uploads", ()):
                if upload["Key"] == key:
                    self._call("abort_multipart_upload", Key=key, UploadId=upload["UploadId"])

    def _terms(self) -> dict[str, Any]:
        """What OB-198 wants of every object. ``serverSideEncryption: false`` is for stores that know neither."""
        if self.server.encrypted:
            return {"ACL": "bucket-owner-full-control", "ServerSideEncryption": "AES256"}
        return {} if self.server.endpoint else {"ACL": "bucket-owner-full-control"}

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        try:
            file = path.open("rb")
        except OSError as error:
            raise self.voice.unreadable(path, error) from None
        with file:
            yield file

    def _call(self, name: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._client(), name)(Bucket=self.server.bucket, **arguments)
            return answer
        except (DeliveryFailed, DeliveryRefused):
            raise
        except ClientError as error:
            raise self._said_no(error) from None
        except Exception as error:
            raise self._unreachable(error) from None

    # ---- connecting ------------------------------------------------------------------------------------------

    def _client(self) -> Any:
        if self._made is None:
            self._made = self._session().client(
                "s3",
                endpoint_url=self.server.endpoint or None,
                region_name=self.server.region or "us-east-1",
                config=self._patience().merge(
                    Config(
                        # stores other than Amazon's are reached by one name
                        s3={"addressing_style": "path"} if self.server.endpoint else {},
                        request_checksum_calculation="when_required",
                        response_checksum_validation="when_required",
                    )
                ),
            )
        return self._made

    def _session(self) -> Any:
        """With the keys of the server; with its role; or as this machine's own account (OB-197)."""
        server = self.server
        if server.access_key:
            secret = self._secrets.get("secretAccessKey")
            if not secret:
                raise self.voice.failed("login", "secretAccessKey is missing; give it with accessKeyId")
            return boto3.session.Session(aws_access_key_id=server.access_key, aws_secret_access_key=secret)
        session = boto3.session.Session()
        own = session.get_credentials()
        if own is None:
            raise self.voice.failed(
                "login",
                "this machine has no account of its own; give accessKeyId and secretAccessKey, or the machine a role",
            )
        if not server.role:
            return session
        inner = botocore.session.get_session()
        fetcher = AssumeRoleCredentialFetcher(
            client_creator=lambda service, **terms: inner.create_client(
                service, region_name=server.region or "us-east-1", config=self._patience(), **terms
            ),
            source_credentials=own,
            role_arn=server.role,
            extra_args={"RoleSessionName": "openaudience"},
        )
        assumed = botocore.session.get_session()
        assumed._credentials = DeferredRefreshableCredentials(
            method="assume-role", refresh_using=fetcher.fetch_credentials
        )
        return boto3.session.Session(botocore_session=assumed)

    def _patience(self) -> Config:
        return Config(
            connect_timeout=self._timeouts.connect,
            read_timeout=self._timeouts.idle,
            retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
        )

    # ---- errors ----------------------------------------------------------------------------------------------

    def _said_no(self, error: ClientError) -> DeliveryFailed:
        code = str(error.response.get("Error", {}).get("Code", ""))
        said = self.voice.said(error.response.get("Error", {}).get("Message", "") or code)
        if error.operation_name == "AssumeRole":
            return self.voice.failed("login", f"role {self.server.role} may not be taken: {code}: {said}")
        if code in THERE:
            return _There(str(self.voice.failed("exists", said)))
        plain = (
            "; some stores need serverSideEncryption: false" if self.server.encrypted and self.server.endpoint else ""
        )
        if code in UNKNOWN:
            what = f"the store does not know all of {error.operation_name}: {said}{plain}"
            return _Unknown(str(self.voice.failed("transfer", what)))
        if code == "NoSuchBucket":
            return self.voice.failed("path", "there is no such bucket; make it, or correct bucket")
        if code in MISSING:
            return _Missing(str(self.voice.failed("path", f"{code}: {said}")))
        if code in KEYS:
            return self.voice.failed("login", f"{code}: {said}; correct accessKeyId and secretAccessKey")
        if code in DENIED:
            hint = "let this account put, read and delete objects there"
            return _Denied(str(self.voice.failed("permission", f"{code}: {said}; {hint}")))
        if code == "RequestTimeTooSkewed":
            return self.voice.failed("login", f"{said}; set the clock of this machine")
        if code in ELSEWHERE:
            return self.voice.failed("path", f"{code}: {said}; correct region and endpoint")
        return self.voice.failed("transfer", f"the store answers {code}: {said}{plain}")

    def _unreachable(self, error: Exception) -> DeliveryFailed:
        host = urlsplit(self.server.endpoint).hostname or "Amazon S3"
        causes = list(_causes(error))
        seconds = self._timeouts.connect
        if any(isinstance(cause, socket.gaierror) for cause in causes):
            return self.voice.failed("DNS", f"{host} is not found; correct endpoint, region or bucket")
        for cause in causes:
            if isinstance(cause, ssl.SSLError):
                return self.voice.failed("TLS", f"{self.voice.said(cause)}; correct endpoint, or trust its certificate")
        if any(isinstance(cause, ConnectTimeoutError) for cause in causes):
            return self.voice.failed("TCP", f"{host} did not answer within {seconds:g} s; check endpoint and firewalls")
        if any(isinstance(cause, (ReadTimeoutError, TimeoutError)) for cause in causes):
            return self.voice.failed("transfer", f"the store was silent for {self._timeouts.idle:g} s")
        if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
            return self.voice.failed("TCP", f"{host} refuses the connection; check endpoint and that the store is up")
        if isinstance(error, (BotoCoreError, OSError)):
            return self.voice.failed("transfer", self.voice.said(error))
        # something that is no store may answer anything
        return self.voice.failed("transfer", f"no answer of a store ({type(error).__name__}); correct endpoint")


class _There(DeliveryFailed):
    """The condition that there be no such object is not met."""


class _Missing(DeliveryFailed):
    """There is no such object."""


class _Denied(DeliveryFailed):
    """This account may not do that."""


class _Unknown(DeliveryFailed):
    """The store has not heard of that."""


def _source(voice: Voice, path: Path, run: str) -> _Source:
    digest = hashlib.md5(usedforsecurity=False)
    size = file_size(voice, path)
    with reading(voice, path) as blocks:
        for block in blocks:
            digest.update(block)
    # metadata travel in headers, which hold no more than ASCII
    return _Source(path, size, digest.digest(), {RUN: run, DIGEST: digest.hexdigest()})


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it came from, as far as anybody noted it."""
    waiting: list[object] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
        waiting.append(getattr(one, "kwargs", {}).get("error"))
