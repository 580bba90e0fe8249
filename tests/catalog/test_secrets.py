"""Secrets of a workspace: read by apply, kept hashed or sealed, gone with their reference, never shown (OP-36)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from openaudience.catalog import secrets, workspace
from openaudience.catalog.base import transaction
from openaudience.catalog.migrate import ENVIRONMENTS
from openaudience.catalog.secrets import HASHED, SEALED, Kept, Place, Reader, Vault, matches
from openaudience.cli import home as home_commands
from openaudience.cli import main
from openaudience.config import LimitsSection
from openaudience.errors import InputError, SystemFailure, WorkspaceError
from openaudience.home import Home

NOW = datetime(2026, 3, 2, 11, 4, 9, tzinfo=UTC)
FEED = Place("dropoff.users", 1, "password")
CLIENT = Place("apiClients", 1, "clientSecret")
USER = Place("users", 1, "password")
SERVER = Place("destinationServers", 1, "password")
SIGNATURE = Place("destinationServers", 2, "signatures.1.key")
FULL = """
partners:
  - pid: 1
    name: acme
    users: [{userId: 1, username: ana, firstName: A, lastName: B, email: a@example.com, password_env: ANA}]
    apiClients: [{clientId: etl, clientSecret_env: ETL}]
    dropoff: {users: [{name: feed, password_env: FEED}]}
    destinationServers:
      - {serverId: 1, name: Theirs, type: SFTP, host: sftp.example.com, user: u, password_env: SFTP}
      - serverId: 2
        name: Hook
        type: HTTP
        host: hook.example.com
        signatures: [{header: X-A, algorithm: sha256}, {header: X-B, algorithm: sha256, key_env: HOOK}]
"""
VALUES = {
    "ANA": "ana's s3cret",
    "ETL": "etl-s3cret",
    "FEED": "feed-s3crét",
    "SFTP": "sftp-s3cret",
    "HOOK": "hook-s3cret",
}


class Desk:
    """Applies texts to a database with one home's vault."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.vault = Vault(b"k" * 32)
        self.environ = dict(VALUES)
        self.file = folder / "w.yaml"

    def apply(
        self,
        content: str,
        *,
        diff: bool = False,
        prune: bool = False,
        environments: tuple[str, ...] = ENVIRONMENTS,
    ) -> list[tuple[str, int | str]]:
        self.file.write_text(content, encoding="utf-8")
        act = workspace.diff if diff else workspace.apply
        outcome = act(
            self.engine,
            workspace.load([self.file]),
            NOW,
            LimitsSection(),
            self.vault,
            environ=self.environ,
            prune=prune,
            environments=environments,
        )
        return [(change.action, change.id) for change in outcome.changes]

    def mistakes(self, content: str) -> list[str]:
        with pytest.raises(WorkspaceError) as caught:
            self.apply(content)
        return [mistake.text for mistake in caught.value.mistakes]

    def kept(self, environment: str = "production") -> dict[Place, Kept]:
        with transaction(self.engine, write=False) as session:
            return secrets.stored(session, environment)

    def opened(self, place: Place, environment: str = "production") -> str:
        return self.vault.unseal(environment, place, self.kept(environment)[place].value)


@pytest.fixture
def desk(engine: Engine, tmp_path: Path) -> Desk:
    return Desk(engine, tmp_path)


def feed(fields: str) -> str:
    return f"partners: [{{pid: 1, name: acme, dropoff: {{users: [{{name: feed, {fields}}}]}}}}]"


