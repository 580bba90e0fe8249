"""Objects of one environment, read from and written to the catalog's tables, with the history they leave.

A written trait logs changes of its rule (QL-313); a changed TTL or a deletion is noted for the applier (QL-312,
QL-513). Values are taken as checked: ``workspace`` does that.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from openaudience.catalog.expiry import dead_before
from openaudience.catalog.ledger import SampleRow
from openaudience.catalog.schema import (
    AUTOMATIC_TYPES,
    BUILT_IN_TRAIT_TYPES,
    BY_KEY,
    BY_NAME,
    FOLDER_TREES,
    NUMBER_MAX,
    Kind,
)
from openaudience.catalog.tables import (
    DataSourceRow,
    DocumentRow,
    FolderRow,
    ObjectRow,
    PartnerRow,
    RefoldRow,
    RetiredRow,
    RuleVersionRow,
    SequenceRow,
    TraitRow,
)
from openaudience.errors import InputError
from openaudience.vocabulary import GLOBAL_SOURCES

RESERVED_DPIDS = frozenset({0, 4}) | GLOBAL_SOURCES.keys()
"""Numbers that no data source of a partner may have (RT-104)."""

TYPED: dict[str, type[ObjectRow]] = {"partner": PartnerRow, "dataSource": DataSourceRow, "trait": TraitRow}


@dataclass(slots=True)
class Entry:
    """One object: its kind, number, owner and fields as named in the API."""

    kind: Kind
    number: int
    pid: int
    document: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.document.get(self.kind.label) or "")

    @property
    def identity(self) -> int | str:
        """What the API calls it: a number, or the client ID or name of kinds without one."""
        return self.number if self.kind.identifier else self.name

    def clone(self) -> Entry:
        return Entry(self.kind, self.number, self.pid, copy.deepcopy(self.document))


@dataclass(slots=True)
class Collection:
    """All objects of an environment by kind and number, with the next number of every ID space."""

    entries: dict[str, dict[int, Entry]] = field(default_factory=lambda: {name: {} for name in BY_NAME})
    next: dict[str, int] = field(default_factory=dict)
    gone: frozenset[int] = frozenset()
    """DPIDs of deleted data sources."""

    def take(self, sequence: str, first: int = 1) -> int:
        """A fresh number of an ID space. Raises InputError when none is left."""
        number = max(self.next.get(sequence, first), first)
        while sequence == "dpid" and number in RESERVED_DPIDS:
            number += 1
        if number > NUMBER_MAX:
            raise InputError(f"no number is left to assign as {sequence}; give one below {NUMBER_MAX}")
        self.next[sequence] = number + 1
        return number

    def keep(self, sequence: str, number: int) -> None:
        """Notes a number that was given from outside, so that it is never assigned."""
        if number >= self.next.get(sequence, 1):
            self.next[sequence] = number + 1


def milliseconds(instant: datetime) -> int:
    """Epoch milliseconds, as times of the API are (API-52)."""
    return int(instant.timestamp() * 1000)


def read(session: Session, environment: str) -> Collection:
    """Every object of an environment."""
    collection = Collection()
    for name, table in TYPED.items():
        kind = BY_NAME[name]
        columns = select(table.number, table.pid, table.document).where(table.environment == environment)
        for number, pid, document in session.execute(columns.order_by(table.number)):
            collection.entries[name][number] = Entry(kind, number, pid, document)
    for folder in session.scalars(select(FolderRow).where(FolderRow.environment == environment)):
        name = next(kind for kind, tree in FOLDER_TREES.items() if tree == folder.tree)
        collection.entries[name][folder.number] = Entry(BY_NAME[name], folder.number, folder.pid, folder.document)
    rows = select(DocumentRow).where(DocumentRow.environment == environment).order_by(DocumentRow.number)
    for row in session.scalars(rows):
        kind = BY_KEY[row.kind]
        collection.entries[kind.name][row.number] = Entry(kind, row.number, row.pid, row.document)
    for sequence in session.scalars(select(SequenceRow).where(SequenceRow.environment == environment)):
        collection.next[sequence.name] = sequence.next
    gone = select(RetiredRow.number).where(RetiredRow.environment == environment, RetiredRow.kind == "dataSource")
    collection.gone = frozenset(session.scalars(gone))
    return collection


def seed(session: Session, environment: str) -> None:
    """Puts the eight global data sources into an environment that lacks them (RT-120 … RT-127)."""
    query = select(DataSourceRow.number).where(DataSourceRow.environment == environment, DataSourceRow.pid == 0)
    present = set(session.scalars(query))
    for number, name in GLOBAL_SOURCES.items():
        if number in present:
            continue
        document = {
            "name": name,
            "status": "ACTIVE",
            "idType": "DEVICE_ADVERTISING_ID",
            "type": "GENERAL",
            "inboundS2S": True,
            "outboundS2S": False,
            "useAudienceManagerVisitorID": False,
            "marketingCloudVisitorIdVersion": 0,
            "piiGuard": "ids",
            "defaultAuthState": 0,
            "hashedEmails": False,
        }
        session.add(_row(environment, Entry(BY_NAME["dataSource"], number, 0, document), None))


def _row(environment: str, entry: Entry, dead: datetime | None) -> ObjectRow:
    document = entry.document
    common: dict[str, Any] = {
        "environment": environment,
        "number": entry.number,
        "pid": entry.pid,
        "name": entry.name,
        "document": document,
    }
    if entry.kind.name == "partner":
        return PartnerRow(**common)
    if entry.kind.name == "dataSource":
        return DataSourceRow(**common, id_type=document["idType"], active=document["status"] == "ACTIVE")
    if entry.kind.name in FOLDER_TREES:
        return FolderRow(**common, tree=FOLDER_TREES[entry.kind.name], parent=document["parentFolderId"])
    if entry.kind.name == "trait":
        return TraitRow(
            **common,
            dpid=document["dataSourceId"],
            folder=document["folderId"],
            type=document["traitType"],
            rule=document["traitRule"],
            ttl=document["ttl"],
            active=document["status"] == "ACTIVE",
            dead_before=dead,
        )
    return DocumentRow(**common, kind=entry.kind.key)


class Writer:
    """Writes objects of one environment inside a write transaction.

    ``now``: the instant of the changes; ``user``: who made them, for the log of trait rules.
    """

    def __init__(self, session: Session, environment: str, now: datetime, user: str) -> None:
        self.session = session
        self.environment = environment
        self.now = now
        self.user = user
        query = select(RetiredRow).where(RetiredRow.environment == environment)
        self.retired = {(row.kind, row.number): row.at for row in session.scalars(query)}

    def put(self, entry: Entry, old: Entry | None) -> None:
        """Writes a new or changed object; ``old`` is the stored one."""
        dead = self._trait_history(entry, old) if entry.kind.name == "trait" else None
        row = _row(self.environment, entry, dead)
        if old is None:
            self.session.add(row)
        else:
            self.session.merge(row)

    def _trait_history(self, entry: Entry, old: Entry | None) -> datetime | None:
        """Logs what a change of a trait leaves behind and gives its ``dead_before``."""
        document = entry.document
        if old is None:
            document["traitRuleVersion"] = 0
            retired = self.retired.get(("trait", entry.number))
            if retired is not None:
                # The number had another trait before: its log ends, and what it realized stays dead.
                self.session.execute(
                    delete(RuleVersionRow).where(
                        RuleVersionRow.environment == self.environment, RuleVersionRow.sid == entry.number
                    )
                )
            if document["traitType"] not in AUTOMATIC_TYPES:
                self._log_rule(entry, None)
            return retired
        row = self.session.get(TraitRow, (self.environment, entry.number))
        dead = None if row is None else row.dead_before
        if old.document["ttl"] != document["ttl"]:
            past = dead_before(self.now, old.document["ttl"])
            if past is not None and (dead is None or past > dead):
                dead = past
            self.session.merge(RefoldRow(environment=self.environment, sid=entry.number))
        if old.document["traitRule"] != document["traitRule"]:
            document["traitRuleVersion"] = int(old.document["traitRuleVersion"]) + 1
            self._log_rule(entry, old.document["traitRule"])
        return dead

    def _log_rule(self, entry: Entry, old: str | None) -> None:
        self.session.add(
            RuleVersionRow(
                environment=self.environment,
                sid=entry.number,
                version=entry.document["traitRuleVersion"],
                at=self.now,
                user=self.user,
                old=old,
                new=entry.document["traitRule"],
            )
        )

    def remove(self, entry: Entry) -> None:
        """Deletes an object; traits and data sources leave a note of when they ended."""
        name = entry.kind.name
        key: dict[str, Any] = {"environment": self.environment, "number": entry.number}
        table: type[ObjectRow]
        if name in TYPED:
            table = TYPED[name]
        elif name in FOLDER_TREES:
            table, key["tree"] = FolderRow, FOLDER_TREES[name]
        else:
            table, key["kind"] = DocumentRow, entry.kind.key
        row = self.session.get(table, key)
        if row is not None:
            self.session.delete(row)
        if name == "trait":
            self.session.merge(RefoldRow(environment=self.environment, sid=entry.number))
        if name == "dataSource":
            mine = (SampleRow.environment == self.environment) & (SampleRow.data_source == entry.number)
            self.session.execute(delete(SampleRow).where(mine))
        if name in ("trait", "dataSource"):
            self.session.merge(RetiredRow(environment=self.environment, kind=name, number=entry.number, at=self.now))


def keep_sequences(session: Session, environment: str, collection: Collection) -> None:
    """Writes the next numbers; they never go down, so no number is given twice."""
    for name, number in sorted(collection.next.items()):
        row = session.get(SequenceRow, (environment, name))
        if row is None:
            session.add(SequenceRow(environment=environment, name=name, next=number))
        elif row.next < number:
            row.next = number


def trait_types(collection: Collection, pid: int) -> dict[str, int]:
    """Event types a partner's traits may have: name to number; 0 is none (QL-306)."""
    own = {e.name: n for n, e in collection.entries["customerTraitType"].items() if e.pid == pid}
    return BUILT_IN_TRAIT_TYPES | own
