"""Delivery servers: what may be saved, and what a delivery needs to know of one (40 §9, API-203).

Secrets are no part of a server's document; they come beside it (OB-212).
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

DEFAULT_PORTS = {"SFTP": 22, "FTPS": 21, "FTP": 21}
SYNC_TYPES = {"S3": "s3", "SFTP": "ftp", "FTPS": "ftp", "FTP": "ftp", "LOCAL": "ftp", "HTTP": "http"}
FINGERPRINT = "SHA256:"
OPENSSH = "-----BEGIN OPENSSH PRIVATE KEY-----"
_MAGIC = b"openssh-key-v1\0"

Fault = tuple[str, str]
"""The field that is wrong, and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Server:
    """A delivery server with all defaults filled in; which fields matter depends on ``type``.

    ``move_to``: the folder a file is moved into after its upload (OB-204), relative to the login folder like
    ``remote_path``. ``host_key``: what the server must show, '' if it is not pinned (OB-202).
    """

    number: int
    name: str
    type: str
    bucket: str = ""
    directory: str = ""
    region: str = ""
    endpoint: str = ""
    access_key: str = ""
    role: str = ""
    encrypted: bool = True
    host: str = ""
    port: int = 0
    user: str = ""
    host_key: str = ""
    remote_path: str = ""
    tmp_rename: bool = True
    suffix: str = ""
    move_to: str = ""

    @classmethod
    def of(cls, number: int, document: Mapping[str, Any]) -> Server:
        """The server of a document that ``check_server`` finds nothing wrong with."""

        def text(name: str) -> str:
            return document.get(name) or ""

        def switch(name: str) -> bool:
            value = document.get(name)
            return True if value is None else bool(value)

        kind = document["type"]
        return cls(
            number=number,
            name=text("name"),
            type=kind,
            bucket=text("bucket"),
            directory=text("directory"),
            region=text("region"),
            endpoint=text("endpoint"),
            access_key=text("accessKeyId"),
            role=text("roleArn"),
            encrypted=switch("serverSideEncryption"),
            host=text("host"),
            port=document.get("port") or DEFAULT_PORTS.get(kind, 0),
            user=text("user"),
            host_key=text("hostKey"),
            remote_path=text("remotePath"),
            # a folder of this machine has no other way (OB-205)
            tmp_rename=switch("tmpRename") or kind == "LOCAL",
            suffix=text("filenameSuffix"),
            move_to=text("moveToWhenFinished"),
        )


def sync_type(document: Mapping[str, Any]) -> str:
    """What ``SYNC_TYPE`` is for files that go to this server (OB-90, OB-205)."""
    return document.get("syncTypeText") or SYNC_TYPES[document["type"]]


def check_server(document: Mapping[str, Any], secrets: Mapping[str, str] | None = None) -> list[Fault]:
    """Everything for which a server must not be saved, as (field, text).

    ``secrets``: those that are kept or given, by field. Without a value a secret counts as given if the document has
    it or refers to it (``password_env``, ``password_file``).
    """
    check = _CHECKS.get(document.get("type") or "")
    if check is None:
        return [("type", f"must be one of {', '.join(SYNC_TYPES)}")]
    given = _Given(document, secrets or {})
    check(given)
    return given.faults


class _Given:
    """A document under examination."""

    def __init__(self, document: Mapping[str, Any], secrets: Mapping[str, str]) -> None:
        self.document = document
        self.faults: list[Fault] = []
        self._secrets = secrets

    def text(self, name: str) -> str:
        value = self.document.get(name)
        return value if isinstance(value, str) else ""

    def secret(self, name: str) -> str:
        """The secret itself, '' if it is not known here."""
        return self._secrets.get(name) or self.text(name)

    def has_secret(self, name: str) -> bool:
        return bool(self.secret(name) or self.document.get(f"{name}_env") or self.document.get(f"{name}_file"))

    def fault(self, name: str, text: str) -> None:
        self.faults.append((name, text))

    def required(self, name: str, what: str) -> bool:
        if not self.text(name):
            self.fault(name, f"is missing; {what}")
        return bool(self.text(name))


