"""Loads in force, as every reader and the applier see them (design 2.1)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from openaudience.catalog.ledger import EvaluationRow, LoadRow
from openaudience.profiles.folding import LoadView
from openaudience.runs.rulebook import Rulebook


@dataclass(frozen=True, slots=True)
class Load:
    """One load: its file, its place and instant (UTC seconds), what it names and by which rules it was read."""

    load: int
    file: int
    position: int
    at: int
    kind: str
    dpid: int
    target: int | None
    namespace: int | None
    overwrite: bool
    batch: int | None
    ruleset: str
    links: bool


def load_of(row: LoadRow) -> Load:
    return Load(
        row.load,
        row.file,
        row.position,
        row.at,
        row.kind,
        row.dpid,
        row.target,
        row.namespace,
        row.overwrite,
        row.batch,
        row.ruleset,
        row.links,
    )


def loads_in_force(session: Session, environment: str) -> list[Load]:
    """All loads in force, in the order of application."""
    query = (
        select(LoadRow).where(LoadRow.environment == environment, LoadRow.in_force.is_(True)).order_by(LoadRow.position)
    )
    return [load_of(row) for row in session.scalars(query)]


def decided_loads(session: Session, environment: str) -> list[int]:
    """Numbers of all loads that were ever in force; rows of any other load do not exist (design 2.1)."""
    query = select(LoadRow.load).where(LoadRow.environment == environment).order_by(LoadRow.load)
    return list(session.scalars(query))


def decided_evaluations(session: Session, environment: str) -> list[int]:
    """Numbers of all evaluations of segments that were decided; only their rows of ``memberships`` exist."""
    query = select(EvaluationRow.load).where(EvaluationRow.environment == environment).order_by(EvaluationRow.load)
    return list(session.scalars(query))


def views(loads: Iterable[Load], rulebook: Rulebook, namespace: int | None = None) -> list[LoadView]:
    """The loads as the fold takes them; ``namespace`` leaves out those that name other profiles."""
    return [
        LoadView(
            load.load,
            load.position,
            load.at,
            load.batch,
            rulebook.get(load.ruleset).owned() if load.overwrite else frozenset(),
        )
        for load in loads
        if load.namespace is not None and (namespace is None or load.namespace == namespace)
    ]


def numbers(loads: Collection[Load]) -> list[int]:
    return [load.load for load in loads]
