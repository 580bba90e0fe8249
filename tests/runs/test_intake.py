"""What lies whole in a drop-off becomes a waiting file exactly once (IN-05, IN-07)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from dropoff.hostile import hostile
from openaudience.catalog.ledger import FileRow
from openaudience.cli import main
from openaudience.dropoff.folders import FolderDoor
from openaudience.dropoff.uploads import State, UploadDoor, UploadTree
from openaudience.home import Home
from openaudience.runs.applier import Applier
from openaudience.runs.intake import Intake
from openaudience.runs.receipts import receipts_of
from openaudience.runs.site import Lease, Site

WORKSPACE = """
partners:
  - pid: 1001
    name: acme
    dataSources: [{dataSourceId: 7007, name: Loyalty, idType: CROSS_DEVICE, integrationCode: x}]
    traits: [{sid: 950, name: Ten, traitType: ON_BOARDED_TRAIT, dataSourceId: 7007, traitRule: 'ic == "10"'}]
  - pid: 1002
    name: bolt
    dataSources: [{dataSourceId: 8008, name: Other, idType: CROSS_DEVICE, integrationCode: y}]
"""
HOUR = 3600.0


class Wall:
    """A wall clock that runs, and can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class House:
    def __init__(self, home: Home) -> None:
        self.site = Site(home, "production")
        self.wall = Wall()
        self.tree = UploadTree(self.site.folder / "uploads")
        self.folder = FolderDoor(self.site.folder / "folder", 5, 24 * HOUR, 2, self.wall)
        self.uploads = UploadDoor(self.tree, 24 * HOUR, 2, self.wall)

    def intake(self) -> Intake:
        return Intake(self.site, [self.uploads, self.folder], self.wall)

    def upload(self, name: str, content: bytes, pid: int = 1001) -> Path:
        with self.tree.begin(pid, (name,)) as stream:
            stream.write(content)
        place = self.tree.place(pid, (name,))
        self.tree.received(place, State.RECEIVED_FTP)
        self.tree.whole(place)
        return place

    def apply(self) -> None:
        with Lease(self.site) as lease:
            applier = Applier(self.site)
            applier.settler.tidy()
            applier.work(lease)

    def receipts(self) -> list[tuple[str, str, str]]:
        """(file, status, code) of every receipt."""
        with self.site.reading() as session:
            return [
                (name, one.receipt.status, one.receipt.reason[0] if one.receipt.reason else "")
                for one in receipts_of(session, "production")
                for name in one.receipt.files
            ]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    home, workspace = tmp_path / "home", tmp_path / "workspace.yaml"
    workspace.write_text(WORKSPACE)
    assert main(["init", "--home", str(home)]) == 0
    assert main(["workspace", "apply", str(workspace), "--home", str(home)]) == 0
    with Home.open(home) as opened:
        house = House(opened)
        yield house
        house.site.close()


FIRST = "ftp_dpm_7007_1700000000.sync"


@pytest.mark.rule("IN-05", "IN-06")
def test_an_upload_is_taken_when_it_is_whole_and_leaves_once_processed(house: House) -> None:
    with house.tree.begin(1001, (FIRST,)) as stream:
        stream.write(b"a\t10\n")
        stream.flush()
        assert house.intake().round() == 0
    place = house.tree.place(1001, (FIRST,))
    house.tree.received(place, State.RECEIVED_FTP)
    assert house.intake().round() == 0
    house.tree.whole(place)
    intake = house.intake()
    assert intake.round() == 1
    assert intake.round() == 0
    house.wall.ahead = 60
    assert intake.round() == 0
    assert place.exists(), "it stays until it is processed"
    house.apply()
    assert intake.round() == 0
    assert not place.exists()
    assert house.receipts() == [(FIRST, "processed", "")]


@pytest.mark.rule("IN-07")
def test_a_second_upload_of_the_same_bytes_is_a_duplicate_another_one_is_new(house: House) -> None:
    house.upload(FIRST, b"a\t10\n")
    house.intake().round()
    house.upload(FIRST, b"a\t10\n")
    house.intake().round()
    house.apply()
    house.upload(FIRST, b"b\t10\n")
    house.intake().round()
    house.apply()
    assert house.receipts() == [(FIRST, "processed", ""), (FIRST, "duplicate", "duplicate"), (FIRST, "processed", "")]


def test_what_the_sender_overwrites_or_deletes_was_delivered_all_the_same(house: House) -> None:
    house.upload(FIRST, b"a\t10\n")
    house.upload(FIRST, b"b\t10\n")
    house.tree.remove(1001, (FIRST,))
    intake = house.intake()
    assert intake.round() == 2
    house.apply()
    intake.round()
    assert [status for _, status, _ in house.receipts()] == ["processed", "processed"]
    assert list(house.tree.files()) == []
    assert list((house.tree.root / ".replaced").iterdir()) == []


@pytest.mark.rule("IN-05", "IN-87")
def test_a_half_upload_is_refused_after_a_day(house: House) -> None:
    with house.tree.begin(1001, (FIRST,)) as stream:
        stream.write(b"a\t1")
    (house.site.folder / "folder").mkdir()
    house.intake().round()
    (house.site.folder / "folder" / "acme" / "x.sync.part").write_bytes(b"a")
    intake = house.intake()
    house.wall.ahead = 23 * HOUR
    assert intake.round() == 0
    house.wall.ahead = 24 * HOUR + 1
    assert intake.round() == 2
    house.apply()
    intake.round()
    assert sorted(house.receipts()) == [
        (FIRST, "rejected", "upload_unfinished"),
        ("x.sync.part", "rejected", "upload_unfinished"),
    ]
    assert list(house.tree.files()) == []
    assert list((house.site.folder / "folder" / "acme").iterdir()) == []