def _s3(given: _Given) -> None:
    if given.required("bucket", "give the name of the bucket"):
        bucket = given.text("bucket")
        if "/" in bucket or ":" in bucket or not _plain(bucket):
            given.fault("bucket", "must be the bare name of a bucket, without s3:// and without slashes (OB-196)")
    directory = given.text("directory")
    if directory and ("://" in directory or directory != directory.strip("/") or not _plain(directory)):
        given.fault("directory", "must be a bare prefix, without s3:// and without a slash at either end (OB-196)")
    endpoint = given.text("endpoint")
    if endpoint:
        _endpoint(given, endpoint)
    keys = bool(given.text("accessKeyId")), given.has_secret("secretAccessKey")
    if keys == (True, False):
        given.fault("secretAccessKey", "is missing; give it with accessKeyId, or neither (OB-197)")
    elif keys == (False, True):
        given.fault("accessKeyId", "is missing; give it with secretAccessKey, or neither (OB-197)")
    elif all(keys) and given.text("roleArn"):
        given.fault("roleArn", "goes without accessKeyId and secretAccessKey: give keys or a role (OB-197)")
    role = given.text("roleArn")
    if role and not re.fullmatch(r"arn:[a-z0-9-]+:iam::\d+:role/[!-~]+", role):
        given.fault("roleArn", "must be the ARN of a role: arn:aws:iam::ACCOUNT:role/NAME")


def _endpoint(given: _Given, endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment or parts.username:
        given.fault("endpoint", "must be the address of a store: https://HOST or https://HOST:PORT")
    elif parts.scheme == "http" and not (loopback(host) or given.document.get("allowInsecure")):
        given.fault("endpoint", "must begin with https:// (OB-198); http:// needs allowInsecure: true")


def _file_server(given: _Given) -> None:
    _host(given)
    given.required("user", "give the name to log in with")
    for name in ("remotePath", "moveToWhenFinished"):
        _remote_folder(given, name)
    suffix = given.text("filenameSuffix")
    if "/" in suffix or not _plain(suffix):
        given.fault("filenameSuffix", "must not hold a slash or a control character")


def _sftp(given: _Given) -> None:
    _file_server(given)
    if not (given.has_secret("password") or given.has_secret("privateKey")):
        given.fault("password", "is missing; give password or privateKey (OB-202)")
    key = given.secret("privateKey")
    if key:
        wrong = key_fault(key)
        if wrong:
            given.fault("privateKey", wrong)
    pin = given.text("hostKey")
    if pin and fingerprint(pin) is None and public_key(pin) is None:
        given.fault(
            "hostKey",
            "must be a public key as ssh-keyscan shows it ('ssh-ed25519 AAAA…') or its fingerprint ('SHA256:…')",
        )


def _ftps(given: _Given) -> None:
    _file_server(given)
    _password_only(given)
    pin = given.text("hostKey")
    if pin and fingerprint(pin) is None:
        given.fault("hostKey", "must be the SHA-256 of the server's certificate: 'SHA256:' and 64 hexadecimal digits")


def _ftp(given: _Given) -> None:
    if not given.document.get("allowInsecure"):
        given.fault("allowInsecure", "plain FTP shows password and files to everybody on the way: say true (OB-199)")
    _file_server(given)
    _password_only(given)
    if given.text("hostKey"):
        given.fault("hostKey", "plain FTP shows nothing that could be compared; use FTPS or SFTP")


def _password_only(given: _Given) -> None:
    if not given.has_secret("password"):
        given.fault("password", "is missing; FTP logs in with user and password (OB-202)")
    if given.has_secret("privateKey"):
        given.fault("privateKey", "is for SFTP; FTP logs in with a password (OB-202)")


def _local(given: _Given) -> None:
    if given.required("directory", "give the folder that files are put into"):
        directory = given.text("directory")
        if not directory.startswith("/") or not _plain(directory):
            given.fault("directory", "must be an absolute path on this machine (OB-205)")


def _http(given: _Given) -> None:
    _host(given)
    scheme = given.text("scheme") or "https"
    if scheme not in ("https", "http"):
        given.fault("scheme", "must be https or http")
    elif scheme == "http" and not loopback(given.text("host")):
        given.fault("scheme", "must be https; http is for this machine only")


_CHECKS: Mapping[str, Callable[[_Given], None]] = {
    "S3": _s3,
    "SFTP": _sftp,
    "FTPS": _ftps,
    "FTP": _ftp,
    "LOCAL": _local,
    "HTTP": _http,
}


def _host(given: _Given) -> None:
    if given.required("host", "give the name or address of the server"):
        host = given.text("host")
        if "://" in host:
            given.fault("host", f"must be a bare name, without {host.partition('://')[0][:10]}:// (OB-200)")
        elif host.count(":") == 1:
            given.fault("host", "must be a bare name; the port has a field of its own")
        elif not re.fullmatch(r"[^\s/@\\?#\[\]]+", host) or not _plain(host) or (":" in host and not _address(host)):
            given.fault("host", "must be the name or address of a server, and nothing else (OB-200)")
    port = given.document.get("port")
    if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65_535):
        given.fault("port", "must be a number from 1 to 65535")


