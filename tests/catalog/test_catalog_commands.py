"""The commands init, config show and workspace: what they print and how they end (70 §2)."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from openaudience.cli import home as home_commands
from openaudience.cli import main
from openaudience.cli import workspace as workspace_commands
from openaudience.errors import InputError, SystemFailure, UsageError
from openaudience.home import Home
from openaudience.inbound.pgp import GpgHome

TEXT = "partners: [{pid: 1, name: acme, dataSources: [{dataSourceId: 10, name: CRM}]}]"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A home without a PGP key: making one takes a second, and only one test needs it."""
    monkeypatch.setattr(home_commands, "GpgHome", _no_gpg)
    path = tmp_path / "home"
    assert home_commands.init(path) == 0
    capsys.readouterr()
    return path


def _no_gpg(path: Path) -> None:
    raise SystemFailure("The program gpg is missing.")


@pytest.mark.rule("OP-10")
def test_init_prints_where_senders_find_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "home"
    assert home_commands.init(path, as_json=True) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["home"] == str(path)
    if document["pgp_public_key"] is None:
        pytest.skip(f"gpg does not work here: {captured.err}")
    assert Path(document["pgp_public_key"]).read_text().startswith("-----BEGIN PGP PUBLIC KEY BLOCK-----")
    with pytest.raises(InputError, match="already"):
        home_commands.init(path)


def test_init_without_gpg_makes_a_home_and_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(home_commands, "GpgHome", _no_gpg)
    assert home_commands.init(tmp_path / "home") == 0
    captured = capsys.readouterr()
    assert "warning: no PGP key was made" in captured.err
    assert "openaudience keys create" in captured.err
    assert "workspace apply" in captured.out


def test_init_prints_the_fingerprint_of_the_sftp_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(home_commands, "GpgHome", _no_gpg)
    assert home_commands.init(tmp_path / "a") == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("SFTP key")]
    with Home.open(tmp_path / "a") as home:
        assert shown == [f"SFTP key  {home.host_key_fingerprint()}"]
    assert home_commands.init(tmp_path / "b", as_json=True) == 0
    with Home.open(tmp_path / "b") as home:
        assert json.loads(capsys.readouterr().out)["sftp_fingerprint"] == home.host_key_fingerprint()


@pytest.mark.rule("IN-15")
def test_keys_create_and_export(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A home made where gpg was missing gets its key later; export gives what gpg itself has."""
    _needs_gpg()
    run = ["--home", str(home), "keys"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(home_commands, "GpgHome", GpgHome)
        assert main([*run, "export"]) == 1
        captured = capsys.readouterr()
        assert (captured.out, "openaudience keys create" in captured.err) == ("", True)
        assert main([*run, "create", "--json"]) == 0
        created = json.loads(capsys.readouterr().out)
        assert created["created"] is True
        assert main([*run, "create", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == created | {"created": False}
        assert main([*run, "create"]) == 0
        assert capsys.readouterr().out == f"PGP key   {created['fingerprint']}, as before\n"
        assert main([*run, "export"]) == 0
        armored = capsys.readouterr().out
        assert main([*run, "export", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"fingerprint": created["fingerprint"], "armored": armored}
        file = tmp_path / "key.asc"
        assert main([*run, "export", str(file)]) == 0
        assert capsys.readouterr().out == f"{file}: public key {created['fingerprint']}\n"
        assert main([*run, "export", str(tmp_path / "no" / "such" / "folder")]) == 3
        assert "could not be written" in capsys.readouterr().err
    assert file.read_text() == armored == (home / "keys" / "inbound-public-key.asc").read_text()
    assert armored.startswith("-----BEGIN PGP PUBLIC KEY BLOCK-----")
    assert "PRIVATE" not in armored
    with closing(GpgHome(tmp_path / "sender")) as sender:
        sender._run("--import", str(file))
        listing = sender._run("--with-colons", "--list-keys")
    assert created["fingerprint"] in listing


def test_keys_without_gpg(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("create", "export"):
        assert main(["--home", str(home), "keys", command]) == 3
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err == "error: The program gpg is missing.\n"


def _needs_gpg() -> None:
    if shutil.which("gpg") is None:
        pytest.skip("gpg is not installed")


@pytest.mark.rule("OP-40")
def test_config_show(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAUDIENCE_LIMITS_COOKIES", "77")
    assert home_commands.config_show(home) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("limits.cookies") and "77  (OPENAUDIENCE_LIMITS_COOKIES)" in line for line in lines)
    assert home_commands.config_show(home, as_json=True) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"section": "limits", "key": "cookies", "value": 77, "origin": "OPENAUDIENCE_LIMITS_COOKIES"} in rows


@pytest.mark.rule("OP-11")
def test_apply_diff_export(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(TEXT)
    expected = [
        {"action": "create", "kind": "partner", "id": 1, "name": "acme"},
        {"action": "create", "kind": "dataSource", "id": 10, "name": "CRM"},
    ]
    assert workspace_commands.diff(home, [file], as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert workspace_commands.apply(home, [file], as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert workspace_commands.apply(home, [file]) == 0
    assert capsys.readouterr().out == "nothing to change\n"
    assert workspace_commands.export(home) == 0
    exported = tmp_path / "exported.yaml"
    exported.write_text(capsys.readouterr().out)
    assert workspace_commands.diff(home, [exported]) == 0
    assert capsys.readouterr().out == "no differences\n"
    assert workspace_commands.export(home, "beta", as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["partners"][0]["dataSources"][0]["dataSourceId"] == 10


@pytest.mark.rule("OP-31")
def test_mistakes_go_to_standard_error(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "w.yaml"
    file.write_text("partners: [{pid: 1, nam: acme}]")
    assert workspace_commands.apply(home, [file], as_json=True) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"error: {file}:1:21: unknown key 'nam'; did you mean name?" in captured.err.splitlines()
    with pytest.raises(UsageError):
        workspace_commands.apply(home, [])
    with pytest.raises(UsageError, match="gamma"):
        workspace_commands.apply(home, [file], environment="gamma")


@pytest.mark.rule("OP-12")
def test_the_view_of_validate() -> None:
    view = workspace_commands.load_view(Path(__file__).parent / "example.yaml")
    assert view.sources[5001].name == "CRM"
    assert [trait.sid for trait in view.traits] == [901, 902, 903, 950]
    assert view.segments == {2001: 1001, 2002: 1001}
    assert view.access == {1001: frozenset()}
