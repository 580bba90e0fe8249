"""A bucket of thousands of objects, and an intake that ends in the middle of them, again and again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from dropoff.object_house import PLACE, House, make_home, opened_house
from dropoff.servers import s3_server, weed_program
from openaudience.catalog.ledger import FileRow
from openaudience.dropoff.stores import opener
from openaudience.runs import faults, intake

FILES, PORTION = 2_000, 400


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with opened_house(make_home(tmp_path / "made"), tmp_path, House) as house:
        yield house


def kill_at(monkeypatch: pytest.MonkeyPatch, point: str, turn: int) -> None:
    """As ``OPENAUDIENCE_FAULT`` does, but the test goes on as the next process."""
    times = Counter[str]()

    def reach(reached: str) -> None:
        times[reached] += 1
        if reached == point and times[reached] == turn:
            raise Killed

    monkeypatch.setattr(faults, "reach", reach)


@pytest.mark.rule("IN-05", "IN-07", "OP-60")
def test_every_object_has_one_receipt_however_often_the_intake_ends(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = weed_program()
    if program is None:
        pytest.skip("SeaweedFS (weed) is not installed")
    monkeypatch.setattr(intake, "MOST_FILES", PORTION)
    sent = {f"{PLACE}ftp_dpm_7007_{1_700_000_000 + n}.sync": f"u{n % 1_990}\t10\n".encode() for n in range(FILES - 20)}
    sent |= {f"nobody/{n}.sync": b"x" for n in range(10)} | {f"{PLACE}{n}.txt": b"x" for n in range(10)}
    (tmp_path / "weed").mkdir()
    with s3_server(tmp_path / "weed", program) as server:
        server.make_bucket("drop")
        s3 = server.client
        with ThreadPoolExecutor(4) as hands:
            list(hands.map(lambda key: s3.put_object(Bucket="drop", Key=key, Body=sent[key]), sent))
        store = opener(server.settings)("drop")
        house.now = time.time()

        def ends_at(point: str, turn: int, in_ledger: int, left_over: int) -> None:
            kill_at(monkeypatch, point, turn)
            taking = house.intake(house.door(store=store))
            with pytest.raises(Killed):
                taking.round()
            monkeypatch.setattr(faults, "reach", lambda point: None)
            assert len(known(house)) == in_ledger
            assert len(house.copies()) == waiting(house) + left_over

        ends_at("file-copied", 1, 0, 1)
        ends_at("file-copied", PORTION + 150, PORTION, 1 + 150)
        # start-up of the applier clears away what the ledger does not know, and applies what it knows
        house.apply()
        assert house.copies() == []
        ends_at("dropped", 2, 2 * PORTION, PORTION)
        ends_at("dropped", 1, 2 * PORTION, 2 * PORTION)
        taking = house.intake(house.door(store=store))
        assert taking.round() == FILES - 2 * PORTION
        house.apply()
        assert house.copies() == []
        for again in (taking, house.intake(house.door(store=store))):
            assert again.round() == 0
        assert {one.key for one in store.list("")} == set(sent)
    assert sorted(known(house)) == sorted(sent)
    receipts = house.receipts()
    assert sorted(name for name, _, _ in receipts) == sorted(key.rpartition("/")[2] for key in sent)
    assert Counter(code for _, _, code in receipts) == {"": FILES - 20, "wrong_place": 10, "name_syntax": 10}


def known(house: House) -> list[str]:
    """Keys in the ledger, one for each file."""
    with house.site.reading() as session:
        return [str(path) for path in session.scalars(select(FileRow.path))]


def waiting(house: House) -> int:
    with house.site.reading() as session:
        return len(session.scalars(select(FileRow.file).where(FileRow.state == "waiting")).all())
