"""What a file name means under the present configuration: its layout and the rules its job will use (IN-17, IN-47)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import select

from openaudience.catalog import Partner
from openaudience.catalog.tables import DocumentRow
from openaudience.inbound.filenames import FileName
from openaudience.runs.rulebook import ColumnForm, Ruleset, TraitRule
from openaudience.runs.site import Site
from openaudience.vocabulary import GLOBAL_SOURCES, UUID_DPID, DataSource, Layout, Trait

ONBOARDED = "ON_BOARDED_TRAIT"


@dataclass(frozen=True)
class Configuration:
    """One consistent view of the catalog's configuration."""

    site: Site
    sources: Mapping[int, DataSource]
    partners: Mapping[int, Partner]
    traits: tuple[Trait, ...]
    segments: Mapping[int, frozenset[int]]
    """Segment SIDs by partner."""

    @classmethod
    def of(cls, site: Site) -> Configuration:
        catalog = site.catalog
        with site.reading() as session:
            segments: dict[int, set[int]] = {}
            query = select(DocumentRow.pid, DocumentRow.number).where(
                DocumentRow.environment == site.name, DocumentRow.kind == "segments"
            )
            for pid, sid in session.execute(query):
                segments.setdefault(pid, set()).add(sid)
            return cls(
                site,
                catalog.data_sources(session),
                {partner.pid: partner for partner in catalog.partners(session)},
                tuple(catalog.traits(session=session)),
                {pid: frozenset(sids) for pid, sids in segments.items()},
            )

    @cached_property
    def by_name(self) -> dict[str, Partner]:
        return {partner.name: partner for partner in self.partners.values()}

    def sender(self, name: FileName) -> Partner | None:
        """The owner of the first DPID in the name that is neither 0 nor global (OP-13)."""
        for dpid in (*name.dpids, *([] if name.target is None else [name.target])):
            if dpid != UUID_DPID and dpid not in GLOBAL_SOURCES:
                source = self.sources.get(dpid)
                return None if source is None else self.partners.get(source.pid)
        return None

    def ruleset(self, name: FileName, layout: Layout) -> Ruleset:
        """The snapshot a job of this file uses."""
        target = name.target_dpid
        traits: list[TraitRule] = []
        failing: list[int] = []
        pii_values = layout.pii_values
        if target is not None:
            owner = self.sources[target].pid
            for trait in self.traits:
                if trait.pid != owner:
                    continue
                if trait.dpid == target and trait.type == ONBOARDED:
                    traits.append(TraitRule(trait.sid, trait.active, trait.rule))
                else:
                    failing.append(trait.sid)
            failing.extend(self.segments.get(owner, ()))
        organisations = {}
        for column in layout.columns:
            source = self.sources.get(column.dpid)
            if source is not None and source.pid in self.partners:
                organisations[str(column.dpid)] = self.partners[source.pid].org_id or ""
        limits = self.site.mapping_limits
        return Ruleset(
            form=layout.form,
            columns=[ColumnForm(column.dpid, str(column.kind), column.pii_guard) for column in layout.columns],
            overwrite=layout.overwrite,
            pii_values=pii_values,
            target=target,
            traits=sorted(traits, key=lambda trait: trait.sid),
            failing=sorted(failing),
            limits={
                "devices_per_customer": limits.devices_per_customer,
                "customers_per_device": limits.customers_per_device,
                "cookies": limits.cookies,
                "emails_per_customer": limits.emails_per_customer,
            },
            organisations=organisations,
        )
