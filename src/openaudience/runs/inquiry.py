"""What people ask: profiles, and lists with live populations (OP-16, OP-18); why: ``runs.explaining`` (OP-17)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from pyroaring import BitMap
from sqlalchemy import or_, select

from openaudience.catalog.audience_documents import destination_documents, segment_documents
from openaudience.catalog.audiences import Audiences
from openaudience.catalog.ledger import FileRow, JobRow, LoadRow, SampleRow, evicted
from openaudience.clock import iso
from openaudience.errors import InputError
from openaudience.identity.ecid import to_uuid
from openaudience.identity.formats import aam_reason, expected_form
from openaudience.identity.keys import key
from openaudience.inbound.receipt import REASON_WORDS
from openaudience.inbound.records import ID_TYPES
from openaudience.ordinals import ordinals_of
from openaudience.profiles.folding import FOREVER, Held, expiry
from openaudience.rules.segments import RULE_BASED
from openaudience.runs.applying import utc
from openaudience.runs.loads import (
    BY_CALL,
    CALLS,
    GONE,
    PROVISIONAL,
    Load,
    decided_evaluations,
    loads_in_force,
)
from openaudience.runs.membership import member_namespaces
from openaudience.runs.outcome import decoded
from openaudience.runs.qualified import WorldQualified
from openaudience.runs.receipts import counters_of
from openaudience.runs.sampling import sight
from openaudience.runs.site import DAY, Site
from openaudience.runs.upkeep import Expired, Folder, expired
from openaudience.runs.world import DEVICES, as_of
from openaudience.vocabulary import (
    INVALID_DEVICE_IDS,
    REASON_NUMBER,
    UUID_DPID,
    DataSource,
    IdKind,
    Trait,
)

STORED_TRAITS = ("RULE_BASED_TRAIT", "ON_BOARDED_TRAIT", "ALGO_TRAIT")
"""Traits that facts realise; all others follow from these or from mappings."""


def begun(load: Load) -> int:
    """The instant of a load's first facts (UTC seconds); ``at`` is that of the last."""
    return load.at if load.first is None else load.first


def kind_of(namespace: int) -> str:
    """How the profiles of a namespace are counted (QL-1107)."""
    return "device" if namespace == DEVICES else "cross_device"


@dataclass(frozen=True, slots=True)
class Found:
    """The profile that an ID leads to. ``asked``: the ID's own namespace and ordinal."""

    namespace: int
    ordinal: int
    source: DataSource | None