@pytest.mark.rule("IN-05")
def test_a_file_in_the_folder_is_whole_after_five_quiet_seconds_or_a_renaming(house: House) -> None:
    intake = house.intake()
    intake.round()
    folder = house.site.folder / "folder" / "acme"
    (folder / FIRST).write_bytes(b"a\t10\n")
    (folder / "later.part").write_bytes(b"b\t10\n")
    assert intake.round() == 0
    (folder / "later.part").rename(folder / "ftp_dpm_7007_1700000001.sync")
    assert intake.round() == 1, "renamed into place"
    house.wall.ahead = 6
    assert intake.round() == 1
    house.apply()
    intake.round()
    assert list(folder.iterdir()) == []
    assert [status for _, status, _ in house.receipts()] == ["processed", "processed"]


@pytest.mark.rule("IN-87")
def test_a_file_in_nobodys_folder_is_in_the_wrong_place(house: House) -> None:
    intake = house.intake()
    intake.round()
    (house.site.folder / "folder" / FIRST).write_bytes(b"a\t10\n")
    (house.site.folder / "folder" / "nobody").mkdir()
    (house.site.folder / "folder" / "nobody" / FIRST).write_bytes(b"a\t11\n")
    house.wall.ahead = 6
    assert intake.round() == 2
    house.apply()
    assert house.receipts() == [(FIRST, "rejected", "wrong_place")] * 2


@pytest.mark.rule("OP-65", "IN-17")
def test_a_file_in_anothers_folder_is_refused(house: House) -> None:
    house.upload(FIRST, b"a\t10\n", pid=1002)
    house.intake().round()
    house.apply()
    assert house.receipts() == [(FIRST, "rejected", "foreign_data_source")]


def test_two_intakes_at_one_door_take_a_file_once(house: House) -> None:
    house.upload(FIRST, b"a\t10\n")
    one, two = house.intake(), house.intake()
    # both have looked before either takes
    deliveries = list(house.uploads.look({"acme": 1001}))
    assert one._take(house.uploads, deliveries) == 1
    assert two._take(house.uploads, deliveries) == 0
    with house.site.reading() as session:
        assert len(list(session.scalars(select(FileRow.file)))) == 1
    assert len(list(house.site.environment.dropoff.iterdir())) == 1


def test_a_file_with_a_meaningless_name_may_still_be_renamed(house: House) -> None:
    house.upload("upload-1", b"a\t10\n")
    intake = house.intake()
    assert intake.round() == 0
    house.tree.rename(1001, ("upload-1",), (FIRST,))
    assert intake.round() == 1
    house.upload("upload-2", b"a\t10\n")
    house.wall.ahead = 6
    assert intake.round() == 1
    house.apply()
    assert house.receipts() == [(FIRST, "processed", ""), ("upload-2", "rejected", "name_syntax")]


def test_a_taken_file_keeps_its_name_and_cannot_be_resumed(house: House) -> None:
    from openaudience.dropoff.paths import PathRefused

    house.upload(FIRST, b"a\t10\n")
    house.intake().round()
    with pytest.raises(PathRefused, match="taken"):
        house.tree.rename(1001, (FIRST,), ("other",))
    with pytest.raises(PathRefused, match="anew"):
        house.tree.begin(1001, (FIRST,), resume=True)


@pytest.mark.rule("OP-62")
def test_hostile_names_in_the_folder_get_a_receipt_each_and_lead_nowhere(house: House, tmp_path: Path) -> None:
    intake = house.intake()
    intake.round()
    folder = house.site.folder / "folder" / "acme"
    names = {name for path in hostile() for name in (path.replace(b"/", b"|"),) if b"\0" not in name}
    names = {name for name in names if 0 < len(name) <= 255 and name not in (b".", b"..")}
    for name in names:
        with open(bytes(folder) + b"/" + name, "wb") as file:
            file.write(b"a\t10\n")
    (folder / "link.sync").symlink_to(tmp_path / "workspace.yaml")
    outside = {path for path in tmp_path.rglob("*") if house.site.folder not in path.parents}
    house.wall.ahead = 25 * HOUR
    assert intake.round() == len(names)
    house.apply()
    intake.round()
    assert len(house.receipts()) == len(names)
    assert [status for _, status, _ in house.receipts()] == ["rejected"] * len(names)
    assert {path for path in tmp_path.rglob("*") if house.site.folder not in path.parents} == outside
    assert [path.name for path in folder.iterdir()] == ["link.sync"], "links are left alone"


def test_names_that_no_file_system_or_mail_takes_are_made_printable(house: House) -> None:
    name = "x\nRecords received: 5"
    house.intake().round()
    (house.site.folder / "folder" / "acme" / name).write_bytes(b"a")
    house.wall.ahead = 6
    intake = house.intake()
    assert intake.round() == 1
    house.apply()
    intake.round()
    ((shown, status, code),) = house.receipts()
    assert (status, code) == ("rejected", "name_syntax")
    assert "\n" not in shown
    assert list((house.site.folder / "folder" / "acme").iterdir()) == []
