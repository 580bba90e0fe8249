"""What is configured, as calls need it: partners by host and organisation, data sources, rule-based traits.

One ``Partners`` is one state of the configuration; it never changes. ``Desk`` gives the present one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sqlalchemy import select

from openaudience.catalog.audiences import Audiences
from openaudience.catalog.ledger import CONFIGURATION, counter
from openaudience.catalog.tables import DataSourceRow, DocumentRow, PartnerRow
from openaudience.errors import RuleError
from openaudience.home import CATALOG
from openaudience.rules.segments import RULE_BASED
from openaudience.rules.traits import Matcher, Node, parse
from openaudience.runs.site import Site
from openaudience.vocabulary import GLOBAL_CODES, GLOBAL_SOURCES, IdKind

Stamp = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A data source as calls see it. ``pid`` 0: a global one. ``kind``: COOKIE, CROSS_DEVICE or DAID.

    ``authenticated``: state 1 of its IDs writes to their own profiles (RT-211, RT-906). ``guard``: IDs that look like
    personal data are refused (RT-1920). ``hashed``: its IDs are hashed e-mails (RT-216).
    """

    dpid: int
    pid: int
    code: str | None = None
    kind: IdKind = IdKind.COOKIE
    active: bool = True
    shared: bool = False
    authenticated: bool = False
    state: int = 0
    guard: bool = True
    hashed: bool = False
    redirect_hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Partner:
    """A client company as calls see it. ``access``: DPIDs of others that it may use where they are shared (RT-210)."""

    pid: int
    name: str
    org: str | None = None
    aliases: tuple[str, ...] = ()
    redirect_hosts: tuple[str, ...] = ()
    referer_hosts: tuple[str, ...] = ()
    access: frozenset[int] = frozenset()
    answers: bool = False
    """``segmentsInAnswers`` (RT-1105)."""
    traits: Mapping[int, int] = field(default_factory=dict)
    """Active rule-based traits: sid → DPID."""
    rules: tuple[tuple[int, Node], ...] = ()
    derived: Mapping[tuple[str, str], tuple[tuple[str, str], ...]] = field(default_factory=dict)
    """Derived signals (QL-1302): source key and value, case folded → target pairs as written."""

    @cached_property
    def matcher(self) -> Matcher:
        """All active rule-based traits with a rule, ready for records (RT-1008)."""
        return Matcher(self.rules)


@dataclass(frozen=True)
class Partners:
    """One state of the configuration of an environment. ``version``: the counter that every save advances."""

    version: int
    partners: Mapping[int, Partner]
    sources: Mapping[int, Source]
    audiences: Audiences

    @cached_property
    def by_alias(self) -> dict[str, Partner]:
        """By alias, in lower case; a name that is no alias of anybody stands for itself."""
        found = {partner.name.lower(): partner for partner in self.partners.values()}
        found.update((alias.lower(), one) for one in self.partners.values() for alias in one.aliases)
        return found

    @cached_property
    def by_org(self) -> dict[str, Partner]:
        return {partner.org: partner for partner in self.partners.values() if partner.org}

    @cached_property
    def _by_code(self) -> dict[str, list[Source]]:
        found: dict[str, list[Source]] = {}
        for source in self.sources.values():
            if source.code:
                found.setdefault(source.code, []).append(source)
        return found

    def code(self, code: str, pid: int | None) -> Source | None:
        """The active data source with an integration code: a partner's, or a global one; with ``pid`` None over all
        partners, None where several have it (RT-107, RT-808). A global one is named by its own code alone (RT-130)."""
        if code in GLOBAL_CODES:
            one = self.sources.get(GLOBAL_CODES[code])
            return one if one is not None and one.active else None
        found = [one for one in self._by_code.get(code, ()) if one.active and (pid is None or one.pid in (0, pid))]
        own = [one for one in found if one.pid == pid]
        chosen = own or found
        return chosen[0] if len(chosen) == 1 else None

    def may_use(self, partner: Partner | None, source: Source) -> bool:
        """Whether a call of a partner may declare IDs of a source (RT-210); without a partner, anybody's (RT-707)."""
        if partner is None or source.pid in (0, partner.pid):
            return True
        return source.shared and source.dpid in partner.access


