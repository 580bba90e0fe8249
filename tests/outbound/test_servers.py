"""What may be saved as a delivery server, and what a delivery is told of it."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import asyncssh
import pytest

from openaudience.outbound.servers import Server, check_server, fingerprint, public_key, sync_type

LINE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJRqbDKgEQUz7jSFzTXJAS3sUZCdsQTwUeVJUyXKLGCk"
PRINT = "SHA256:" + "ab" * 32
GOOD: dict[str, dict[str, Any]] = {
    "S3": {"bucket": "acme-out", "accessKeyId": "AK", "secretAccessKey_env": "SECRET"},
    "SFTP": {"host": "sftp.example.com", "user": "acme", "password_env": "SECRET"},
    "FTPS": {"host": "ftp.example.com", "user": "acme", "password_file": "secret"},
    "FTP": {"host": "ftp.example.com", "user": "acme", "password": "x", "allowInsecure": True},
    "LOCAL": {"directory": "/srv/out"},
    "HTTP": {"host": "hook.example.com"},
}


def faults(kind: str, **changed: Any) -> list[str]:
    """The fields that are wrong with a good document after these changes."""
    return [field for field, _ in check_server({"type": kind, "name": "X"} | GOOD[kind] | changed)]


@pytest.mark.parametrize("kind", GOOD)
def test_a_plain_server_of_each_type_is_accepted(kind: str) -> None:
    assert faults(kind) == []


def test_an_unknown_type_is_refused() -> None:
    assert [field for field, _ in check_server({"type": "SMB"})] == ["type"]
    assert [field for field, _ in check_server({})] == ["type"]


@pytest.mark.rule("OB-196")
@pytest.mark.parametrize("bucket", ["s3://acme-out", "/acme-out", "acme-out/", "acme/out", "", None])
def test_a_bucket_is_a_bare_name(bucket: str | None) -> None:
    assert faults("S3", bucket=bucket) == ["bucket"]


@pytest.mark.rule("OB-196")
def test_a_directory_of_a_bucket_is_a_bare_prefix() -> None:
    for directory in ("s3://acme-out/in", "/in", "in/", "in/out/", "/", "a\nb"):
        assert faults("S3", directory=directory) == ["directory"]
    for good in ("in", "in/daily", "", None):
        assert faults("S3", directory=good) == []


@pytest.mark.rule("OB-197")
def test_a_bucket_takes_keys_or_a_role_or_the_machine_s_own_account() -> None:
    role = "arn:aws:iam::123456789012:role/delivery"
    none: dict[str, Any] = {"accessKeyId": None, "secretAccessKey_env": None}
    assert faults("S3", **none) == []
    assert faults("S3", roleArn=role, **none) == []
    assert faults("S3", roleArn="delivery", **none) == ["roleArn"]
    assert faults("S3", roleArn=role) == ["roleArn"]
    assert faults("S3", secretAccessKey_env=None) == ["secretAccessKey"]
    assert faults("S3", accessKeyId=None) == ["accessKeyId"]


@pytest.mark.rule("OB-197", "OB-198")
def test_a_store_is_reached_over_https_unless_it_is_this_machine_or_somebody_says_so() -> None:
    for good in ("https://s3.example.com", "https://s3.example.com:9000", "http://127.0.0.1:8333", "http://[::1]:1"):
        assert faults("S3", endpoint=good) == []
    for bad in ("s3.example.com", "http://s3.example.com", "ftp://s3.example.com", "https://", "https://h:port"):
        assert faults("S3", endpoint=bad) == ["endpoint"]
    assert faults("S3", endpoint="http://s3.example.com", allowInsecure=True) == []


@pytest.mark.rule("OB-199", "OB-343")
def test_plain_ftp_must_be_wanted() -> None:
    assert faults("FTP", allowInsecure=False) == ["allowInsecure"]
    assert faults("FTP", allowInsecure=None) == ["allowInsecure"]
    assert faults("FTPS", allowInsecure=False) == []


@pytest.mark.rule("OB-199")
def test_ports_by_type() -> None:
    for kind, port in (("SFTP", 22), ("FTPS", 21), ("FTP", 21)):
        assert Server.of(1, {"type": kind, "name": "X"} | GOOD[kind]).port == port
        assert Server.of(1, {"type": kind, "name": "X"} | GOOD[kind] | {"port": 2222}).port == 2222


@pytest.mark.rule("OB-200")
@pytest.mark.parametrize("kind", ["SFTP", "FTPS", "FTP", "HTTP"])
def test_a_host_is_a_bare_name(kind: str) -> None:
    for bad in (
        "sftp://h.example.com",
        "ftp://h.example.com",
        "h.example.com:22",
        "h/in",
        "u@h",
        "h h",
        "",
        None,
        "a:b:z",
    ):
        assert faults(kind, host=bad) == ["host"], bad
    for good in ("h.example.com", "10.0.0.7", "::1", "h"):
        assert faults(kind, host=good) == [], good


@pytest.mark.parametrize("port", [0, 65536, "22", True])
def test_a_port_is_a_number_of_a_port(port: Any) -> None:
    assert faults("SFTP", port=port) == ["port"]


@pytest.mark.rule("OB-201")
@pytest.mark.parametrize("kind", ["SFTP", "FTPS", "FTP"])
def test_a_remote_folder_is_relative_to_the_login(kind: str) -> None:
    for name in ("remotePath", "moveToWhenFinished"):
        for bad in ("/in", "/", ".", "..", "in/../out", "in/", "in//out", "./in", "in\r\nDELE x"):
            assert faults(kind, **{name: bad}) == [name], bad
        for good in ("", None, "in", "in/daily", "in.d/ä"):
            assert faults(kind, **{name: good}) == [], good


@pytest.mark.rule("OB-204")
def test_a_suffix_stays_in_the_folder() -> None:
    assert faults("SFTP", filenameSuffix="/../x") == ["filenameSuffix"]
    assert faults("SFTP", filenameSuffix=".done") == []


@pytest.mark.rule("OB-202")
def test_a_login_needs_a_name_and_a_secret() -> None:
    assert faults("SFTP", user="") == ["user"]
    assert faults("SFTP", password_env="") == ["password"]
    assert faults("SFTP", password_env=None, privateKey_file="keys/x") == []
    assert faults("FTPS", password_file=None) == ["password"]
    assert faults("FTPS", privateKey_file="keys/x") == ["privateKey"]
    document = {"type": "SFTP"} | GOOD["SFTP"] | {"password_env": None}
    assert check_server(document, {"password": "kept from before"}) == []


@pytest.mark.rule("OB-202", "OB-212")
def test_only_openssh_keys_without_a_passphrase_are_accepted() -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    good = key.export_private_key("openssh").decode()
    body = good.splitlines()
    locked = b64encode(b"openssh-key-v1\0\0\0\0\x0aaes256-ctr\0\0\0\x06bcrypt" + b"\0" * 200).decode()
    bad = {
        key.export_private_key("pkcs8-pem").decode(): "OpenSSH format",
        asyncssh.generate_private_key("ssh-rsa", key_size=2048).export_private_key("pkcs1-pem").decode(): "OpenSSH",
        "PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\n": "puttygen",
        key.export_public_key("openssh").decode(): "OpenSSH format",
        "\n".join([body[0], locked, body[-1]]): "passphrase",
        "\n".join([body[0], body[1][:9], *body[2:]]): "damaged",
        "\n".join(body[:-1]): "damaged",
        body[0]: "damaged",
    }
    document = {"type": "SFTP"} | GOOD["SFTP"]
    assert check_server(document | {"privateKey": good}) == []
    assert check_server(document, {"privateKey": good + "\n"}) == []
    for text, words in bad.items():
        for found in (check_server(document | {"privateKey": text}), check_server(document, {"privateKey": text})):
            assert [field for field, _ in found] == ["privateKey"]
            assert words in found[0][1]
            # the longest word of what was given is the secret itself
            assert max(text.split(), key=len) not in found[0][1]


@pytest.mark.rule("OB-202")
def test_what_a_server_must_show_can_be_pinned() -> None:
    for good in (LINE, LINE + " root@host", "sftp.example.com " + LINE, "SHA256:" + "A" * 43, PRINT):
        assert faults("SFTP", hostKey=good) == [], good
    for bad in ("x", "ssh-ed25519 !!!", "ssh-rsa " + LINE.split()[1], "MD5:aa", "SHA256:abc"):
        assert faults("SFTP", hostKey=bad) == ["hostKey"], bad
    assert faults("FTPS", hostKey=PRINT) == []
    assert faults("FTPS", hostKey=LINE) == ["hostKey"]
    assert faults("FTP", hostKey=PRINT) == ["hostKey"]


def test_the_ways_to_write_a_fingerprint_are_one() -> None:
    colons = "SHA256:" + ":".join(["AB"] * 32)
    assert fingerprint(PRINT) == fingerprint(colons) == b"\xab" * 32
    key = asyncssh.import_public_key(LINE)
    parsed = public_key(LINE)
    assert parsed == ("ssh-ed25519", key.public_data)
    assert fingerprint(key.get_fingerprint()) is not None


@pytest.mark.rule("OB-205")
def test_a_local_folder_is_named_in_full() -> None:
    for bad in ("out", "./out", "", None):
        assert faults("LOCAL", directory=bad) == ["directory"]
    # written and renamed, whatever else its document says
    assert Server.of(1, {"type": "LOCAL", "name": "X", "directory": "/out", "tmpRename": False}).tmp_rename


@pytest.mark.rule("OB-206")
def test_http_is_for_this_machine_only_without_tls() -> None:
    assert faults("HTTP", scheme="http") == ["scheme"]
    assert faults("HTTP", scheme="http", host="127.0.0.1") == []
    assert faults("HTTP", scheme="gopher") == ["scheme"]


@pytest.mark.rule("OB-90", "OB-205")
def test_the_sync_type_of_files_follows_the_server() -> None:
    found = {kind: sync_type({"type": kind}) for kind in GOOD}
    assert found == {"S3": "s3", "SFTP": "ftp", "FTPS": "ftp", "FTP": "ftp", "LOCAL": "ftp", "HTTP": "http"}
    assert sync_type({"type": "S3", "syncTypeText": "S3"}) == "S3"
    assert sync_type({"type": "S3", "syncTypeText": ""}) == "s3"


def test_everything_wrong_is_told_at_once() -> None:
    assert faults("SFTP", host="", user="", port=0, remotePath="/", password_env=None) == [
        "host",
        "port",
        "user",
        "remotePath",
        "password",
    ]
