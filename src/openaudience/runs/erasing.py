"""Erasing: what a deletion took out of force leaves the stores, text and rows (RT-1908).

A deletion acts at once (``runs.privacy``); its traces wait until destinations have heard of it, since they are told by
the text of the ID, and thirty days at most. The number of an erased ID stays, and its keys: by them it is opted out for
ever, so no file run again, and no call, can bring it back.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from pyroaring import BitMap
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from openaudience.catalog.ledger import FileRow, LoadRow, MailRow, ReceiptRow
from openaudience.identity.ids import IdIndex, Layer, order_of, renamed
from openaudience.identity.keys import erased, key
from openaudience.identity.mappings import unlink
from openaudience.ordinals import bitmap_of, ordinals_of
from openaudience.runs.applier import Applier
from openaudience.runs.dictionary import folded_keys
from openaudience.runs.loads import GONE, IS_GONE
from openaudience.runs.outcome import decoded
from openaudience.runs.settling import Plan
from openaudience.runs.site import DAY, Lease, Site
from openaudience.runs.upkeep import expired, take_out
from openaudience.runs.world import DEVICES, Draft, ids_name
from openaudience.store.arrays import read_arrays

DELETED, ERASED = "deleted", "erased"
"""Events of the loads of a deletion: what they wiped is still in the stores, or no longer."""
MOST_DAYS = 30
"""A deletion is over after so many days, whatever destinations were told (RT-1905)."""

Owed = Mapping[int, BitMap]
"""By namespace, IDs that some destination believes to be in a segment although they left it."""


@dataclass(frozen=True, slots=True)
class _Deletion:
    load: int
    namespace: int
    at: int
    gone: BitMap


def awaited(site: Site) -> bool:
    """Whether anything deleted is still in the stores."""
    with site.reading() as session:
        query = select(LoadRow.load).where(
            LoadRow.environment == site.name, LoadRow.kind == GONE, LoadRow.event == DELETED
        )
        return session.scalars(query.limit(1)).first() is not None


def deleted_ids(site: Site) -> dict[int, BitMap]:
    """By namespace, IDs that were deleted on request, whether their traces are erased or will be."""
    return _together([*_deletions(site, DELETED), *_deletions(site, ERASED)])


def erase(site: Site, applier: Applier, lease: Lease, owed: Owed) -> dict[str, int]:
    """Erases what was deleted and is owed to no destination any more; gives counts by store.

    A call cut short is repeated from its beginning. Raises ``StoreUnavailable`` when a disk is full.
    """
    ready = [
        one
        for one in _deletions(site, DELETED)
        if not (one.gone & owed.get(one.namespace, BitMap())) or one.at + MOST_DAYS * DAY <= site.now()
    ]
    counts = dict.fromkeys(("ids", "links", "realizations", "touches", "memberships", "calls", "receipts"), 0)
    if not ready:
        return counts
    base, world = site.current()
    draft = Draft(site.generations, base)
    at = site.instant()
    by_namespace = _together(ready)
    named = [
        (namespace, text.decode())
        for namespace, gone in sorted(by_namespace.items())
        for text in world.ids(namespace).names(ordinals_of(gone))
        if not text.startswith(b"\0")
    ]
    counts["calls"] = site.calls.forget(named)
    for namespace, gone in sorted(by_namespace.items()):
        _erase_rows(site, namespace, gone, counts)
        texts = _texts(world.ids(namespace), gone, site.seeds)
        counts["ids"] += _erase_texts(site, namespace, texts)
        _erase_names(site, draft, namespace, texts)
    for name in draft.namespaces("states"):
        dpid = int(name.removeprefix("states/"))
        customers, devices = (ordinals_of(by_namespace.get(one, BitMap())) for one in (dpid, DEVICES))
        draft.put_states(dpid, unlink(draft.states(dpid), customers, devices))
    take_out(draft, expired(draft, site.tables, site.loads(), site.terms().ttl, draft.as_of(), at))
    applier.write_manifest(draft, at)
    with site.writing() as session:
        lease.check(session)
        session.execute(
            update(LoadRow)
            .where(LoadRow.environment == site.name, LoadRow.load.in_([one.load for one in ready]))
            .values(event=ERASED)
        )
        counts["receipts"] = _erase_hints(session, site, {text for _, text in named})
        applier.settler.decide(session, Plan(generation=draft.number), at)
    applier.after_decision()
    shutil.rmtree(site.environment.work / "erase", ignore_errors=True)
    return counts


def erase_awaited(site: Site, owed: Callable[[], Owed]) -> None:
    """``erase`` by hand, if anything deleted is still there."""
    if not site.beta and awaited(site):
        with Lease(site) as lease:
            applier = Applier(site)
            applier.settler.tidy()
            erase(site, applier, lease, owed())


def _deletions(site: Site, event: str) -> list[_Deletion]:
    """Loads of deletions, with whom they wiped."""
    with site.reading() as session:
        query = select(LoadRow.load, LoadRow.namespace, LoadRow.at).where(
            LoadRow.environment == site.name, LoadRow.kind == GONE, LoadRow.event == event
        )
        rows = session.execute(query.order_by(LoadRow.load)).all()
    found = []
    for load, namespace, at in rows:
        assert namespace is not None
        touches = site.tables.scan("touches", namespace, loads=[load]).select("ord").sort("ord").collect()
        found.append(_Deletion(load, namespace, at, bitmap_of(touches["ord"].to_numpy())))
    return found


def _together(deletions: list[_Deletion]) -> dict[int, BitMap]:
    by_namespace: dict[int, BitMap] = {}
    for one in deletions:
        by_namespace[one.namespace] = by_namespace.get(one.namespace, BitMap()) | one.gone
    return by_namespace


def _erase_hints(session: Session, site: Site, texts: set[str]) -> int:
    """Takes IDs out of the case help of receipts, of their mails and of the ledger (IN-64); gives how many receipts."""
    count = 0
    # as JSON has it: a list of pairs that is not empty
    query = select(ReceiptRow).where(ReceiptRow.environment == site.name, ReceiptRow.document.contains('"pairs": [['))
    for row in session.scalars(query) if texts else ():
        document = json.loads(row.document)
        pairs = document["case_help"]["pairs"]
        kept = [pair for pair in pairs if texts.isdisjoint(pair)]
        if len(kept) == len(pairs):
            continue
        count += 1
        document["case_help"]["pairs"] = kept
        row.document = json.dumps(document)
        for mail in session.scalars(select(MailRow).where(MailRow.receipt == row.receipt)):
            for sent, known in pairs:
                if {sent, known} & texts:
                    mail.body = mail.body.replace(f"{sent} ~ {known}", "***")
        for file in session.scalars(select(FileRow).where(FileRow.job == row.job, FileRow.outcome.is_not(None))):
            outcome = decoded(file.outcome)
            outcome.case_pairs = [pair for pair in outcome.case_pairs if texts.isdisjoint(pair)]
            file.outcome = outcome.encoded()
    return count


def _erase_rows(site: Site, namespace: int, gone: BitMap, counts: dict[str, int]) -> None:
    """Whatever the tables say of IDs, but that they are gone and opted out."""
    tables, folder = site.tables, site.scratch("erase")
    ordinals = pl.Series(ordinals_of(gone).astype(np.int64)).implode()
    ords = (gone.min(), gone.max())
    ours = pl.col("ord").is_in(ordinals)
    for table in ("realizations", "memberships", "links"):
        counts[table] += tables.rewrite(table, namespace, ours, folder, ords=ords)
    counts["touches"] += tables.rewrite("touches", namespace, ours & (pl.col("kind") != IS_GONE), folder, ords=ords)
    other_end = (pl.col("to_dpid") == namespace) & pl.col("to_ord").is_in(ordinals)
    counts["links"] += tables.rewrite("links", None, other_end, folder)


def _texts(index: IdIndex, gone: BitMap, seeds: tuple[int, int]) -> dict[int, bytes]:
    """What stands for each text from now on; of those erased already, what stands there."""
    ordinals = ordinals_of(gone)
    return {
        ordinal: text if text.startswith(b"\0") else erased(*key(text, seeds))
        for ordinal, text in zip(ordinals.tolist(), index.names(ordinals), strict=True)
    }


def _erase_texts(site: Site, namespace: int, texts: Mapping[int, bytes]) -> int:
    new = pl.DataFrame(
        {"ord": list(texts), "new": [text.decode() for text in texts.values()]},
        schema={"ord": pl.Int64, "new": pl.String},
    )
    held = pl.col("ord").is_in(pl.Series(list(texts), dtype=pl.Int64).implode()) & ~pl.col("id").str.starts_with("\0")
    return site.tables.rewrite(
        "ids",
        namespace,
        held,
        site.scratch("erase"),
        ords=(min(texts), max(texts)),
        change=lambda rows: rows.join(new, on="ord", how="left", maintain_order="left").with_columns(
            pl.col("new").alias("id")
        ),
    )


def _erase_names(site: Site, draft: Draft, namespace: int, texts: Mapping[int, bytes]) -> None:
    """Writes the layers of a namespace anew without the texts."""
    layers: list[Layer] = []
    for file in draft.layers.get(ids_name(namespace), ()):
        layer = read_arrays(draft.generations.path(file))
        first, count = int(layer["first"][0]), layer["offs"].size - 1
        here = {ordinal: text for ordinal, text in texts.items() if first <= ordinal < first + count}
        layers.append(_renamed(layer, here, site.seeds[0]) if here else layer)
    draft.drop(ids_name(namespace))
    for layer in layers:
        draft.put_ids(namespace, layer)


def _renamed(layer: Layer, texts: Mapping[int, bytes], seed: int) -> Layer:
    new = renamed(layer, texts)
    if "f1" in layer:
        offs = new["offs"].astype(np.int64)
        folded = folded_keys(np.ascontiguousarray(new["blob"]), offs[:-1], np.diff(offs), seed)
        order = order_of(folded)
        new["f1"], new["ford"] = folded[order], (order + np.uint64(layer["first"][0])).astype(np.uint32)
    return new
