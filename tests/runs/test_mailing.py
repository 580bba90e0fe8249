"""Receipts on their way into the mail queue: to whom, in which words, and exactly once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from openaudience.runs.post import summary
from openaudience.runs.site import Site
from runs.killing import KILLED, NOW, Server, command
from runs.posting import DATA, MAIL, SYNC, WORKSPACE, drop, mails, opened, prepare, to

FOLDER = Path(__file__).parent / "mails"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("mailing"))


@pytest.fixture
def home(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "home"))


@pytest.mark.rule("IN-82", "UI-11", "UI-26", "UI-27", "UI-30", "UI-31", "UI-32", "UI-34", "UI-35", "UI-36", "IN-80")
@pytest.mark.parametrize("case", ["id_sync", "data", "rejected", "duplicate", "beta", "again"])
def test_whole_mails(home: Path, case: str) -> None:
    """What a sender gets, to the letter: the file beside this test."""
    (home / "openaudience.toml").write_text(f'{MAIL}[receipts]\nreport_url = "https://aud.example/files/"\n')
    environment = "beta" if case == "beta" else "production"
    drop(home, *SYNC, "--environment", environment)
    drop(home, *DATA, "--environment", environment)
    if case == "rejected":
        drop(home, "ftp_dpm_5001_1700000001.overwrite.gz", "C-1\t10\n")
    elif case == "duplicate":
        drop(home, *DATA)
    elif case == "again":
        assert command(home, "undo", "1")[0] == 0
    last = mails(home, environment)[0 if case == "id_sync" else -1]
    text = f"To: {', '.join(to(last))}\nSubject: {last.subject}\n\n{last.body}"
    assert text == (FOLDER / f"{case}.txt").read_text()


@pytest.mark.rule("UI-31", "UI-30")
def test_the_receipt_stands_in_the_mail_unchanged(home: Path) -> None:
    drop(home, *SYNC)
    drop(home, *DATA)
    for number, mail in enumerate(mails(home), 1):
        receipt = command(home, "receipt", str(number))[1]
        assert mail.body.endswith("\n\n" + receipt)
        greeting, second = mail.body.split("\n\n")[:2]
        assert "(ID:" not in greeting
        assert "(ID:5001)" in second


@pytest.mark.rule("UI-34")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ftp_dpm_5001_1700000000.sync", ["crm@acme.example", "Boss@host.example"]),
        # the list of the target first, and nobody twice
        (
            "ftp_dpm_5002_5001_1700000000.sync",
            ["crm@acme.example", "Shop@acme.example", "second@acme.example", "Boss@host.example"],
        ),
        (
            "ftp_dpm_5002_1700000000.sync",
            ["Shop@acme.example", "CRM@acme.example", "second@acme.example", "Boss@host.example"],
        ),
        (
            "adobe_id_0_5001_5002_1700000000.sync",
            ["crm@acme.example", "Shop@acme.example", "second@acme.example", "Boss@host.example"],
        ),
        ("adobe_id_0_5001_17000000000.sync", ["crm@acme.example", "Boss@host.example"]),
        ("nonsense", ["Boss@host.example"]),
    ],
)
def test_recipients(home: Path, name: str, expected: list[str]) -> None:
    (home / "openaudience.toml").write_text(
        f'{MAIL}[receipts]\nalways = ["Boss@host.example", "SHOP@acme.example", "crm@ACME.example"]\n'
    )
    drop(home, name, "C-1\t10\n")
    mail = mails(home)[-1]
    expected = expected + [
        one
        for one in ("SHOP@acme.example", "crm@ACME.example")
        if one.casefold() not in {other.casefold() for other in expected}
    ]
    assert to(mail) == expected


@pytest.mark.rule("UI-34")
def test_no_recipients_no_mail(home: Path, tmp_path: Path) -> None:
    document = json.loads(json.dumps(WORKSPACE))
    for source in document["partners"][0]["dataSources"]:
        source["inboundMailingList"] = []
    (tmp_path / "ws.yaml").write_text(yaml.safe_dump(document))
    assert command(home, "workspace", "apply", str(tmp_path / "ws.yaml"))[0] == 0
    drop(home, *DATA)
    assert mails(home) == []
    assert command(home, "receipt", "1")[0] == 0


@pytest.mark.rule("UI-70")
def test_a_changed_list_holds_for_the_next_receipt(home: Path, tmp_path: Path) -> None:
    drop(home, *SYNC)
    document = json.loads(json.dumps(WORKSPACE))
    document["partners"][0]["dataSources"][0]["inboundMailingList"] = ["new@acme.example"]
    (tmp_path / "ws.yaml").write_text(yaml.safe_dump(document))
    assert command(home, "workspace", "apply", str(tmp_path / "ws.yaml"))[0] == 0
    drop(home, *DATA)
    assert [to(mail) for mail in mails(home)] == [["crm@acme.example"], ["new@acme.example"]]


@pytest.mark.rule("UI-35", "OP-65")
@pytest.mark.parametrize(
    "name", ["ftp_dpm_6001_1700000000.sync", "ftp_dpm_6001_17.sync", "ftp_dpm_5001_6001_1700000000.sync"]
)
def test_nobody_can_have_mail_sent_to_the_people_of_another_partner(home: Path, name: str) -> None:
    drop(home, name, "C-1\t10\n", "--partner", "acme")
    assert all("them@other.example" not in to(mail) for mail in mails(home))
    drop(home, "ftp_dpm_6001_17.sync", "C-1\t10\n", "--partner", "other")
    assert to(mails(home)[-1]) == ["them@other.example"]


@pytest.mark.rule("UI-35")
def test_a_file_without_a_data_source_goes_to_those_who_get_all(home: Path) -> None:
    drop(home, "nonsense.txt", "x\n")
    assert mails(home) == []
    (home / "openaudience.toml").write_text(f'{MAIL}[receipts]\nalways = ["boss@host.example"]\n')
    drop(home, "nonsense.txt", "y\n")
    (mail,) = mails(home)
    assert (to(mail), mail.subject.split(": ")[1]) == (["boss@host.example"], "Rejected unknown 1 file(s)")
    assert "Reason: name_syntax: " in mail.body


def test_without_a_mail_server_nothing_is_queued(home: Path) -> None:
    (home / "openaudience.toml").write_text("")
    drop(home, *DATA)
    assert mails(home) == []


@pytest.mark.rule("UI-31")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", "Server-To-Server Processing Result: Nothing stored 5001 1 file(s)"),
        ('subject = "<DPID> <status>, <status>: <DPid> <x>"', "5001 Nothing stored, Nothing stored: <DPid> <x>"),
        ('subject = "Grüße"', "Grüße"),
        ("subject_compat = true", "Adobe Audience Manager Server-To-Server Processing Result:"),
    ],
)
def test_subjects(home: Path, settings: str, expected: str) -> None:
    (home / "openaudience.toml").write_text(f"{MAIL}[receipts]\n{settings}\n")
    drop(home, *DATA)
    assert [mail.subject for mail in mails(home)] == [expected]


@pytest.mark.rule("UI-30")
@pytest.mark.parametrize(
    "name", ["a\nStored Records: 9\n", "b\r\n\r\nReport: x", "c\x00"[:1] + "\x1b[2J", "d\u2028Status: x"]
)
def test_no_name_writes_lines_into_a_receipt(home: Path, name: str) -> None:
    (home / "openaudience.toml").write_text(f'{MAIL}[receipts]\nalways = ["boss@host.example"]\n')
    drop(home, name, "C-1\t10\n")
    (mail,) = mails(home)
    labels = [line.split(":")[0] for line in mail.body.splitlines()]
    assert labels.count("Stored Records") == labels.count("Status") == labels.count("Report") == 1
    assert all(character == "\n" or character.isprintable() for character in mail.body)


@pytest.mark.rule("UI-37")
def test_mails_are_forgotten_with_their_receipts(home: Path) -> None:
    drop(home, *DATA)
    with opened(home) as site:
        from openaudience.runs.settling import Settler

        later = type("Later", (Site,), {"now": lambda self: int(NOW.timestamp()) + 401 * 86_400})(
            site.home, "production"
        )
        Settler(later).forget_old_receipts()
        later.close()
    assert mails(home) == []


@pytest.mark.rule("UI-33", "OP-44")
@pytest.mark.parametrize("fault", ["decided", "published", "file-kept", "settled"])
def test_one_mail_a_receipt_whatever_dies(home: Path, server: Server, fault: str) -> None:
    file = home.parent / DATA[0]
    file.write_text(DATA[1])
    assert server.run(home, ["ingest", str(file)], fault) == KILLED
    assert len(mails(home)) == (1 if fault == "settled" else 0)
    for _ in range(2):
        assert command(home, "jobs")[0] == 0
        assert [to(mail) for mail in mails(home)] == [["crm@acme.example"]]
    with opened(home) as site:
        assert summary(site) == {
            "queued": 1,
            "sent": 0,
            "failed": 0,
            "oldest_due": int(NOW.timestamp()),
            "error": None,
        }


@pytest.mark.rule("UI-70", "API-77")
@pytest.mark.parametrize(
    ("addresses", "mistake"),
    [
        (["nobody"], "'nobody' is no e-mail address"),
        (["a@b"], "'a@b' is no e-mail address"),
        (["a@b.example\nBcc: c@d.example"], "is no e-mail address"),
        (["a\x00@b.example"], "no e-mail address"),
        (["Name <a@b.example>"], "is no e-mail address"),
        (["a@b.example,c@d.example"], "is no e-mail address"),
        (["ä@b.example"], "is no e-mail address"),
        ([f"{'a' * 65}@b.example"], "is no e-mail address"),
        ([f"a{number}@b.example" for number in range(51)], "51 addresses; at most 50 are allowed"),
        ([f"a{number}@b.example" for number in range(50)] + ["A1@B.example"], None),
        (["first.last+tag@sub.b.example"], None),
    ],
)
def test_lists_of_recipients(home: Path, tmp_path: Path, addresses: list[str], mistake: str | None) -> None:
    document = json.loads(json.dumps(WORKSPACE))
    document["partners"][0]["dataSources"][0]["inboundMailingList"] = addresses
    (tmp_path / "ws.yaml").write_text(yaml.safe_dump(document))
    status, _, errors = command(home, "workspace", "apply", str(tmp_path / "ws.yaml"))
    if mistake is None:
        assert status == 0, errors
        drop(home, *DATA)
        assert to(mails(home)[-1]) == [one for one in addresses if one != "A1@B.example"]
    else:
        assert status == 1
        assert mistake in errors
