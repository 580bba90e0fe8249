"""The commands init, config show and workspace: what they print and how they end (70 §2)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openaudience.cli import home as home_commands
from openaudience.cli import workspace as workspace_commands
from openaudience.errors import InputError, SystemFailure, UsageError

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
    assert "workspace apply" in captured.out


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
