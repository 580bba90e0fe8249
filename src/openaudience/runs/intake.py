"""The intake: what lies whole in a drop-off becomes a waiting file in the ledger, exactly once (IN-05 … IN-08).

copy durably → one transaction enters what was copied → the applier takes it → its door lets it go.
A crash before the transaction leaves copies that nobody knows, which start-up deletes; after it the ledger knows the
very content that lay there and never takes it again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from sqlalchemy import select
from sqlalchemy.orm import Session

from openaudience.catalog.ledger import FileRow
from openaudience.dropoff.doors import Delivery, DeliveryChanged, Door
from openaudience.dropoff.paths import printable
from openaudience.errors import FileRejected, StoreUnavailable
from openaudience.inbound.filenames import parse_name
from openaudience.runs import faults
from openaudience.runs.dropping import SET_ASIDE, folder_of
from openaudience.runs.site import DROPS, Site

MOST_FILES = 5_000
MOST_BYTES = 2 << 30
"""What is entered together: few large files, or many small ones; an ID sync must not come after the data it serves."""
SOME = 400
"""Paths asked for in one query."""
LONGEST_NAME = 200

Key = tuple[str, str]


class Intake:
    """Takes files from the doors of one environment. One object a thread; several may work on one home."""

    def __init__(self, site: Site, doors: Sequence[Door], now: Callable[[], float]) -> None:
        self._site = site
        self._doors = doors
        self._now = now
        self._known: dict[str, set[Key]] = {door.name: set() for door in doors}

    def round(self) -> int:
        """Looks at every door once; gives the number of files taken. Raises ``StoreUnavailable``."""
        return sum(self._round(door) for door in self._doors)

    def _round(self, door: Door) -> int:
        partners = {partner.name: partner.pid for partner in self._site.catalog.partners()}
        there = list(door.look(partners))
        known = self._which_are_known(door, there)
        new = [one for one in there if _key(one) not in known and self._ready(door, one)]
        taken = 0
        for some in _portions(sorted(new, key=_order)):
            taken += self._take(door, some)
        # what is not there any more need not be remembered here: the ledger does
        self._known[door.name] = known
        pending = self._pending(door)
        for one in there:
            key = _key(one)
            if key in known and key not in pending:
                door.release(one)
        return taken

    def _ready(self, door: Door, delivery: Delivery) -> bool:
        """A file whose name means nothing may be about to be renamed: it is left alone for a moment."""
        if not door.settles or delivery.refusal is not None:
            return True
        try:
            parse_name(delivery.name)
        except FileRejected:
            return self._now() - delivery.since >= self._site.settings.dropoff.settle_seconds
        return True

    def _which_are_known(self, door: Door, there: Sequence[Delivery]) -> set[Key]:
        remembered = self._known[door.name]
        keys = {_key(one) for one in there}
        known = keys & remembered
        unsure = sorted({path for path, _ in keys - known})
        with self._site.reading() as session:
            known |= keys & self._in_ledger(session, door, unsure)
        return known

    def _in_ledger(self, session: Session, door: Door, paths: Sequence[str]) -> set[Key]:
        found: set[Key] = set()
        for begin in range(0, len(paths), SOME):
            query = select(FileRow.path, FileRow.stamp).where(
                FileRow.environment == self._site.name,
                FileRow.door == door.name,
                FileRow.path.in_(paths[begin : begin + SOME]),
            )
            found.update((str(path), str(stamp)) for path, stamp in session.execute(query))
        return found

    def _pending(self, door: Door) -> set[Key]:
        """What was taken and has no receipt yet."""
        query = select(FileRow.path, FileRow.stamp).where(
            FileRow.environment == self._site.name,
            FileRow.door == door.name,
            FileRow.state.in_(("waiting", SET_ASIDE)),
        )
        with self._site.reading() as session:
            return {(str(path), str(stamp)) for path, stamp in session.execute(query)}

    def _take(self, door: Door, deliveries: Sequence[Delivery]) -> int:
        site = self._site
        # a start-up of another process may not take these copies for left-overs before the ledger knows them
        with site.dropping():
            drop_id = site.number(DROPS)
            rows: list[FileRow] = []
            failure: StoreUnavailable | None = None
            for place, delivery in enumerate(deliveries):
                name = printable(delivery.name)
                target = folder_of(site, drop_id, place) / stored_name(name)
                try:
                    digest, size = door.fetch(delivery, target)
                except DeliveryChanged:
                    shutil.rmtree(target.parent, ignore_errors=True)
                    continue
                except StoreUnavailable as unavailable:
                    # what came before it in the order is whole and counts; half a copy must not fill the disk
                    shutil.rmtree(target.parent, ignore_errors=True)
                    failure = unavailable
                    break
                faults.reach("file-copied")
                path, stamp = _key(delivery)
                rows.append(
                    FileRow(
                        environment=site.name,
                        state="waiting",
                        drop_id=drop_id,
                        name=stored_name(name),
                        partner=delivery.partner,
                        pid=delivery.pid,
                        digest=digest,
                        size=size,
                        waiting_path=str(target.relative_to(site.folder)),
                        dropped=site.now(),
                        door=door.name,
                        path=path,
                        stamp=stamp,
                        refusal=None if delivery.refusal is None else json.dumps(delivery.refusal),
                    )
                )
            faults.reach("dropped")
            with site.writing() as session:
                # another process may look at the same door
                there = self._in_ledger(session, door, sorted({str(row.path) for row in rows}))
                mine = [row for row in rows if (row.path, row.stamp) not in there]
                theirs = [row.waiting_path for row in rows if (row.path, row.stamp) in there]
                taken = len(mine)
                session.add_all(mine)
            for copy in theirs:
                shutil.rmtree((site.folder / copy).parent, ignore_errors=True)
            if failure is not None:
                raise failure
            return taken


def stored_name(name: str) -> str:
    """A name that a file system takes, with room for endings; what is longer is no valid name anyway."""
    if name in ("", ".", ".."):
        # names of folders; a store of objects takes them as names of files
        return "\N{REPLACEMENT CHARACTER}"
    encoded = name.encode()
    if len(encoded) <= LONGEST_NAME:
        return name
    return encoded[:LONGEST_NAME].decode("utf-8", "ignore") + "…"


def _key(delivery: Delivery) -> Key:
    return printable(delivery.path), delivery.stamp


def _order(delivery: Delivery) -> tuple[object, ...]:
    """ID syncs first, then by TIMESTAMP (IN-08), so that what is entered together is not torn apart wrongly."""
    try:
        name = parse_name(delivery.name)
    except FileRejected:
        return (2, (), delivery.path, delivery.stamp)
    return (int(name.category == "data"), name.order, delivery.path, delivery.stamp)


def _portions(deliveries: Iterable[Delivery]) -> Iterator[list[Delivery]]:
    waiting = iter(deliveries)
    while some := list(islice(waiting, 1)):
        size = some[0].size
        for delivery in waiting:
            some.append(delivery)
            size += delivery.size
            if len(some) >= MOST_FILES or size >= MOST_BYTES:
                break
        yield some