SETTLED_SECONDS = 0.05
"""A file that was written so lately may be written again without looking any different."""


class Desk:
    """The configuration of one environment, read again when it was saved since."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._read: Partners | None = None
        self._files = [] if site.settings.catalog.url else [site.home.path / f"{CATALOG}{end}" for end in ("", "-wal")]
        self._stamp: Stamp | None = None

    def partners(self) -> Partners:
        """The present state. Raises StoreUnavailable."""
        stamp = self._written()
        if self._read is None or stamp is None or stamp != self._stamp:
            self._ask()
        self._stamp = stamp
        assert self._read is not None
        return self._read

    def _written(self) -> Stamp | None:
        """Differs after every change of a catalog in files; None: nobody can tell, so the catalog is asked.

        Asking takes a millisecond, looking at two files some microseconds.
        """
        found: list[tuple[int, int]] = []
        for file in self._files:
            try:
                status = file.stat()
            except OSError:
                found.append((0, 0))
                continue
            # the machine's own time: that of the files, not of the data
            if abs(time.time() - status.st_mtime) < SETTLED_SECONDS:
                return None
            found.append((status.st_mtime_ns, status.st_size))
        return tuple(found) or None

    def _ask(self) -> None:
        site = self._site
        with site.reading() as session:
            version = counter(session, site.name, CONFIGURATION)
            if self._read is None or self._read.version != version:
                audiences = Audiences.of(site.catalog, session)
                partners = session.scalars(select(PartnerRow).where(PartnerRow.environment == site.name)).all()
                sources = session.scalars(select(DataSourceRow).where(DataSourceRow.environment == site.name)).all()
                derived = session.execute(
                    select(DocumentRow.pid, DocumentRow.document).where(
                        DocumentRow.environment == site.name, DocumentRow.kind == "derivedSignals"
                    )
                )
                pairs: dict[int, list[Mapping[str, Any]]] = {}
                for pid, document in derived:
                    pairs.setdefault(pid, []).append(document)
                self._read = Partners(
                    version,
                    {row.number: _partner(row, audiences, pairs.get(row.number, [])) for row in partners},
                    {row.number: _source(row) for row in sources},
                    audiences,
                )


def _partner(row: PartnerRow, audiences: Audiences, derived: list[Mapping[str, Any]]) -> Partner:
    document = row.document
    traits: dict[int, int] = {}
    rules: list[tuple[int, Node]] = []
    for sid, trait in sorted(audiences.traits.items()):
        if trait.pid != row.number or trait.type != RULE_BASED or not trait.active:
            continue
        traits[sid] = trait.dpid
        if trait.rule:
            try:
                rules.append((sid, parse(trait.rule)))
            except RuleError:
                continue  # of an early version, which did not refuse it
    targets: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {}
    for one in derived:
        key = one["sourceKey"].casefold(), one["sourceValue"].casefold()
        targets[key] = (*targets.get(key, ()), (one["targetKey"], one["targetValue"]))
    return Partner(
        pid=row.number,
        name=row.name,
        org=document.get("orgId"),
        aliases=tuple(document.get("aliases") or ()),
        redirect_hosts=tuple(document.get("redirectHosts") or ()),
        referer_hosts=tuple(document.get("refererHosts") or ()),
        access=frozenset(document.get("dataSourceAccess") or ()),
        answers=bool(document.get("segmentsInAnswers")),
        traits=traits,
        rules=tuple(rules),
        derived=targets,
    )


def _source(row: DataSourceRow) -> Source:
    document = row.document
    daid = row.number in GLOBAL_SOURCES
    cross = row.id_type == "CROSS_DEVICE" and not daid
    return Source(
        dpid=row.number,
        pid=row.pid,
        code=document.get("integrationCode"),
        kind=IdKind.DAID if daid else IdKind.CROSS_DEVICE if cross else IdKind.COOKIE,
        active=row.active,
        shared=bool(document.get("allowDataSharing")),
        authenticated=cross and bool(document.get("supportsAuthenticatedProfile")),
        state=int(document.get("defaultAuthState") or 0),
        guard=(document.get("piiGuard") or "ids") != "off",
        hashed=bool(document.get("hashedEmails")),
        redirect_hosts=tuple(document.get("redirectHosts") or ()),
    )