@pytest.mark.rule("OP-36", "OP-66", "IN-01")
def test_logins_are_hashed_and_delivery_is_sealed_in_both_environments(desk: Desk) -> None:
    desk.apply(FULL)
    for environment in ENVIRONMENTS:
        kept = desk.kept(environment)
        assert {place: found.form for place, found in kept.items()} == {
            FEED: HASHED,
            CLIENT: HASHED,
            USER: HASHED,
            SERVER: SEALED,
            SIGNATURE: SEALED,
        }
        for place, secret in ((FEED, VALUES["FEED"]), (CLIENT, VALUES["ETL"]), (USER, VALUES["ANA"])):
            assert kept[place].value.startswith("$argon2id$")
            assert matches(kept[place].value, secret)
            assert not matches(kept[place].value, secret + " ")
        assert desk.opened(SERVER, environment) == VALUES["SFTP"]
        assert desk.opened(SIGNATURE, environment) == VALUES["HOOK"]


@pytest.mark.rule("OP-66")
def test_the_real_hashes_are_as_strong_as_the_library_advises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert secrets.hasher().hash("x").startswith("$argon2id$v=19$m=65536,t=3,p=4$")


@pytest.mark.rule("OP-11", "OP-35")
def test_the_same_secrets_change_nothing(desk: Desk) -> None:
    desk.apply(FULL)
    before = {environment: desk.kept(environment) for environment in ENVIRONMENTS}
    assert desk.apply(FULL, diff=True) == []
    assert desk.apply(FULL) == []
    assert desk.apply(FULL, prune=True) == []
    assert {environment: desk.kept(environment) for environment in ENVIRONMENTS} == before


@pytest.mark.rule("OP-36", "OP-11")
def test_another_secret_behind_the_same_reference_is_an_update(desk: Desk) -> None:
    desk.apply(FULL)
    before = desk.kept()
    desk.environ |= {"FEED": "another", "HOOK": "another hook"}
    expected = [("update", 2), ("update", "feed")]
    assert desk.apply(FULL, diff=True) == expected
    assert desk.kept() == before
    assert desk.apply(FULL) == expected
    assert desk.apply(FULL) == []
    for environment in ENVIRONMENTS:
        assert matches(desk.kept(environment)[FEED].value, "another")
        assert not matches(desk.kept(environment)[FEED].value, VALUES["FEED"])
        assert desk.opened(SIGNATURE, environment) == "another hook"
    assert {place for place, found in desk.kept().items() if before[place] != found} == {FEED, SIGNATURE}


