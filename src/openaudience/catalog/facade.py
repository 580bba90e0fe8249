"""The catalog of one environment as other rooms see it: transactions, and views of what is configured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session

from openaudience.catalog.base import transaction
from openaudience.catalog.objects import milliseconds
from openaudience.catalog.schema import AUTOMATIC_TYPES
from openaudience.catalog.tables import DataSourceRow, PartnerRow, RefoldRow, RetiredRow, RuleVersionRow, TraitRow
from openaudience.clock import Clock, system_clock
from openaudience.vocabulary import DataSource, Limits, Trait


@dataclass(frozen=True, slots=True)
class Partner:
    """A client company. ``access``: DPIDs of other partners that its files may target (IN-09)."""

    pid: int
    name: str
    org_id: str | None = None
    access: frozenset[int] = frozenset()


class Catalog:
    """What is configured in one environment.

    ``limits`` are the mapping limits of the installation (RT-306). Every method that reads opens its own transaction
    unless it is given a ``session`` of ``reading()`` or ``writing()``. All may raise StoreUnavailable.
    """

    def __init__(
        self, engine: Engine, environment: str, clock: Clock = system_clock, limits: Limits | None = None
    ) -> None:
        self.engine = engine
        self.environment = environment
        self.clock = clock
        self.limits = limits or Limits()

    @contextmanager
    def session(self, *, write: bool = False) -> Iterator[Session]:
        """A session in one transaction; a writing one excludes every other writer from its start to its end."""
        with transaction(self.engine, write=write) as session:
            yield session

    def reading(self) -> AbstractContextManager[Session]:
        """Context manager: a session in a read transaction, one snapshot throughout."""
        return self.session(write=False)

    def writing(self) -> AbstractContextManager[Session]:
        """Context manager: a session in a write transaction, committed at the end of the block."""
        return self.session(write=True)

    @contextmanager
    def _within(self, session: Session | None) -> Iterator[Session]:
        if session is not None:
            yield session
        else:
            with transaction(self.engine, write=False) as own:
                yield own

    def partners(self, session: Session | None = None) -> list[Partner]:
        """All partners by pid."""
        query = select(PartnerRow).where(PartnerRow.environment == self.environment).order_by(PartnerRow.number)
        with self._within(session) as within:
            return [
                Partner(
                    row.number,
                    row.name,
                    row.document.get("orgId"),
                    frozenset(row.document.get("dataSourceAccess") or ()),
                )
                for row in within.scalars(query)
            ]

    def data_sources(self, session: Session | None = None) -> dict[int, DataSource]:
        """All data sources by DPID, the global ones (pid 0) included."""
        query = select(DataSourceRow).where(DataSourceRow.environment == self.environment)
        with self._within(session) as within:
            rows = within.scalars(query.order_by(DataSourceRow.number)).all()
        return {row.number: source_view(row.number, row.pid, row.document) for row in rows}

    def traits(
        self, dpid: int | None = None, session: Session | None = None, *, automatic: bool = False
    ) -> list[Trait]:
        """All traits by sid, or those of one data source; ``automatic``: also those that the platform makes itself."""
        # the columns, not the objects: their documents are large and not needed here
        query = (
            select(
                TraitRow.number,
                TraitRow.pid,
                TraitRow.dpid,
                TraitRow.name,
                TraitRow.type,
                TraitRow.rule,
                TraitRow.ttl,
                TraitRow.active,
            )
            .where(TraitRow.environment == self.environment)
            .order_by(TraitRow.number)
        )
        if dpid is not None:
            query = query.where(TraitRow.dpid == dpid)
        if not automatic:
            query = query.where(TraitRow.type.not_in(AUTOMATIC_TYPES))
        with self._within(session) as within:
            return [Trait(*row) for row in within.execute(query)]

    def dead_before(self, session: Session | None = None) -> dict[int, datetime]:
        """Traits with an instant at or before which nothing last realized is alive any more (QL-513)."""
        query = select(TraitRow.number, TraitRow.dead_before).where(
            TraitRow.environment == self.environment, TraitRow.dead_before.is_not(None)
        )
        with self._within(session) as within:
            return {sid: instant for sid, instant in within.execute(query) if instant is not None}

    def refolds(self, session: Session | None = None) -> frozenset[int]:
        """Traits whose qualifications must be folded anew: TTL changed, or deleted (QL-312, QL-513)."""
        query = select(RefoldRow.sid).where(RefoldRow.environment == self.environment)
        with self._within(session) as within:
            return frozenset(within.scalars(query))

    def settle_refolds(self, sids: Iterable[int], session: Session) -> None:
        """Takes the traits that were folded anew off the list, inside the transaction that published the result."""
        for sid in sorted(sids):
            session.execute(delete(RefoldRow).where(RefoldRow.environment == self.environment, RefoldRow.sid == sid))

    def retired(self, kind: str, session: Session | None = None) -> dict[int, datetime]:
        """Deleted ``trait`` or ``dataSource`` numbers with the instant of their (last) deletion."""
        query = select(RetiredRow).where(RetiredRow.environment == self.environment, RetiredRow.kind == kind)
        with self._within(session) as within:
            return {row.number: row.at for row in within.scalars(query)}

    def trait_documents(self, session: Session | None = None) -> list[dict[str, Any]]:
        """Traits as objects of the API (API-96), ``sid`` first (API-97), ordered by it; without populations."""
        query = select(TraitRow).where(TraitRow.environment == self.environment).order_by(TraitRow.number)
        with self._within(session) as within:
            return [{"sid": row.number, "pid": row.pid, **row.document, "url": None} for row in within.scalars(query)]

    def data_source_documents(
        self, *, globals_too: bool = False, session: Session | None = None
    ) -> list[dict[str, Any]]:
        """Data sources as objects of the API (API-80), ordered by DPID; the global ones on request."""
        query = select(DataSourceRow).where(DataSourceRow.environment == self.environment)
        if not globals_too:
            query = query.where(DataSourceRow.pid != 0)
        now = self.clock()
        with self._within(session) as within:
            rows = within.scalars(query.order_by(DataSourceRow.number)).all()
        return [source_document(row.number, row.pid, row.document, now) for row in rows]

    def rule_versions(self, sid: int, session: Session | None = None) -> list[dict[str, Any]]:
        """The log of a trait's rule, newest first (QL-313, API-94): version, rule, instant (ms), user, old rule."""
        query = select(RuleVersionRow).where(RuleVersionRow.environment == self.environment, RuleVersionRow.sid == sid)
        with self._within(session) as within:
            return [
                {
                    "sid": sid,
                    "traitRuleVersion": row.version,
                    "traitRule": row.new,
                    "oldTraitRule": row.old,
                    "createTime": milliseconds(row.at),
                    "crUID": row.user,
                }
                for row in within.scalars(query.order_by(RuleVersionRow.version.desc()))
            ]


