"""Buckets as drop-offs: which keys are files, whose they are, and that each ends in exactly one receipt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from dropoff.hostile import hostile
from dropoff.object_house import DAY, FIRST, NOW, PARTNERS, PLACE, SECOND, House, make_home, opened_house
from openaudience.catalog.ledger import FileRow
from openaudience.config import LimitsSection, S3Section, Settings
from openaudience.dropoff.doors import Delivery, DeliveryChanged
from openaudience.dropoff.objects import bucket, bucket_doors
from openaudience.dropoff.paths import unfinished
from openaudience.dropoff.stores import AccessRefused
from openaudience.errors import InputError, StoreUnavailable


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("objects"))


@pytest.fixture
def house(made: Path, tmp_path: Path) -> Iterator[House]:
    with opened_house(made, tmp_path, House) as house:
        yield house


def looked(house: House, setting: str = "s3://drop") -> dict[str, Delivery]:
    return {one.path: one for one in house.door(setting).look(PARTNERS)}


@pytest.mark.rule("IN-04")
@pytest.mark.parametrize(
    ("setting", "url", "prefix", "partner"),
    [
        ("s3://drop", "s3://drop", "", None),
        ("s3a://drop/", "s3://drop", "", None),
        ("s3n://drop/in/box/", "s3://drop/in/box", "in/box", None),
        ("acme=s3://drop", "s3://drop", "", "acme"),
        ("Acme & Co=s3n://drop/p=1", "s3://drop/p=1", "p=1", "Acme & Co"),
    ],
)
def test_a_bucket_is_named_with_any_of_the_three_schemes(
    setting: str, url: str, prefix: str, partner: str | None
) -> None:
    made = bucket(setting)
    assert (made.url, made.name, made.prefix, made.partner) == (url, "drop", prefix, partner)


@pytest.mark.parametrize(
    "setting",
    [
        *("", "drop", "s4://drop", "s3://", "s3:///x", "=s3://drop", "s3://drop/a/../b", "s3://d/x", "s3://dr op"),
        *("s3://drop/" + "x" * 250, "s3://drop//a//b", "file:///etc"),
    ],
)
def test_what_names_no_bucket_is_refused_with_the_setting_in_the_message(setting: str) -> None:
    with pytest.raises(InputError) as caught:
        bucket(setting)
    assert repr(setting) in str(caught.value)
    assert "write" in str(caught.value)


@pytest.mark.rule("IN-04", "IN-06")
def test_an_object_is_taken_once_stays_thirty_days_and_is_then_deleted(house: House) -> None:
    key = PLACE + FIRST
    house.shelf.put(key, b"a\t10\n")
    intake = house.intake()
    assert intake.round() == 1
    assert intake.round() == 0
    house.apply()
    assert house.receipts() == [(FIRST, "processed", "")]
    house.now = NOW + 30 * DAY - 1
    intake.round()
    assert key in house.shelf.things
    house.now = NOW + 30 * DAY
    intake.round()
    assert house.shelf.things == {}
    # also a process that begins now takes nothing again
    house.shelf.put(key, b"a\t10\n")
    assert house.intake().round() == 0


@pytest.mark.rule("IN-06")
def test_what_was_not_processed_or_was_replaced_is_not_deleted(house: House) -> None:
    key = PLACE + FIRST
    house.shelf.put(key, b"a\t10\n")
    intake = house.intake()
    house.now = NOW + 40 * DAY
    intake.round()
    intake.round()
    assert key in house.shelf.things, "it waits"
    house.apply()
    door = house.door()
    (old,) = door.look(PARTNERS)
    house.shelf.put(key, b"b\t10\n", at=NOW + 1)
    door.release(old)
    assert key in house.shelf.things, "another upload"
    intake.round()
    house.apply()
    intake.round()
    assert house.shelf.things == {}
    assert [status for _, status, _ in house.receipts()] == ["processed", "processed"]


def test_many_old_objects_do_not_hold_up_new_ones(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openaudience.dropoff.objects.MOST_DELETIONS", 3)
    for number in range(5):
        house.shelf.put(f"{PLACE}{number}", b"x")
    intake = house.intake()
    intake.round()
    house.apply()
    house.now = NOW + 31 * DAY
    intake.round()
    assert len(house.shelf.things) == 2
    intake.round()
    assert house.shelf.things == {}


@pytest.mark.rule("IN-04", "IN-87", "OP-65")
@pytest.mark.parametrize(
    ("key", "says", "partner"),
    [
        (FIRST, "name of no partner", None),
        ("nobody/date=2027-01-15/" + FIRST, "name of no partner", None),
        ("ACME/date=2027-01-15/" + FIRST, "name of no partner", None),
        ("/" + PLACE + FIRST, "name of no partner", None),
        ("../" + PLACE + FIRST, "name of no partner", None),
        ("acme/" + FIRST, "no dated folder", "acme"),
        ("acme/2027-01-15/" + FIRST, "no dated folder", "acme"),
        ("acme//date=2027-01-15/" + FIRST, "no dated folder", "acme"),
        ("acme/./date=2027-01-15/" + FIRST, "no dated folder", "acme"),
        ("acme/../bolt/date=2027-01-15/" + FIRST, "no dated folder", "acme"),
        ("acme/date=2027-02-29/" + FIRST, "is no date", "acme"),
        ("acme/date=20270115/" + FIRST, "is no date", "acme"),
        ("acme/date=2027-1-5/" + FIRST, "is no date", "acme"),
        ("acme/date=/" + FIRST, "is no date", "acme"),
        ("acme/date=../../../x", "is no date", "acme"),
        (PLACE + "/" + FIRST, "within the dated folder", "acme"),
        (PLACE + "../" + FIRST, "within the dated folder", "acme"),
        (PLACE + "_temporary/0/" + FIRST, "within the dated folder", "acme"),
        (PLACE + "..", "is no name", "acme"),
    ],
)
def test_a_key_outside_a_partners_dated_folder_is_in_the_wrong_place(
    house: House, key: str, says: str, partner: str | None
) -> None:
    house.shelf.put(key, b"a\t10\n")
    (delivery,) = house.door().look(PARTNERS)
    assert delivery.refusal is not None
    code, text = delivery.refusal
    assert (code, delivery.partner) == ("wrong_place", partner)
    assert says in text
    assert "date=YYYY-MM-DD/<file name>" in text
    intake = house.intake()
    assert intake.round() == 1
    house.apply()
    intake.round()
    assert [(status, code) for _, status, code in house.receipts()] == [("rejected", "wrong_place")]


@pytest.mark.rule("OP-65")
def test_a_bucket_of_one_partner_takes_nothing_for_another(house: House) -> None:
    house.shelf.put(PLACE + FIRST, b"x")
    house.shelf.put("bolt/date=2027-01-15/" + FIRST, b"x")
    seen = looked(house, "acme=s3://drop")
    assert seen[PLACE + FIRST].refusal is None
    foreign = seen["bolt/date=2027-01-15/" + FIRST]
    assert foreign.refusal is not None
    assert foreign.refusal[0] == "wrong_place"
    assert (foreign.partner, foreign.pid) == ("acme", 1001), "whoever could write there"
    assert {one.pid for one in looked(house, "gone=s3://drop").values()} == {None}


def test_below_a_prefix_keys_are_whole_and_what_lies_beside_is_not_seen(house: House) -> None:
    house.shelf.put("in/box/" + PLACE + FIRST, b"x")
    house.shelf.put("in/boxes/" + PLACE + FIRST, b"x")
    house.shelf.put(PLACE + FIRST, b"x")
    ((path, delivery),) = looked(house, "s3://drop/in/box").items()
    assert path == "in/box/" + PLACE + FIRST
    assert (delivery.partner, delivery.refusal) == ("acme", None)


@pytest.mark.rule("IN-04", "IN-05")
def test_markers_are_no_files_and_unfinished_names_have_a_day(house: House) -> None:
    for key in ("acme/", PLACE, "//", "../", PLACE + "x.sync.part", PLACE + ".x.sync"):
        house.shelf.put(key, b"")
    intake = house.intake()
    house.now = NOW + DAY - 1
    assert intake.round() == 0
    house.now = NOW + DAY
    assert intake.round() == 2
    house.apply()
    assert sorted(house.receipts()) == [
        (".x.sync", "rejected", "upload_unfinished"),
        ("x.sync.part", "rejected", "upload_unfinished"),
    ]


@pytest.mark.rule("IN-07")
def test_the_same_bytes_put_again_are_a_duplicate_other_bytes_a_new_file(house: House) -> None:
    intake = house.intake()
    for second, content in enumerate((b"a\t10\n", b"a\t10\n", b"b\t10\n")):
        house.shelf.put(PLACE + FIRST, content, at=NOW + second)
        assert intake.round() == 1
        house.apply()
    assert house.receipts() == [(FIRST, "processed", ""), (FIRST, "duplicate", "duplicate"), (FIRST, "processed", "")]


@pytest.mark.rule("IN-07", "IN-08")
def test_what_comes_late_or_sorts_before_what_was_taken_is_taken_too(house: House) -> None:
    intake = house.intake()
    for key in ("bolt/date=2027-01-15/x", PLACE + SECOND, PLACE + FIRST, "acme/date=2020-01-01/" + FIRST, "a-b"):
        house.shelf.put(key, b"x", at=NOW - len(house.shelf.things) * DAY)
        assert intake.round() == 1
    assert intake.round() == 0


@pytest.mark.rule("IN-20", "IN-87")
def test_what_is_too_large_is_refused_and_never_copied(house: House) -> None:
    door = house.door(largest=4)
    house.shelf.put(PLACE + FIRST, b"a\t10\n")
    house.shelf.put(PLACE + SECOND, b"a\t1\n")
    house.shelf.put("nobody/huge", b"12345")
    intake = house.intake(door)
    assert intake.round() == 3
    assert house.shelf.read_keys == [PLACE + SECOND]
    house.apply()
    assert sorted(house.receipts()) == [
        (FIRST, "rejected", "too_large_compressed"),
        (SECOND, "processed", ""),
        ("huge", "rejected", "wrong_place"),
    ]
    reasons = [path.read_text() for path in house.site.folder.rglob("quarantine/**/*.reason")]
    assert any("stays in the bucket" in text for text in reasons)


def test_what_changes_or_goes_between_looking_and_reading_is_left_to_the_next_round(house: House) -> None:
    house.shelf.put(PLACE + FIRST, b"a\t10\n")
    house.shelf.put(PLACE + SECOND, b"b\t10\n")

    def meanwhile() -> None:
        house.shelf.put(PLACE + FIRST, b"a\t99\n", at=NOW + 1)
        house.shelf.things.pop(PLACE + SECOND, None)

    house.shelf.before_reading = meanwhile
    intake = house.intake()
    assert intake.round() == 0
    assert house.copies() == []
    assert intake.round() == 1
    house.apply()
    assert house.receipts() == [(FIRST, "processed", "")]
    with house.site.reading() as session:
        assert [row.digest for row in session.query(FileRow)] == [hashlib.sha256(b"a\t99\n").hexdigest()]


@pytest.mark.parametrize("where", ["", " in the middle"])
def test_a_store_that_fails_half_way_loses_nothing_and_leaves_no_half_copy(house: House, where: str) -> None:
    house.shelf.put(PLACE + FIRST, b"a\t10\n")
    house.shelf.put(PLACE + SECOND, b"b\t10\n")
    house.shelf.failing = {PLACE + SECOND + where}
    intake = house.intake()
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            intake.round()
    assert len(house.copies()) == 1, "what came before it is in the ledger"
    house.shelf.failing = {"list"}
    with pytest.raises(StoreUnavailable):
        intake.round()
    house.shelf.failing = set()
    assert intake.round() == 1
    house.apply()
    assert house.receipts() == [(FIRST, "processed", ""), (SECOND, "processed", "")]


def test_one_object_that_may_not_be_read_does_not_stop_the_others(house: House) -> None:
    house.shelf.put(PLACE + FIRST, b"a\t10\n")
    house.shelf.put(PLACE + SECOND, b"b\t10\n")
    house.shelf.refusing = {PLACE + FIRST}
    intake = house.intake()
    assert intake.round() == 1
    house.shelf.refusing = set()
    assert intake.round() == 1


def test_objects_that_may_not_be_deleted_do_not_stop_what_comes(house: House) -> None:
    house.shelf.put(PLACE + FIRST, b"a\t10\n")
    intake = house.intake()
    intake.round()
    house.apply()
    house.now = NOW + 31 * DAY
    house.shelf.failing = {"delete"}
    house.shelf.put(PLACE + SECOND, b"b\t10\n", at=house.now)
    with pytest.raises(StoreUnavailable):
        intake.round()
    house.apply()
    assert house.receipts() == [(FIRST, "processed", ""), (SECOND, "processed", "")]


@pytest.mark.rule("IN-06")
def test_one_object_that_is_locked_keeps_no_other_from_being_deleted(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in (PLACE + FIRST, PLACE + SECOND):
        house.shelf.put(key, key.encode() + b"\t10\n")
    intake = house.intake()
    intake.round()
    house.apply()
    house.now = NOW + 31 * DAY
    asked: list[str] = []

    def delete(key: str) -> None:
        asked.append(key)
        if key.endswith(FIRST):
            raise AccessRefused("locked")
        del house.shelf.things[key]

    monkeypatch.setattr(house.shelf, "delete", delete)
    for _ in range(3):
        intake.round()
    assert list(house.shelf.things) == [PLACE + FIRST]
    assert sorted(asked) == [PLACE + FIRST, PLACE + SECOND], "it is not tried for ever"


@pytest.mark.rule("OP-62")
def test_two_keys_that_look_alike_are_two_files(house: House) -> None:
    for key in (PLACE + "a\x01", PLACE + "a\x02", PLACE + "a\udcff", PLACE + "a\ufffd"):
        house.shelf.put(key, b"x")
    intake = house.intake()
    assert intake.round() == 4
    assert intake.round() == 0
    house.apply()
    assert [(status, code) for _, status, code in house.receipts()] == [("rejected", "name_syntax")] * 4


def hostile_keys() -> list[str]:
    paths = [path.decode("utf-8", "surrogateescape") for path in hostile()]
    paths += [
        "../x",
        "..\\x",
        "a//b",
        "/etc/passwd",
        "x\x00y",
        "n" * 1024,
        "\udcfe\udcff",
        "acme/date=.../../../x",
        "..",
        ".",
    ]
    return [key for path in paths if path for key in (path, f"acme/{path}", f"{PLACE}{path}")]


@pytest.mark.rule("OP-62")
def test_no_hostile_key_escapes_and_each_gets_one_receipt(house: House) -> None:
    keys = {key for key in hostile_keys() if not key.endswith("/")}
    for key in keys:
        house.shelf.put(key, b"a\t10\n")
    before = {path for path in house.site.folder.parent.parent.rglob("*") if "dropoff" not in path.parts}
    intake = house.intake()
    house.now = NOW + 2 * DAY
    taken = 0
    while more := intake.round():
        taken += more
    assert taken == len(keys)
    outside = {path for path in house.site.folder.parent.parent.rglob("*") if "dropoff" not in path.parts} - before
    assert outside <= {house.site.folder / "dropoff.lock"}
    assert all(
        len(path.relative_to(house.site.environment.dropoff).parts) <= 2
        for path in house.site.environment.dropoff.rglob("*")
    )
    house.apply()
    receipts = house.receipts()
    assert len(receipts) == len(keys)
    assert {code for _, _, code in receipts} <= {"wrong_place", "upload_unfinished"} | {
        code for _, _, code in receipts if code.startswith("name_")
    }
    assert intake.round() == 0


def settings(**given: object) -> Settings:
    section = msgspec.convert({"enabled": True, "access_key_id": "k", "secret_access_key": "s"} | given, S3Section)
    return Settings(s3=section, limits=LimitsSection(compressed_bytes=7))


@pytest.mark.rule("IN-01", "IN-02")
def test_each_environment_has_buckets_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [door.name for door in bucket_doors(settings(), beta=False)] == ["s3://demdex-s2s-clients"]
    assert [door.name for door in bucket_doors(settings(), beta=True)] == ["s3://demdex-s2s-clients-sandbox-us-east-1"]
    several = settings(buckets=["s3://a-b/x", "acme=s3a://a-b/xy", "s3://c-d"])
    assert [door.name for door in bucket_doors(several, beta=False)] == ["s3://a-b/x", "s3://a-b/xy", "s3://c-d"]
    assert bucket_doors(settings(enabled=False), beta=False) == []


@pytest.mark.parametrize(
    "buckets", [["s3://a-b", "s3a://a-b"], ["s3://a-b/x/y", "s3://a-b/x"], ["acme=s3://a-b", "s3://a-b/x"]]
)
def test_a_place_is_named_once(buckets: list[str]) -> None:
    with pytest.raises(InputError, match="overlap"):
        bucket_doors(settings(buckets=buckets), beta=False)


def test_a_copy_is_refused_if_the_object_is_another_now(house: House, tmp_path: Path) -> None:
    house.shelf.put(PLACE + FIRST, b"abc")
    door = house.door()
    (delivery,) = door.look(PARTNERS)
    assert door.fetch(delivery, tmp_path / "one" / "x") == (hashlib.sha256(b"abc").hexdigest(), 3)
    with pytest.raises(DeliveryChanged, match="replaced"):
        door.fetch(replace(delivery, stamp=delivery.stamp + "x"), tmp_path / "two" / "x")
    assert not (tmp_path / "two" / "x").exists()


def test_names_that_tools_use_for_unfinished_uploads_are_known() -> None:
    assert unfinished("x.FILEPART")
