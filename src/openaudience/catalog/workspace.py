"""Workspace files: the catalog as code. Check, compare, apply, export (OP-30 … OP-37).

Secrets (OP-36) are read when a file is applied and go into a table of their own (``secrets``); the document keeps the
``_env`` or ``_file`` key that names them, with an absolute path. A reference left out keeps the secret (OP-35), an
empty one removes it. Segments, merge rules, derived signals, destinations, users, groups and clients are stored and
checked for form, names, numbers and references only: what they do belongs to the rooms that use them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from openaudience.catalog import objects, secrets
from openaudience.catalog.automatic import automatic
from openaudience.catalog.base import transaction
from openaudience.catalog.checks import check
from openaudience.catalog.document import parse
from openaudience.catalog.facade import Partner, source_view
from openaudience.catalog.ledger import CONFIGURATION, advance
from openaudience.catalog.mapping_states import settle
from openaudience.catalog.migrate import ENVIRONMENTS
from openaudience.catalog.objects import Collection, Entry, milliseconds
from openaudience.catalog.planning import Planner, Source
from openaudience.catalog.schema import FOLDER_TREES, KINDS, PARTNER, Kind
from openaudience.catalog.secrets import Keeper, Place, Reader, Vault
from openaudience.config import LimitsSection
from openaudience.errors import InputError, Mistake, WorkspaceError
from openaudience.vocabulary import GLOBAL_SOURCES, DataSource, Trait

USER = "workspace"
"""Who changed it, in the log of trait rules."""

Difference = tuple["Change", Entry | None, Entry | None]
"""A change with the old and the new object."""

_LOGIN_KEYS = tuple(
    f"{secret}_{way}" for kind in KINDS if kind.login for secret in kind.secrets for way in ("env", "file")
)


@dataclass(frozen=True, slots=True)
class Change:
    """One object that a workspace file creates, updates or deletes. ``id``: its number, or its name."""

    action: str
    kind: str
    id: int | str
    name: str

    def as_json(self) -> dict[str, Any]:
        return {"action": self.action, "kind": self.kind, "id": self.id, "name": self.name}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What changed (once, when it is the same in both environments), and warnings with their places."""

    changes: tuple[Change, ...]
    warnings: tuple[Mistake, ...]


@dataclass(frozen=True, slots=True)
class View:
    """A workspace file as ``validate --against`` needs it, without an installation (OP-12)."""

    sources: dict[int, DataSource]
    traits: list[Trait]
    partners: list[Partner]
    segments: dict[int, int]
    """The partner of each segment."""


def load(paths: Sequence[Path]) -> list[Source]:
    """Reads and parses workspace files. Raises WorkspaceError with the mistakes of all, InputError for no file."""
    sources: list[Source] = []
    mistakes: list[Mistake] = []
    for path in paths:
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}; check the name") from None
        except UnicodeDecodeError as error:
            line = path.read_bytes()[: error.start].count(b"\n") + 1
            mistakes.append(Mistake(str(path), line, 1, "not UTF-8 text; save the file as UTF-8"))
            continue
        try:
            root = parse(text, str(path))
        except WorkspaceError as error:
            mistakes.extend(error.mistakes)
            continue
        sources.append(Source(root, text.split("\n"), path.absolute().parent))
    if mistakes:
        raise WorkspaceError(mistakes)
    return sources


def plan(
    sources: Sequence[Source],
    collection: Collection,
    now: datetime,
    limits: LimitsSection,
    *,
    prune: bool = False,
    reader: Reader | None = None,
) -> tuple[Planner, list[Mistake]]:
    """The plan for one environment and its warnings; ``Planner.mistakes`` tells whether it may be carried out.

    Without a ``reader`` secrets are not looked for.
    """
    planner = Planner(sources, collection, now, prune=prune, reader=reader)
    warnings: list[Mistake] = []
    check(planner, limits, warnings)
    settle(planner)
    return planner, warnings


