"""Loads in force, as every reader and the applier see them (design 2.1)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields

from sqlalchemy import select
from sqlalchemy.orm import Session

from openaudience.catalog.ledger import EvaluationRow, LoadRow
from openaudience.profiles.folding import LoadView
from openaudience.runs.rulebook import Rulebook


@dataclass(frozen=True, slots=True)
class Load:
    """One load: its file, its place and instant (UTC seconds), what it names and by which rules it was read.

    Of calls (kind ``CALLS``): ``file`` 0, ``pid`` the partner concerned, ``first`` and ``at`` the instants of its first
    and last call, ``evaluation`` the number that the evaluation of the same run has or would have. A load of kind
    ``GONE`` says that the profiles it touched are gone (RT-312).
    """

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
    pid: int | None = None
    first: int | None = None
    evaluation: int | None = None


CALLS = "calls"
GONE = "gone"
BY_CALL = 1
"""Kind of ``touches``: a call presented the device, or had the customer ID in state 1."""
IS_GONE = 2
PROVISIONAL = 3
"""Kind of ``touches``: a call made or found a device that counts nowhere until it is presented (RT-609)."""


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
        row.pid,
        row.first,
        row.evaluation,
    )


def loads_in_force(session: Session, environment: str) -> list[Load]:
    """All loads in force, in the order of application."""
    # the columns, not the objects: drains make some hundred loads a day, and every run reads them all
    query = (
        select(*(getattr(LoadRow, field.name) for field in fields(Load)))
        .where(LoadRow.environment == environment, LoadRow.in_force.is_(True))
        .order_by(LoadRow.position)
    )
    return [Load(*row) for row in session.execute(query)]


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
            load.kind == GONE,
        )
        for load in loads
        if load.namespace is not None and (namespace is None or load.namespace == namespace)
    ]


def numbers(loads: Collection[Load]) -> list[int]:
    return [load.load for load in loads]