class Inquiry:
    """One consistent look at an environment: a generation, its loads and the configuration."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.now = site.now()
        with site.looking() as (session, generation, self.world):
            self._as_of = as_of(generation)
            self.loads: list[Load] = loads_in_force(session, site.name)
            self.sources: dict[int, DataSource] = site.catalog.data_sources(session)
            self.audiences: Audiences = Audiences.of(site.catalog, session)
            self.evaluations: list[int] = decided_evaluations(session, site.name)
            self._organisations = {partner.pid: partner.org_id for partner in site.catalog.partners(session)}
        self.traits: Mapping[int, Trait] = self.audiences.traits
        self.terms = site.terms()

    # ---- profiles --------------------------------------------------------------------------------------------

    def find(self, text: str) -> Found:
        """The profile of ``UUID`` or ``DPID:user ID``. Raises InputError if nobody is known by it."""
        dpid_text, colon, ident = text.partition(":")
        if not colon:
            dpid_text, ident = str(UUID_DPID), text
        if not (dpid_text.isascii() and dpid_text.isdigit()) or (not colon and aam_reason(ident) is not None):
            raise InputError(f"{text!r} is no ID: write a 38-digit UUID, or DPID:user ID such as 5001:C-1")
        dpid = int(dpid_text)
        source = self.sources.get(dpid)
        if dpid != UUID_DPID and source is None:
            raise InputError(f"there is no data source {dpid}; `openaudience datasources` lists them")
        if source is not None and source.kind in (IdKind.UUID, IdKind.ECID):
            # its IDs are those of devices themselves, as in column one of its files (IN-35)
            return self._device_of(source, ident)
        ordinal = self.world.ids(dpid).find_one(*key(ident.encode(), self.site.seeds))
        if ordinal >= 0:
            if dpid == UUID_DPID:
                if ordinal in self.world.known():
                    return Found(DEVICES, ordinal, None)
            elif source is not None and source.kind is IdKind.CROSS_DEVICE:
                if self._named(dpid, ordinal):
                    return Found(dpid, ordinal, source)
            else:
                device = self.world.links(dpid).newest(ordinal)
                if device is not None:
                    return Found(DEVICES, device, source)
        what = f"data source {dpid}" if dpid != UUID_DPID else "this installation"
        raise InputError(
            f"nobody is known to {what} as {ident!r}; IDs are compared exactly, letter case and leading zeros included"
        )

    def _named(self, dpid: int, ordinal: int) -> bool:
        """Whether a file or call that counts named a customer since it was last deleted (RT-312).

        Of an undone file (IN-55) only the number of the ID stays.
        """
        tables, here = self.site.tables, (ordinal, ordinal)
        gone = [load.load for load in self.loads if load.kind == GONE and load.namespace == dpid]
        wiped = tables.scan("touches", dpid, ords=here, loads=gone).select("load").collect()["load"].to_list()
        since = max((load.position for load in self.loads if load.load in wiped), default=-1)
        live = {load.load for load in self.loads if load.position > since and load.kind != GONE}
        for rows in (
            tables.scan("touches", dpid, ords=here),
            tables.scan("links", dpid, ords=here),
            tables.scan("links").filter((pl.col("to_dpid") == dpid) & (pl.col("to_ord") == ordinal)),
        ):
            if not live.isdisjoint(rows.select("load").unique().collect()["load"].to_list()):
                return True
        return False

    def _device_of(self, source: DataSource, ident: str) -> Found:
        uuid = ident
        if source.kind is IdKind.ECID and aam_reason(ident) is None:
            uuid = to_uuid(self._organisations.get(source.pid) or "", ident)
        ordinal = self.world.ids(DEVICES).find_one(*key(uuid.encode(), self.site.seeds))
        if ordinal < 0 or ordinal not in self.world.known():
            raise InputError(f"no device is known to data source {source.dpid} as {ident!r}; IDs are compared exactly")
        return Found(DEVICES, ordinal, source)

    def profile(self, text: str) -> dict[str, Any]:
        """A profile as JSON (70 §2)."""
        found = self.find(text)
        one = BitMap([found.ordinal])
        held = self.folder.held(found.namespace, self.now, profiles=one)
        counted = self._frequencies(found, held)
        traits = []
        for sid, first, last in zip(held.sid.tolist(), held.first.tolist(), held.last.tolist(), strict=True):
            trait = self.traits[sid]
            end = expiry(last, trait.ttl)
            third = found.source is not None and found.source.pid not in (0, trait.pid)
            traits.append(
                {
                    "sid": sid,
                    "name": trait.name,
                    "party": "third" if third else "first",
                    "first_realized": iso(utc(first)),
                    "last_realized": iso(utc(last)),
                    "frequency": counted[sid] if trait.type == RULE_BASED else 1,
                    "expires": None if trait.ttl == 0 else iso(utc(end)),
                }
            )
        joined = self.memberships(found)
        return {
            "uuid": self._uuid(found),
            "ids": list(self._ids(found)),
            "traits": traits,
            "segments": sorted(joined),
            "memberships": [
                {"sid": sid, "name": self.audiences.segments[sid].name, "joined": iso(utc(at))}
                for sid, at in sorted(joined.items())
            ],
        }

    def _frequencies(self, found: Found, held: Held) -> dict[int, int]:
        """Realisations of each trait that a profile holds, since its present stay began (QL-512)."""
        began = pl.DataFrame({"sid": held.sid, "first": held.first})
        instants = pl.DataFrame(
            {"load": [load.load for load in self.loads], "load_at": [load.at for load in self.loads]},
            schema={"load": pl.Int64, "load_at": pl.Int64},
        )
        rows = (
            self.site.tables.scan("realizations", found.namespace, ords=(found.ordinal, found.ordinal))
            .filter(pl.col("op") > 0)
            .select(pl.col("sid").cast(pl.Int64), "load", "n", pl.col("last_at").dt.epoch("s").alias("at"))
            .join(instants.lazy(), on="load")
            .join(began.lazy(), on="sid")
            .filter(pl.coalesce("at", "load_at") >= pl.col("first"))
            .group_by("sid")
            .agg(pl.col("n").sum())
            .collect()
        )
        return dict(rows.iter_rows())

    def memberships(self, found: Found) -> dict[int, int]:
        """The segments that a profile is a member of, and when it joined each (UTC seconds; QL-901, QL-910)."""
        rows = (
            self.site.tables.scan("memberships", found.namespace, ords=(found.ordinal, found.ordinal))
            .filter(pl.col("load").is_in(self.evaluations))
            .select("sid", "op", "load", pl.col("at").dt.epoch("s"))
            .collect()
            .sort("load")
            .unique("sid", keep="last", maintain_order=True)
        )
        return {sid: at for sid, op, _, at in rows.iter_rows() if op > 0 and sid in self.audiences.segments}

    def _uuid(self, found: Found) -> str | None:
        device: int | None = found.ordinal
        if found.namespace != DEVICES:
            device = self.world.links(found.namespace).newest(found.ordinal)
        return None if device is None else self.world.ids(DEVICES).name(device).decode()

    def _ids(self, found: Found) -> Iterator[dict[str, Any]]:
        node = np.array([found.ordinal], np.uint32)
        if found.namespace == DEVICES:
            for dpid, to in self.world.link_namespaces():
                # the IDs of a deleted data source are nobody's (RT-219)
                if to == DEVICES and dpid in self.sources:
                    _, customers, last = self.world.links(dpid).customers(node)
                    yield from self._synced((dpid, DEVICES), dpid, customers.tolist(), last.tolist())
            return
        _, _, synced = self.world.links(found.namespace).devices(node)
        yield {
            "data_source": found.namespace,
            "id": self.world.ids(found.namespace).name(found.ordinal).decode(),
            "last_sync": self._instant((found.namespace, DEVICES), int(synced.max())) if synced.size else None,
        }
        for dpid, to in self.world.link_namespaces():
            if dpid == found.namespace and to != DEVICES and to in self.sources:
                _, emails, last = self.world.links(dpid, to).devices(node)
                yield from self._synced((dpid, to), to, emails.tolist(), last.tolist())

    def _synced(
        self, pair: tuple[int, int], dpid: int, ordinals: list[int], last: list[int]
    ) -> Iterator[dict[str, Any]]:
        names = self.world.ids(dpid)
        for ordinal, order_key in sorted(zip(ordinals, last, strict=True)):
            yield {"data_source": dpid, "id": names.name(ordinal).decode(), "last_sync": self._instant(pair, order_key)}

    def _instant(self, pair: tuple[int, int], order_key: int) -> str:
        """When a mapping of a pair of namespaces was made or renewed: of a call its own instant."""
        load = self._by_position[order_key >> 32]
        at = None
        if load.kind == CALLS:
            rows = self.site.tables.scan("links", pair[0], loads=[load.load]).filter(
                (pl.col("to_dpid") == pair[1]) & (pl.col("seq") == (order_key & 0xFFFFFFFF))
            )
            at = rows.select(pl.col("last_at").dt.epoch("s").max()).collect().item()
        return iso(utc(load.at if at is None else at))

    @cached_property
    def _by_position(self) -> dict[int, Load]:
        return {load.position: load for load in self.loads}

    @cached_property
    def folder(self) -> Folder:
        return Folder(self.site.tables, self.site.rulebook, self.loads, self.terms.ttl, self.terms.dead_before)

    # ---- populations -----------------------------------------------------------------------------------------

    @cached_property
    def _expired(self) -> Expired:
        return expired(self.world, self.site.tables, self.loads, self.terms.ttl, self._as_of, self.now)

    @cached_property
    def qualified(self) -> WorldQualified:
        """Who holds which trait now (QL-504)."""
        return WorldQualified(self.site, self.world, self.loads, self.audiences, self.now, self._expired)

    def populations(self) -> dict[int, dict[str, int]]:
        """Live population of each trait: devices, and customer profiles (QL-1106)."""
        out = {sid: {"device": 0, "cross_device": 0} for sid in self.traits}
        made = [sid for sid, trait in self.traits.items() if trait.type not in STORED_TRAITS]
        for namespace in self.qualified.namespaces():
            which = kind_of(namespace)
            # plain traits that nobody ever had are not in the index
            for sid in {*self.world.traits(namespace).sids(), *made}:
                if sid in out:
                    out[sid][which] += len(self.qualified.members(namespace, sid))
                    self.qualified.forget()
        return out

    def segment_members(self, sid: int) -> dict[int, BitMap]:
        """Members of a segment as of its last evaluation (QL-901), by namespace; provisional devices do not count."""
        return {
            namespace: self._counted(namespace, self.world.members(namespace).members(sid))
            for namespace in member_namespaces(self.world)
        }

    def _counted(self, namespace: int, profiles: BitMap) -> BitMap:
        """Without provisional devices (QL-1112)."""
        return profiles - self.world.provisional() if namespace == DEVICES else profiles

    def confirmed(self, namespace: int, rows: pl.LazyFrame) -> pl.LazyFrame:
        """Facts without those of provisional devices (QL-1112); ``rows`` have a column ``ord``."""
        provisional = self.world.provisional()
        if namespace != DEVICES or not provisional:
            return rows
        some = pl.Series(ordinals_of(provisional).astype(np.int64))
        return rows.filter(~pl.col("ord").is_in(some.implode()))

    def called(
        self,
        namespace: int,
        pid: int,
        *,
        begin: int = 0,
        end: int = FOREVER,
        ords: tuple[int, int] | None = None,
    ) -> pl.LazyFrame:
        """Who was in calls of a partner at ``begin`` ≤ t < ``end``: columns ord, at (UTC seconds) and run.

        ``at`` is the instant of the last call that one load says of, on the same UTC day as all of them. ``run`` is the
        number of the evaluation up to which the calls see joins and leaves. Devices that were provisional when calling
        count as soon as they are confirmed (RT-609).
        """
        loads = [
            (load.load, at, load.load if load.evaluation is None else load.evaluation)
            for load in self.loads
            if (load.kind, load.namespace, load.pid) == (CALLS, namespace, pid)
            # a drain that follows a later run bears the instant of that one
            and begin <= (at := min(load.at, (begun(load) // DAY + 1) * DAY - 1)) < end
        ]
        about = pl.DataFrame(loads, schema={"load": pl.Int64, "at": pl.Int64, "run": pl.Int64}, orient="row")
        rows = self.site.tables.scan("touches", namespace, ords=ords, loads=about["load"].to_list())
        return (
            self.confirmed(namespace, rows.filter(pl.col("kind").is_in((BY_CALL, PROVISIONAL))))
            .select(pl.col("ord").cast(pl.Int64), "load")
            .join(about.lazy(), on="load")
            .select("ord", "at", "run")
        )

    def segment_populations(self) -> dict[int, dict[str, int]]:
        """Live population of each segment: member devices, and member customer profiles (QL-1106)."""
        out = {sid: {"device": 0, "cross_device": 0} for sid in self.audiences.segments}
        for namespace in member_namespaces(self.world):
            index, which = self.world.members(namespace), kind_of(namespace)
            for sid in index.sids():
                if sid in out:
                    out[sid][which] += len(self._counted(namespace, index.members(sid)))
        return out

    def trait_documents(self) -> list[dict[str, Any]]:
        """Traits as the API shows them, with their live populations (OP-18)."""
        populations = self.populations()
        return [
            {**document, "population": populations[document["sid"]]} for document in self.site.catalog.trait_documents()
        ]

    def segment_documents(self) -> list[dict[str, Any]]:
        """Segments as the API shows them, with their live populations (OP-18)."""
        populations = self.segment_populations()
        return [
            {**document, "population": populations[document["sid"]]} for document in segment_documents(self.audiences)
        ]

    def destination_documents(self) -> list[dict[str, Any]]:
        """Destinations as the API shows them (OP-18)."""
        with self.site.reading() as session:
            return destination_documents(self.site.catalog, session, self.audiences)

    def source_documents(self) -> list[dict[str, Any]]:
        """Data sources as the API shows them, with the devices mapped to each (RT-221), provisional ones left out, and
        the mappings that newer ones ever pushed out (RT-308)."""
        provisional = ordinals_of(self.world.provisional())
        documents = []
        with self.site.reading() as session:
            counts = evicted(session)
        for document in self.site.catalog.data_source_documents():
            dpid = document["dataSourceId"]
            devices = self.world.links(dpid).mapped_devices()
            synced = int(devices.size) - int(np.isin(provisional, devices).sum())
            gone = counts.get((self.site.name, dpid), 0)
            documents.append({**document, "synced_devices": synced, "evicted_mappings": gone})
        return documents


def job_documents(site: Site) -> list[dict[str, Any]]:
    """Jobs, newest first (70 §2)."""
    with site.reading() as session:
        files: dict[int, list[FileRow]] = {}
        for row in session.scalars(select(FileRow).where(FileRow.environment == site.name).order_by(FileRow.file)):
            if row.job is not None:
                files.setdefault(row.job, []).append(row)
        at = {
            (load.load): load.position
            for load in session.scalars(select(LoadRow).where(LoadRow.environment == site.name))
        }
        out = []
        query = select(JobRow).where(JobRow.environment == site.name, JobRow.visible.is_(True))
        for job in session.scalars(query.order_by(JobRow.job.desc())):
            mine = sorted(files.get(job.job, []), key=lambda row: at.get(row.load or 0, 0))
            counted = [counters_of(decoded(row.outcome)) for row in mine]
            out.append(
                {
                    "job": job.job,
                    "kind": job.kind,
                    "status": job.status,
                    "files": [row.name for row in mine],
                    "data_source": job.data_source,
                    "position": job.position,
                    "at": iso(utc(job.ended)),
                    "received": sum(one.records_received for one in counted),
                    "stored": sum(one.stored_records for one in counted),
                    **({"of_job": job.of_job} if job.of_job is not None else {}),
                }
            )
        return out


def sample_documents(site: Site, data_source: int) -> list[dict[str, Any]]:
    """Error samples of the files of a data source, as target or source of the IDs, newest job first (IN-85, UI-38).

    IDs and values are masked (UI-68). ``offending`` says what is at fault: ``id``, ``signals`` or the ``line``, from
    ``column`` on where that is not 0. ``expected``: the form of device IDs, where one is not of it (UI-67).
    """
    with site.reading() as session:
        query = (
            select(SampleRow, FileRow.name, JobRow.id_data_source)
            .join(FileRow, FileRow.file == SampleRow.file)
            .join(JobRow, JobRow.job == SampleRow.job)
            .where(
                SampleRow.environment == site.name,
                or_(SampleRow.data_source == data_source, JobRow.id_data_source == data_source),
                SampleRow.until > site.now(),
            )
            .order_by(SampleRow.job.desc(), SampleRow.count.desc(), SampleRow.line)
        )
        found = session.execute(query).all()
    documents = []
    for row, name, ids in found:
        seen = sight(row.shown, row.reason)
        document = {
            "job": row.job,
            "file": name,
            "line": row.line,
            "column": row.column,
            "code": row.reason,
            "text": REASON_WORDS[row.reason].text,
            "count": row.count,
            "shown": seen.shown,
            "id": seen.id,
            "signals": seen.signals,
            "offending": seen.offending,
        }
        if REASON_NUMBER[row.reason] in INVALID_DEVICE_IDS:
            document["expected"] = expected_form(_type_of_line(row.shown, ids or 0))
        documents.append(document)
    return documents


def _type_of_line(line: str, dpid: int) -> int:
    """The data source of a device ID: that of the file, unless the line itself names it (IN-35)."""
    before, _, rest = line.partition("\t")
    if "\t" not in rest:
        return dpid
    return ID_TYPES.get(before.lower().encode(), dpid)
