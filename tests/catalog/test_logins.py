"""Drop-off users: who they are, their passwords and public keys (IN-05, OP-34, OP-66)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Engine, event

from openaudience.catalog import logins, public_keys, workspace
from openaudience.catalog.base import transaction
from openaudience.catalog.logins import Login, login, verify
from openaudience.catalog.migrate import ENVIRONMENTS
from openaudience.catalog.secrets import Vault, hasher, matches
from openaudience.clock import system_clock
from openaudience.config import LimitsSection
from openaudience.errors import WorkspaceError

ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHt/LxtYLMzE5rmYPmSaVqjjm2J2cc9f4x8jZ2XgqHsa feed@example"
PASSWORD = "pässword of feed"
TEXT = f"""
partners:
  - pid: 1
    name: acme
    dropoff:
      users:
        - {{name: feed, password_env: FEED, publicKeys: ["{ED25519}"]}}
        - {{name: keys-only, publicKeys: ["{ED25519}"]}}
  - pid: 2
    name: other
    dropoff: {{users: [{{name: o'ther "feed", password_env: OTHER}}]}}
"""


def apply(engine: Engine, folder: Path, content: str, environments: tuple[str, ...] = ENVIRONMENTS) -> None:
    file = folder / "w.yaml"
    file.write_text(content, encoding="utf-8")
    environ = {"FEED": PASSWORD, "OTHER": "password of other"}
    sources = workspace.load([file])
    workspace.apply(
        engine, sources, system_clock(), LimitsSection(), Vault(bytes(32)), environ=environ, environments=environments
    )


def found(engine: Engine, name: str, environment: str = "production") -> Login | None:
    with transaction(engine, write=False) as session:
        return login(session, environment, name)


@pytest.mark.rule("IN-01", "IN-05", "OP-34")
def test_a_login_names_its_partner_in_both_environments(engine: Engine, tmp_path: Path) -> None:
    apply(engine, tmp_path, TEXT)
    for environment in ENVIRONMENTS:
        feed = found(engine, "feed", environment)
        assert feed is not None
        assert (feed.name, feed.pid, feed.partner, feed.public_keys) == ("feed", 1, "acme", (ED25519,))
        assert verify(feed, PASSWORD)
        other = found(engine, 'o\'ther "feed"', environment)
        assert other is not None
        assert (other.pid, other.partner, other.public_keys) == (2, "other", ())
        assert not verify(other, PASSWORD)
        assert verify(other, "password of other")


@pytest.mark.rule("OP-66")
def test_who_is_refused(engine: Engine, tmp_path: Path) -> None:
    apply(engine, tmp_path, TEXT, ("production",))
    for name in ("Feed", "feed ", "acme", "", "%", "fee_", "feed\x00", "feed\n", "x" * 100_000):
        assert found(engine, name) is None
    assert found(engine, "feed", "beta") is None
    feed, keys_only = found(engine, "feed"), found(engine, "keys-only")
    assert keys_only is not None
    assert keys_only.password_hash is None
    for password in ("", " ", PASSWORD.upper(), PASSWORD + "\0", "passw\u0061\u0308rt", "\udcff", "argon2id"):
        assert not verify(feed, password)
        assert not verify(keys_only, password)
        assert not verify(None, password)
    damaged = Login("feed", 1, "acme", "$argon2id$damaged", ())
    assert not verify(damaged, PASSWORD)


@pytest.mark.rule("OP-66")
def test_the_same_work_is_done_for_names_that_do_not_exist(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    logins._dummy.cache_clear()
    checked: list[str] = []

    def noted(hashed: str, secret: str) -> bool:
        checked.append(hashed)
        return matches(hashed, secret)

    monkeypatch.setattr(logins, "matches", noted)
    real = hasher().hash(PASSWORD)
    for known in (Login("feed", 1, "acme", real, ()), Login("keys", 1, "acme", None, ()), None):
        assert not verify(known, "wrong")
    assert len(checked) == 3
    # algorithm, version and cost of all three are the same, so the time is
    assert len({hashed.rsplit("$", 2)[0] for hashed in checked}) == 1
    assert checked[0] == real
    assert checked[1] == checked[2]


def test_the_dummy_opens_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "matches", lambda hashed, secret: True)
    assert not verify(None, "whatever the dummy is")
    assert not verify(Login("keys", 1, "acme", None, ()), "whatever the dummy is")


@pytest.mark.rule("OP-66")
def test_passwords_that_are_too_long_are_refused_without_work(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Login("feed", 1, "acme", hasher().hash("é" * 512), ())
    assert verify(limit, "é" * 512)

    def never(hashed: str, secret: str) -> bool:
        raise AssertionError

    monkeypatch.setattr(logins, "matches", never)
    for password in ("x" * 1025, "é" * 513, "x" * 10_000_000):
        assert not verify(limit, password)
        assert not verify(None, password)


def test_a_login_does_not_show_its_hash() -> None:
    shown = repr(Login("feed", 1, "acme", "$argon2id$v=19$hash", (ED25519,)))
    assert "feed" in shown
    assert "argon2id" not in shown


def test_one_query_that_does_not_read_all_documents(engine: Engine, tmp_path: Path) -> None:
    apply(engine, tmp_path, TEXT)
    asked: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    found(engine, "feed")
    event.remove(engine, "before_cursor_execute", note)
    queries = [(statement, parameters) for statement, parameters in asked if statement.startswith("SELECT")]
    assert len(queries) == 1
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {queries[0][0]}", queries[0][1]).all()
        assert not [row for row in rows if "SCAN" in str(row)]
        assert [row for row in rows if "ix_documents_name" in str(row)]


@pytest.mark.rule("IN-05")
def test_a_stored_login_of_another_partner_is_a_double_too(engine: Engine, tmp_path: Path) -> None:
    apply(engine, tmp_path, TEXT)
    with pytest.raises(WorkspaceError, match="of the partners 'acme' and 'third'") as caught:
        apply(engine, tmp_path, "partners: [{name: third, dropoff: {users: [{name: feed}]}}]")
    (mistake,) = caught.value.mistakes
    assert (Path(mistake.file).name, mistake.line, mistake.column) == ("w.yaml", 1, 51)
    feed = found(engine, "feed")
    assert feed is not None
    assert feed.partner == "acme"


def line(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode())


def rsa_line(bits: int) -> str:
    return line(rsa.generate_private_key(65537, bits))


@pytest.mark.rule("OP-34")
def test_public_keys_that_are_taken() -> None:
    keys = [line(ed25519.Ed25519PrivateKey.generate()), ED25519, rsa_line(2048)]
    keys += [line(ec.generate_private_key(curve)) for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())]
    for key in keys:
        assert public_keys.fault(key) == ""
        assert public_keys.fault(f"{key} some comment, döner") == ""


@pytest.mark.rule("OP-34")
def test_public_keys_that_are_refused() -> None:
    key = line(ed25519.Ed25519PrivateKey.generate())
    short = rsa_line(1024)
    assert "RSA key of 1024 bits is too short" in public_keys.fault(short)
    assert "damaged" in public_keys.fault(key[:-8])
    assert "damaged" in public_keys.fault(key.replace("ssh-ed25519", "ssh-rsa"))
    assert "damaged" in public_keys.fault("ssh-ed25519 " + short.split()[1])
    assert "no public key" in public_keys.fault(f'command="sh" {key}')
    assert "one line" in public_keys.fault(f"{key}\n{key}")
    assert "ssh-dss are not taken" in public_keys.fault("ssh-dss AAAA")
    for text in ("", "no key", "ssh-ed25519", "ssh-ed25519 ", "ssh-ed25519  é", "AAAAC3NzaC1lZDI1NTE5"):
        assert public_keys.fault(text)
        assert not text or text not in public_keys.fault(text).partition("such as")[0]


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_keys_as_openssh_makes_them(tmp_path: Path, kind: str) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "feed at home", "-f", str(tmp_path / "id")], check=True
    )
    assert public_keys.fault((tmp_path / "id.pub").read_text().strip()) == ""
    assert "private key" in public_keys.fault((tmp_path / "id").read_text())
