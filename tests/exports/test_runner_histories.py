"""Random histories of runs, failures, kills and repeated sending: a recipient always ends up with the truth (OB-67)."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from exports.office import Office
from openaudience.catalog.audiences import Destination
from openaudience.errors import DeliveryFailed, InputError
from openaudience.exports.generation import Generated
from openaudience.exports.look import Look
from openaudience.outbound.filesets import Files, OutFile
from openaudience.outbound.model import SyncMode


class Dead(BaseException):
    """The process is killed here."""


class Audience:
    """Makes files that say, in the plainest way, who came and who went; ``people`` is who is in there now."""

    def __init__(self, draw: random.Random) -> None:
        self.people: set[str] = set()
        self.deaths = 0.0
        self._draw = draw

    def generate(
        self,
        look: Look,
        destination: Destination,
        mode: SyncMode,
        started: int,
        baseline: Path | None,
        folder: Path,
        fault: Callable[[str], None],
    ) -> Generated:
        before = set() if baseline is None else set(json.loads((baseline / "state").read_text()))
        if mode == "full":
            rows = [f"+{one}" for one in sorted(self.people)]
        else:
            rows = [f"+{one}" for one in sorted(self.people - before)]
            rows += [f"-{one}" for one in sorted(before - self.people)]
        files = [self._file(folder, f"{mode}_{started}{part:03d}.sync", some) for part, some in enumerate(halves(rows))]
        files.append(self._file(folder, f"{mode}_{started}.info", [file.name for file in files]))
        (folder / "baseline").mkdir(exist_ok=True)
        (folder / "baseline" / "state").write_text(json.dumps(sorted(self.people)))
        if self._draw.random() < self.deaths:
            raise Dead
        return Generated(Files(tuple(files)), folder / "baseline", ())

    def _file(self, folder: Path, name: str, rows: list[str]) -> OutFile:
        path = folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{row}\n" for row in rows))
        content = path.read_bytes()
        kind = "info" if name.endswith(".info") else "data"
        md5 = hashlib.md5(content).hexdigest()
        return OutFile(name, path, kind, len(content), len(rows), len(rows), md5, 0)  # type: ignore[arg-type]


def halves(rows: list[str]) -> list[list[str]]:
    return [rows[: len(rows) // 2], rows[len(rows) // 2 :]]


class Recipient:
    """Takes each run once, when its ``.info`` is there: full files until the first iter file, iter files from then."""

    def __init__(self) -> None:
        self.people: set[str] = set()
        self._taken: set[str] = set()
        self._iter = False

    def look(self, office: Office) -> None:
        receiver = office.receivers[1]
        for info in receiver.log:
            if not info.endswith(".info") or info in self._taken:
                continue
            self._taken.add(info)
            mode = info.split("_")[0]
            if mode == "full" and self._iter:
                continue
            self._iter = mode == "iter"
            people = set() if mode == "full" else self.people
            for name in receiver.text(info).splitlines():
                for row in receiver.text(name).splitlines():
                    (people.add if row[0] == "+" else people.discard)(row[1:])
            self.people = people


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    monkeypatch.setenv("OPENAUDIENCE_EXPORT_RETRY_SECONDS", "60")
    made = Office(
        tmp_path / "office",
        {"destinationType": "BULK_TRAIT", "mappings": [], "incrementalSchedule": "24h", "fullSchedule": "7d"},
    )
    yield made
    made.close()


@pytest.mark.rule("OB-67", "OB-76", "OB-77", "OB-209", "OB-210", "OP-60")
@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 5))])
def test_histories(seed: int, office: Office) -> None:
    history(random.Random(seed), office, 120)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 140))
def test_many_histories(seed: int, office: Office) -> None:
    history(random.Random(seed), office, 120)


def history(draw: random.Random, office: Office, steps: int) -> None:
    audience, recipient = Audience(draw), Recipient()
    truth: set[str] | None = None

    def trouble(name: str) -> None:
        chance = draw.random()
        if chance < rough * 0.2:
            raise Dead
        if chance < rough * 0.8:
            raise DeliveryFailed("the server hung up")

    office.receivers[1].trouble = trouble
    outcomes: set[str] = set()
    for _ in range(steps):
        office.product.now += timedelta(hours=draw.choice((1, 5, 24)))
        audience.people ^= set(draw.sample("abcdefgh", draw.randrange(5)))
        rough = draw.choice((0.0, 0.0, 0.5, 1.2))
        audience.deaths = rough / 4
        runner = office.make_runner(generate=audience.generate)
        act = draw.randrange(5)
        try:
            if act == 0:
                runner.enter([7301], draw.choice(("iter", "full")))
            elif act == 1 and (runs := office.documents()):
                runner.enter_again(draw.choice(runs[: draw.choice((3, len(runs)))])["runId"])
            else:
                runner.enter_due()
        except InputError:
            outcomes.add("refused")
        while runner.register.unfinished():
            try:
                runner.work(7301)
            except Dead:
                outcomes.add("died")
                runner = office.make_runner(generate=audience.generate)
                rough = min(rough, draw.choice((0.0, 0.5)))
            recipient.look(office)
            if draw.random() < 0.1:
                runner.tidy()
        held = runner.register.baseline(7301)
        if held:
            folder = office.site.environment.exports / "7301" / str(held)
            truth = set(json.loads((folder / "baseline" / "state").read_text()))
            assert recipient.people == truth, "the recipient has what the next run builds on"
        outcomes.update(row["status"] for row in office.documents())
    assert outcomes == {"refused", "died", "delivered", "failed"}, "the history has seen everything"
    # calm at last: one run brings everything up to date
    rough = audience.deaths = 0.0
    office.product.now += timedelta(hours=1)
    runner = office.make_runner(generate=audience.generate)
    runner.finish(runner.enter([7301], "iter"))
    recipient.look(office)
    assert recipient.people == audience.people
