"""The files of one export run, and the baseline that holds once they are delivered (40 §5, §8)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from openaudience.catalog.audiences import Destination
from openaudience.errors import SystemFailure
from openaudience.exports.audience import Audience
from openaudience.exports.look import Look
from openaudience.exports.rows import Rows
from openaudience.outbound.filesets import Files, FileSet
from openaudience.outbound.model import FileFormat, RunContext, SyncMode
from openaudience.outbound.sets import (
    Baseline,
    Content,
    delivered,
    full_content,
    iter_content,
    new_pairs,
    write_baseline,
)
from openaudience.outbound.templates import compile_format, default_format
from openaudience.runs.reading import ordered
from openaudience.store.files import Fault, no_fault, replace_file, storing

FILES, BASELINE = "files", "baseline"
"""Folders of a run: what is delivered, and the state it leaves at the recipient."""
ABOUT = "about"


class About(msgspec.Struct, frozen=True):
    """What a baseline's ordinals mean (``Key.name``), and when its run started (UTC ms)."""

    key: str
    started: int


@dataclass(frozen=True, slots=True)
class Generated:
    """A generated run. ``baseline``: folder of the state that its delivery leaves; it holds from then on (OB-67)."""

    files: Files
    baseline: Path
    warnings: tuple[str, ...]

    @property
    def records(self) -> int:
        """Data rows of all parts."""
        return self.files.records


def generate(
    look: Look,
    destination: Destination,
    mode: SyncMode,
    started: int,
    baseline: Path | None,
    folder: Path,
    fault: Fault = no_fault,
) -> Generated:
    """Writes the files of a run into ``folder``, which belongs to the run alone; segments are evaluated already.

    ``started``: UTC milliseconds of the run's start, which is also where ``look`` was judged; ``baseline``: folder of
    the baseline that holds, None if nothing was delivered yet. A call that ends early is repeated from the beginning.
    Raises ``InputError`` for file names that cannot be delivered (OB-183), ``StoreUnavailable`` when the disk refuses.
    """
    audiences = look.audiences
    format = format_of(destination, audiences.format_document(destination.format) if destination.format else None)
    templates = compile_format(format)
    filtered = mode == "full"
    audience = Audience(
        look,
        destination,
        traits=templates.needs.traits,
        by_user=templates.needs.one_row_per_user,
        filtered=filtered,
    )
    warnings = [f"{len(audience.unhashed)} IDs are no SHA-256 hashes and were left out"] if audience.unhashed else []
    before, note = _before(baseline, audience)
    warnings += note
    run = _context(look, destination, mode, started)
    content, pairs = _content(audience, mode, before)
    rows = Rows(audience, templates.needs, content, before)
    if destination.type == "BULK_ID" and not templates.needs.one_row_per_user:
        batches = rows.pair_batches(pairs)
    else:
        batches = rows.batches()
    files = FileSet(folder / FILES, format, lambda split: templates.file_name(run, split), templates.header(run))
    written = files.write(ordered(partial(templates.rows, run), batches, 1), fault)
    fault("export.files")
    _write_baseline(folder / BASELINE, audience, before, started, fault)
    fault("export.baseline")
    return Generated(written, folder / BASELINE, tuple(warnings))


def format_of(destination: Destination, document: Mapping[str, Any] | None) -> FileFormat:
    """The file format of a destination; the default one if it names none (OB-24, OB-113)."""
    if document is None:
        return default_format(destination.type)
    names = {
        "file_name": "fileName",
        "max_file_size": "maxFileSize",
        "timestamp_digits": "timestampDigits",
        "skip_empty": "skipEmpty",
        "info_receipt": "infoReceipt",
        "md5_receipt": "md5Receipt",
    }
    given = {one.name: document.get(names.get(one.name, one.name)) for one in fields(FileFormat)}
    return FileFormat(**{name: value for name, value in given.items() if value is not None})


def _context(look: Look, destination: Destination, mode: SyncMode, started: int) -> RunContext:
    return RunContext(
        sync_type=_sync_type(look, destination),
        sync_mode=mode,
        order_id=destination.number,
        dpid=destination.target,
        master_dpid=destination.user_id_key,
        pid_alias=destination.alias,
        pid=destination.pid,
        started=started,
    )


def _sync_type(look: Look, destination: Destination) -> str:
    """OB-90, OB-205."""
    if destination.server is None:
        return "ftp"
    server = look.audiences.server_document(destination.server)
    text: str | None = server.get("syncTypeText")
    return text or {"S3": "s3", "HTTP": "http"}.get(server["type"], "ftp")


def _before(folder: Path | None, audience: Audience) -> tuple[Baseline, list[str]]:
    """The baseline as far as this run builds on it."""
    if folder is None:
        return Baseline(), []
    try:
        about = msgspec.json.decode((folder / ABOUT).read_bytes(), type=About)
    except (OSError, msgspec.DecodeError) as error:
        raise SystemFailure(
            f"{folder} is not a whole baseline of destination {audience.destination.number}: {error}. "
            "Restore it from a backup; without it nobody knows what the recipient has."
        ) from error
    if about.key != audience.key.name:
        # its ordinals are those of other IDs: what is removed cannot be told under the new key
        return Baseline(), ["the destination exports other IDs than in its last run, so everything is sent as new"]
    return audience.kept(Baseline.open(folder), about.started), []


def _content(audience: Audience, mode: SyncMode, before: Baseline) -> tuple[Content, NDArray[np.uint64]]:
    """What the files say; of ``BULK_ID`` also the pairs."""
    destination = audience.destination
    if destination.type == "BULK_ID":
        pairs = audience.pairs if mode == "full" else new_pairs(audience.pairs, before.pairs)
        users = pairs >> np.uint64(32) if audience.key.by_device else pairs & np.uint64(0xFFFFFFFF)
        return Content(BitMap(np.unique(users.astype(np.uint32))), {}, {}, {}), pairs
    if mode == "full":
        return full_content(audience.segments, audience.traits), audience.pairs
    fresh = new_pairs(audience.pairs, before.pairs) >> np.uint64(32)
    return iter_content(
        audience.segments,
        before,
        audience.traits,
        state=destination.iter_content == "state",
        unsegment=destination.unsegment,
        gained=BitMap(np.unique(fresh.astype(np.uint32))),
    ), audience.pairs


def _write_baseline(folder: Path, audience: Audience, before: Baseline, started: int, fault: Fault) -> None:
    with storing(folder):
        shutil.rmtree(folder, ignore_errors=True)
    about = msgspec.json.encode(About(audience.key.name, started))
    replace_file(folder / ABOUT, lambda file: file.write(about), fault)
    write_baseline(
        folder,
        delivered(audience.segments, before.segments, audience.paused),
        audience.traits,
        audience.pairs,
        fault,
    )