def _remote_folder(given: _Given, name: str) -> None:
    path = given.text(name)
    if not path:
        return
    if path.startswith("/"):
        given.fault(name, "is relative to the folder of the login: no slash at the beginning; empty is that folder")
    elif not {"", ".", ".."}.isdisjoint(path.split("/")) or not _plain(path):
        given.fault(name, "must be names with one / between them, none of them . or .. (OB-201)")


def loopback(host: str) -> bool:
    """Whether a host is this machine by its very name."""
    address = _address(host)
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _plain(text: str) -> bool:
    return all(char.isprintable() for char in text)


# ---- keys ----------------------------------------------------------------------------------------------------


def fingerprint(pin: str) -> bytes | None:
    """The 32 bytes of a SHA-256 fingerprint as OpenSSH (base64) or OpenSSL (hexadecimal) writes it."""
    if not pin.startswith(FINGERPRINT):
        return None
    text = pin.removeprefix(FINGERPRINT).strip()
    digits = text.replace(":", "")
    try:
        if len(digits) == 64:
            return bytes.fromhex(digits)
        found = base64.b64decode(text.rstrip("=") + "=", validate=True)
    except (ValueError, binascii.Error):
        return None
    return found if len(found) == 32 else None


def public_key(pin: str) -> tuple[str, bytes] | None:
    """Algorithm and bytes of a public key in one line; a comment behind it, or a host before it, is ignored."""
    words = pin.split()
    for place, word in enumerate(words[:2]):
        if re.fullmatch(r"(ssh|ecdsa|sk)-[a-z0-9@.-]+", word) and len(words) > place + 1:
            try:
                data = base64.b64decode(words[place + 1], validate=True)
            except (ValueError, binascii.Error):
                return None
            named = int.from_bytes(data[:4], "big")
            return (word, data) if data[4 : 4 + named] == word.encode() else None
    return None


def key_fault(key: str) -> str | None:
    """Why a private key is none that deliveries can log in with; None if it is one (OB-202). Never shows the key."""
    lines = key.strip().splitlines()
    if not lines or lines[0].strip() != OPENSSH:
        return (
            "is no private key in OpenSSH format (it begins with '-----BEGIN OPENSSH PRIVATE KEY-----'); "
            "ssh-keygen -p -f KEYFILE turns a PEM key into one, puttygen KEYFILE -O private-openssh-new a PuTTY key"
        )
    try:
        data = base64.b64decode("".join(line.strip() for line in lines[1:-1]), validate=True)
    except (ValueError, binascii.Error):
        data = b""
    if not data.startswith(_MAGIC) or not lines[-1].startswith("-----END"):
        return "is a damaged private key; export it anew"
    start = len(_MAGIC) + 4
    if data[start : start + 4] != b"none" or data[len(_MAGIC) : start] != b"\0\0\0\4":
        return "has a passphrase, which nobody is there to type; ssh-keygen -p -f KEYFILE takes it off"
    return None