def source_view(dpid: int, pid: int, document: dict[str, Any]) -> DataSource:
    """A data source's document as inbound work sees it."""
    end = document.get("samplingEndTime")
    return DataSource(
        dpid=dpid,
        pid=pid,
        name=document["name"],
        id_type=document["idType"],
        active=document["status"] == "ACTIVE",
        use_aam_id=bool(document.get("useAudienceManagerVisitorID")),
        ecid_version=int(document.get("marketingCloudVisitorIdVersion") or 0),
        pii_guard=document.get("piiGuard") or "ids",
        hashed_emails=bool(document.get("hashedEmails")),
        sampling_until=None if end is None else datetime.fromtimestamp(end / 1000, UTC),
    )


def source_document(dpid: int, pid: int, document: dict[str, Any], now: datetime) -> dict[str, Any]:
    """A data source's document as the API shows it, with the fields that only the server writes (API-80)."""
    end = document.get("samplingEndTime")
    return {
        "dataSourceId": dpid,
        "pid": pid,
        **document,
        "samplingEnabled": end is not None and milliseconds(now) < end,
        "samplingStartTime": document.get("samplingStartTime"),
        "samplingEndTime": end,
        "deviceGraph": False,
        "deviceGraphName": "",
        "customNamespaceId": dpid,
        "containerIds": [],
    }


def mapping_limits(settings: Any) -> Limits:
    """The mapping limits out of the settings' section ``limits`` (RT-306)."""
    return Limits(
        devices_per_customer=settings.devices_per_customer,
        customers_per_device=settings.customers_per_device,
        cookies=settings.cookies,
        emails_per_customer=settings.emails_per_customer,
    )