def diff(
    engine: Engine,
    sources: Sequence[Source],
    now: datetime,
    limits: LimitsSection,
    vault: Vault,
    *,
    environments: Sequence[str] = ENVIRONMENTS,
    prune: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Outcome:
    """What ``apply`` would change, without doing it."""
    reader, keeper = Reader(os.environ if environ is None else environ), Keeper(vault)
    with transaction(engine, write=False) as session:
        return _run(session, sources, now, limits, environments, prune, reader, keeper, write=False)


def apply(
    engine: Engine,
    sources: Sequence[Source],
    now: datetime,
    limits: LimitsSection,
    vault: Vault,
    *,
    environments: Sequence[str] = ENVIRONMENTS,
    prune: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Outcome:
    """Makes the catalog what the files say, in every environment named or in none (OP-31).

    ``vault`` seals secrets; ``environ`` holds the environment variables of ``_env`` keys. Raises WorkspaceError with
    every mistake. With ``prune`` what the files do not name is deleted.
    """
    reader, keeper = Reader(os.environ if environ is None else environ), Keeper(vault)
    if any(key in line for source in sources for line in source.lines for key in _LOGIN_KEYS):
        _hash_ahead(engine, sources, now, environments, prune, reader, keeper)
    with transaction(engine, write=True) as session:
        return _run(session, sources, now, limits, environments, prune, reader, keeper, write=True)


def _hash_ahead(
    engine: Engine,
    sources: Sequence[Source],
    now: datetime,
    environments: Sequence[str],
    prune: bool,
    reader: Reader,
    keeper: Keeper,
) -> None:
    """Works out hashes before the write transaction: a hundred take seconds, in which every other writer would wait."""
    with transaction(engine, write=False) as session:
        plans = [
            (name, Planner(sources, objects.read(session, name), now, prune=prune, reader=reader))
            for name in environments
        ]
        kept = {name: secrets.stored(session, name) for name in environments}
    if any(planner.mistakes for _, planner in plans):
        return
    for name, planner in plans:
        keeper.prepare(planner.secrets, keeper.changed(name, planner.secrets, kept[name]))


def _run(
    session: Session,
    sources: Sequence[Source],
    now: datetime,
    limits: LimitsSection,
    environments: Sequence[str],
    prune: bool,
    reader: Reader,
    keeper: Keeper,
    *,
    write: bool,
) -> Outcome:
    plans: list[tuple[str, Planner]] = []
    mistakes: dict[Mistake, None] = {}
    warnings: dict[Mistake, None] = {}
    for environment in environments:
        stored = objects.read(session, environment)
        planner, found = plan(sources, stored, now, limits, prune=prune, reader=reader)
        mistakes |= dict.fromkeys(planner.mistakes)
        warnings |= dict.fromkeys(found)
        plans.append((environment, planner))
    if mistakes:
        raise WorkspaceError(sorted(mistakes, key=lambda m: (m.file, m.line, m.column)))
    changes: dict[Change, None] = {}
    for environment, planner in plans:
        fresh = keeper.changed(environment, planner.secrets, secrets.stored(session, environment))
        made = compare(planner, fresh)
        # what follows from other objects by itself is not news
        changes |= dict.fromkeys(change for change, old, new in made if not _follows(planner, old or new))
        if write:
            if made:
                advance(session, environment, CONFIGURATION)
            _write(session, environment, planner, made, now)
            keeper.keep(session, environment, planner.secrets, fresh)
    return Outcome(tuple(changes), tuple(warnings))


def _follows(planner: Planner, entry: Entry | None) -> bool:
    """Whether a changed object is one of the platform's own that no file names."""
    return entry is not None and automatic(entry) and (entry.kind.name, entry.number) not in planner.claimed


def compare(planner: Planner, secrets_changed: Set[Place] = frozenset()) -> list[Difference]:
    """The differences a plan makes; deletions last. An object whose secret changed is an update, too."""
    made: list[Difference] = []
    gone: list[Difference] = []
    with_secrets = {(place.kind, place.number) for place in secrets_changed}
    for kind in (PARTNER, *KINDS):
        old, new = planner.old.entries[kind.name], planner.new.entries[kind.name]
        for number, entry in new.items():
            before = old.get(number)
            if before is None:
                made.append((Change("create", kind.name, entry.identity, entry.name), None, entry))
            elif before.document != entry.document or (kind.key, number) in with_secrets:
                made.append((Change("update", kind.name, entry.identity, entry.name), before, entry))
        for number, entry in old.items():
            if number not in new:
                gone.append((Change("delete", kind.name, entry.identity, entry.name), entry, None))
    return made + gone[::-1]


def _write(session: Session, environment: str, planner: Planner, made: list[Difference], now: datetime) -> None:
    stamp = milliseconds(now)
    writer = objects.Writer(session, environment, now, USER)
    for _, old, new in made:
        if new is not None:
            new.document.setdefault("createTime", stamp)
            new.document.setdefault("crUID", 0)
            new.document["updateTime"], new.document["upUID"] = stamp, 0
            writer.put(new, old)
        elif old is not None:
            writer.remove(old)
        entry = new or old
        if entry is not None and old is not None and secrets.holds(entry.kind):
            secrets.forget(session, environment, entry, all_of_it=new is None)
    objects.keep_sequences(session, environment, planner.new)


def exported(engine: Engine, environment: str, now: datetime) -> dict[str, Any]:
    """An environment as a workspace document; applying it there changes nothing. Never holds a secret (OP-36)."""
    with transaction(engine, write=False) as session:
        collection = objects.read(session, environment)
    entries = sorted(collection.entries["partner"].items())
    return {"partners": [_exported_partner(collection, entry, now) for _, entry in entries]}


def as_yaml(document: dict[str, Any]) -> str:
    """A workspace document as the text of a YAML file."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes lists and texts in full each time, without YAML's anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _exported_partner(collection: Collection, partner: Entry, now: datetime) -> dict[str, Any]:
    document = _exported(PARTNER, partner)
    for kind in KINDS:
        mine = (entry for _, entry in sorted(collection.entries[kind.name].items()) if entry.pid == partner.number)
        entries = [entry for entry in mine if not automatic(entry)]
        if not entries:
            continue
        head, _, tail = kind.key.partition(".")
        place = document.setdefault(head, {}) if tail else document
        place[tail or head] = [_exported(kind, entry) for entry in entries]
        if kind.name == "dataSource":
            for exported, entry in zip(place[tail or head], entries, strict=True):
                end = entry.document.get("samplingEndTime")
                exported["samplingEnabled"] = end is not None and milliseconds(now) < end
    return document


def _exported(kind: Kind, entry: Entry) -> dict[str, Any]:
    document: dict[str, Any] = {}
    if kind.identifier:
        document[kind.identifier] = entry.number
    known = set(kind.fields) | {f"{secret}_{way}" for secret in kind.secrets for way in ("env", "file")}
    if kind.name in FOLDER_TREES:
        known.add("parentFolderId")
    for name in [*kind.fields, *sorted(known - set(kind.fields))]:
        value = entry.document.get(name)
        if value is None:
            continue
        if name == "mappings":
            value = [
                {key: inner for key, inner in mapping.items() if inner is not None and key != "activeSince"}
                for mapping in value
            ]
        document[name] = value
    return document


def load_view(path: Path, now: datetime, limits: LimitsSection | None = None) -> View:
    """What a workspace file defines, and the global sources; secrets are not looked for.

    Raises WorkspaceError with every mistake.
    """
    collection = Collection()
    planner, _ = plan(load([path]), collection, now, limits or LimitsSection())
    if planner.mistakes:
        raise WorkspaceError(sorted(dict.fromkeys(planner.mistakes), key=lambda m: (m.file, m.line, m.column)))
    entries = planner.new.entries
    sources = {
        number: DataSource(number, 0, name, id_type="DEVICE_ADVERTISING_ID") for number, name in GLOBAL_SOURCES.items()
    }
    sources |= {
        number: source_view(number, entry.pid, entry.document) for number, entry in entries["dataSource"].items()
    }
    traits = [
        Trait(
            number,
            entry.pid,
            entry.document["dataSourceId"],
            entry.name,
            entry.document["traitType"],
            entry.document["traitRule"],
            entry.document["ttl"],
            entry.document["status"] == "ACTIVE",
        )
        for number, entry in sorted(entries["trait"].items())
        if not automatic(entry)
    ]
    partners = [
        Partner(
            number, entry.name, entry.document.get("orgId"), frozenset(entry.document.get("dataSourceAccess") or ())
        )
        for number, entry in sorted(entries["partner"].items())
    ]
    segments = {number: entry.pid for number, entry in sorted(entries["segment"].items())}
    return View(sources, traits, partners, segments)


__all__ = ["Change", "Outcome", "View", "apply", "as_yaml", "diff", "exported", "load", "load_view", "plan"]