def test_a_hash_is_worked_out_once_for_both_environments(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []

    def noted(hashed: str, secret: str) -> bool:
        checked.append(secret)
        return matches(hashed, secret)

    monkeypatch.setattr(secrets, "matches", noted)
    desk.apply(FULL)
    assert desk.kept()[FEED] == desk.kept("beta")[FEED]
    assert checked == []
    desk.apply(FULL)
    assert sorted(checked) == sorted([VALUES["ANA"], VALUES["ETL"], VALUES["FEED"]])
    with transaction(desk.engine, write=True) as session:
        session.execute(text("DELETE FROM secrets WHERE environment = 'beta'"))
    desk.apply(FULL)
    assert desk.kept()[FEED] == desk.kept("beta")[FEED]


def test_hashing_is_done_before_other_writers_have_to_wait(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """While passwords are hashed the catalog can be written."""
    real = secrets.hasher()

    class Hasher:
        def hash(self, secret: str) -> str:
            with transaction(desk.engine, write=True) as session:
                session.execute(text("DELETE FROM refolds"))
            return real.hash(secret)

    monkeypatch.setattr(secrets, "hasher", Hasher)
    assert ("create", "feed") in desk.apply(feed("password_env: FEED"))
    monkeypatch.undo()
    assert matches(desk.kept()[FEED].value, VALUES["FEED"])


@pytest.mark.rule("OP-35", "OP-36")
def test_a_reference_left_out_keeps_the_secret_and_an_empty_one_removes_it(desk: Desk) -> None:
    desk.apply(FULL)
    before = desk.kept()
    assert desk.apply(feed("publicKeys: []")) == []
    assert desk.apply(feed("password_env: null")) == []
    assert desk.kept() == before
    assert desk.apply(feed("password_env: ''")) == [("update", "feed")]
    assert desk.kept().keys() == before.keys() - {FEED}
    users = workspace.exported(desk.engine, "production", NOW)["partners"][0]["dropoff"]["users"]
    assert users == [{"name": "feed", "publicKeys": []}]
    assert desk.apply(feed("password_env: FEED")) == [("update", "feed")]
    assert matches(desk.kept()[FEED].value, VALUES["FEED"])


def test_a_list_given_anew_keeps_only_the_secrets_it_refers_to(desk: Desk) -> None:
    desk.apply(FULL)
    one = FULL.replace("{header: X-A, algorithm: sha256}, ", "")
    assert desk.apply(one) == [("update", 2)]
    assert SIGNATURE not in desk.kept()
    assert desk.opened(Place("destinationServers", 2, "signatures.0.key")) == VALUES["HOOK"]


@pytest.mark.rule("OP-36", "OP-31")
def test_a_deleted_object_loses_its_secrets(desk: Desk) -> None:
    desk.apply(FULL)
    assert desk.apply("partners: [{pid: 1, name: acme}]") == []
    assert len(desk.kept()) == 5
    desk.apply("partners: [{pid: 1, name: acme}]", prune=True, environments=("beta",))
    assert desk.kept("beta") == {}
    assert len(desk.kept()) == 5
    desk.apply(FULL)
    assert desk.kept("beta").keys() != desk.kept().keys()  # numbers are never given twice
    assert {found.form for found in desk.kept("beta").values()} == {HASHED, SEALED}


def test_another_reference_to_the_same_secret(desk: Desk) -> None:
    desk.apply(feed("password_env: FEED"))
    before = desk.kept()
    (desk.folder / "pw").write_text(VALUES["FEED"] + "\n", encoding="utf-8")
    assert desk.apply(feed("password_file: pw")) == [("update", "feed")]
    assert desk.kept() == before
    exported = workspace.exported(desk.engine, "production", NOW)["partners"][0]["dropoff"]["users"][0]
    assert exported == {"name": "feed", "publicKeys": [], "password_file": str(desk.folder / "pw")}


def test_a_catalog_of_references_only_gets_its_secrets(desk: Desk) -> None:
    """So it was before version 0004 of the tables."""
    desk.apply(FULL)
    with transaction(desk.engine, write=True) as session:
        session.execute(text("DELETE FROM secrets"))
    assert ("update", "feed") in desk.apply(FULL, diff=True)
    assert len(desk.apply(FULL)) == 5
    assert len(desk.kept()) == 5
    assert desk.apply(FULL) == []


def test_secrets_sealed_by_another_home_are_sealed_anew(desk: Desk) -> None:
    desk.apply(FULL)
    desk.vault = Vault(b"x" * 32)
    with pytest.raises(SystemFailure, match=r"restore keys/secret\.json"):
        desk.opened(SERVER)
    assert desk.apply(FULL) == [("update", 1), ("update", 2)]
    assert desk.opened(SERVER) == VALUES["SFTP"]


@pytest.mark.rule("OP-31", "OP-36")
def test_a_mistake_elsewhere_keeps_every_secret_as_it_was(desk: Desk) -> None:
    desk.apply(FULL)
    before = desk.kept()
    desk.environ["FEED"] = "another"
    assert len(desk.mistakes(FULL.replace("type: HTTP", "type: WHAT"))) == 1
    assert desk.kept() == before


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"plain", "plain"),
        (b"plain\n", "plain"),
        (b"plain\r\n", "plain"),
        (b" plain ", " plain "),
        ("\ufeffplain\n".encode(), "plain"),
        (b"-----BEGIN\nkey\n-----END\n", "-----BEGIN\nkey\n-----END\n"),
    ],
)
def test_files_of_secrets(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "s").write_bytes(content)
    assert Reader({}).file(tmp_path / "s", "s") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" \n", "pw is empty"),
        (b"caf\xe9-s3cret", "pw is not UTF-8"),
        (b"s3cret\nand more", "pw holds a line break"),
        (b"s3cret\x00", "pw holds a line break or another control character"),
        (b"s3cret" * 200, "pw holds more than 1024 bytes"),
        (b"s3cret" * 20000, "pw holds more than 65536 bytes"),
    ],
    ids=["empty", "latin", "lines", "nul", "long", "huge"],
)
def test_passwords_nobody_could_type(desk: Desk, content: bytes, message: str) -> None:
    (desk.folder / "pw").write_bytes(content)
    (mistake,) = desk.mistakes(feed("password_file: pw"))
    assert mistake.startswith(f"password_file: {message}")
    assert "s3cret" not in mistake
    assert desk.kept() == {}


def test_a_variable_that_is_no_text(desk: Desk) -> None:
    desk.environ["FEED"] = b"s3cret\xff".decode(errors="surrogateescape")
    assert desk.mistakes(feed("password_env: FEED")) == [
        "password_env: the environment variable FEED is not UTF-8 text; save it as UTF-8"
    ]


def test_a_file_is_read_once_so_both_environments_get_the_same(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("first")
    reader = Reader({})
    assert reader.file(path, "s") == "first"
    path.write_text("second")
    assert reader.file(path, "s", login=True) == "first"
    with pytest.raises(InputError, match="cannot be read"):
        reader.file(tmp_path, "folder")


def test_a_sealed_value_opens_only_in_its_place() -> None:
    vault = Vault(b"k" * 32)
    sealed = vault.seal("production", SERVER, "s3cret")
    assert "s3cret" not in sealed
    assert sealed != vault.seal("production", SERVER, "s3cret")
    assert vault.unseal("production", SERVER, sealed) == "s3cret"
    for environment, place, value in (
        ("beta", SERVER, sealed),
        ("production", SIGNATURE, sealed),
        ("production", SERVER, sealed[:-8]),
        ("production", SERVER, "no base64 é"),
    ):
        with pytest.raises(SystemFailure, match="does not open") as caught:
            vault.unseal(environment, place, value)
        assert "s3cret" not in str(caught.value)


@pytest.mark.rule("OP-36")
def test_no_secret_hash_or_key_is_ever_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Greps whatever the commands print, and the documents in the catalog, for secrets and what is kept of them."""
    monkeypatch.setattr(home_commands, "GpgHome", _no_gpg)
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)
    path, file = tmp_path / "home", tmp_path / "w.yaml"
    file.write_text(FULL)
    broken = tmp_path / "broken.yaml"
    broken.write_text(FULL.replace("password_env: FEED", "password: feed-s3crét"))

    def run(*arguments: str, status: int = 0) -> None:
        assert main([*arguments, "--home", str(path)]) == status

    run("init")
    for _ in range(2):
        run("workspace", "diff", str(file))
        run("workspace", "apply", str(file))
        monkeypatch.setenv("FEED", "another-s3cret")
    run("workspace", "apply", str(broken), status=1)
    run("workspace", "diff", str(file), "--json")
    run("workspace", "export")
    run("workspace", "export", "--json", "--environment", "beta")
    run("config", "show")
    shown = "".join(capsys.readouterr())
    assert "password_env: FEED" in shown
    with Home.open(path, environ={}) as home:
        forbidden = [*VALUES.values(), "s3cr", "argon2id", home.secret.secret.hex(), repr(home.secret.secret)]
        with transaction(home.engine, write=False) as session:
            for environment in ENVIRONMENTS:
                forbidden += [kept.value for kept in secrets.stored(session, environment).values()]
            documents = [str(row) for row in session.execute(text("SELECT document FROM documents"))]
        private = home.host_key.read_text().splitlines()[1]
    assert len(documents) == 10
    for word in [*forbidden, private]:
        assert word not in shown
        assert not any(word in document for document in documents)


def _no_gpg(path: Path) -> None:
    raise SystemFailure("The program gpg is missing.")
