"""Opening a dropped or kept file and reading it by its rules: the same for a first run and a re-run (design 2.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from openaudience.errors import FileRejected
from openaudience.identity.ids import IdIndex, build_layer
from openaudience.identity.mappings import LinkIndex
from openaudience.inbound.decode import Block, opened, reject_empty
from openaudience.inbound.filenames import FileName, check_name, parse_name
from openaudience.inbound.memo import Memo
from openaudience.inbound.scan import IdRows, Rows, personal_signal, scan, scan_ids
from openaudience.profiles import gathering
from openaudience.runs.configuration import Configuration
from openaudience.runs.dictionary import OwnDevice
from openaudience.runs.optouts import OptOuts
from openaudience.runs.reading import DataReader, Reading, Sampler, SuspectUsersError, ordered
from openaudience.runs.rulebook import Coder, Ruleset
from openaudience.runs.site import Site
from openaudience.runs.syncing import SyncReader, SyncReading
from openaudience.runs.world import World
from openaudience.vocabulary import Column, FileWarning, IdKind, Layout

MOST_REMEMBERED = 8_000_000
"""Distinct signals that are remembered, of all data sources; a trait weighs as ten, a data source as 10,000."""
MOST_MEANINGS = 10_000
MOST_PREPARED = 8
SMALL_BYTES = 256 << 10
"""A file up to this size, as it was sent, is read in one thread."""

T = TypeVar("T", Rows, IdRows)


@dataclass(frozen=True, slots=True)
class Task:
    """One file to be read: where it lies, its name, the rules, and the load its rows will bear.

    ``partners``: whose opt-outs hold for it (``optouts.concerned``).
    """

    path: Path
    name: FileName
    ruleset: Ruleset
    digest: str
    load: int
    staging: Path
    partners: frozenset[int]


class Reader:
    """Reads files of one environment. What distinct signals mean is remembered between files of equal rules."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._coders: dict[str, tuple[Coder, Memo]] = {}
        self._meanings: dict[str, str] = {}

    def prepare(self, paths: Sequence[Path]) -> None:
        """Loads compiled code and rules that reading these files will need; for while they are being copied.

        Nothing depends on it: what is wrong with a file, or changes until it is read, shows when it is read.
        """
        _load_kernels()
        configuration = Configuration.of(self._site)
        for path in paths[:MOST_PREPARED]:
            try:
                name = parse_name(path.name)
                sender = configuration.sender(name)
                if name.kind != "data" or sender is None:
                    continue
                layout = check_name(name, configuration.sources, sender.pid, sender.access)
            except FileRejected:
                continue
            ruleset = configuration.ruleset(name, layout)
            self._coder(ruleset.digest(), ruleset)

    def _coder(self, digest: str, ruleset: Ruleset) -> tuple[Coder, Memo]:
        """What signals mean to the target's rules, whatever IDs stand beside them."""
        meaning = self._meanings.get(digest)
        if meaning is None:
            if len(self._meanings) >= MOST_MEANINGS:
                self._meanings.clear()
            meaning = self._meanings[digest] = ruleset.meaning()
        found = self._coders.pop(meaning, None)
        if found is None:
            coder = Coder(ruleset)
            found = (coder, Memo(coder, careful=personal_signal if ruleset.pii_values else None))
            while self._coders and sum(map(_weight, self._coders.values())) > MOST_REMEMBERED:
                self._coders.pop(next(iter(self._coders)))
        self._coders[meaning] = found
        return found

    def read_data(
        self,
        task: Task,
        world: World,
        own_device: OwnDevice,
        warnings: list[FileWarning],
        sampler: Sampler | None = None,
    ) -> Reading:
        """Reads a data file against the given world. Raises ``FileRejected``; nothing becomes visible."""
        coder, memo = self._coder(task.digest, task.ruleset)
        layout = task.ruleset.layout()
        seeds = self._site.seeds

        def scan_block(block: Block) -> Rows:
            return scan(block.data, block.first_line, layout, memo, seeds)

        optouts = OptOuts(world, task.partners)
        suspects: NDArray[np.uint8] | None = None
        while True:
            reader = DataReader(
                world=world,
                ruleset=task.ruleset,
                coder=coder,
                load=task.load,
                seeds=seeds,
                staging=task.staging,
                beta=self._site.beta,
                own_device=own_device,
                small=_small(task.path),
                optouts=optouts,
                suspects=suspects,
                sampler=sampler,
            )
            with closing(reader):
                about = self._blocks(task, scan_block, reader.feed)
                try:
                    reading = reader.finish()
                except SuspectUsersError as again:
                    suspects = again.suspects
                    if sampler is not None:
                        sampler.restart()
                    continue
            warnings.extend(about)
            return reading

    def read_sync(self, task: Task, world: World, own_device: OwnDevice, warnings: list[FileWarning]) -> SyncReading:
        """Reads an ID-sync file against the given world. Raises ``FileRejected``; nothing becomes visible."""
        layout = task.ruleset.layout()
        seeds = self._site.seeds

        def scan_block(block: Block) -> IdRows:
            return scan_ids(block.data, block.first_line, layout, seeds)

        reader = SyncReader(
            world=world,
            ruleset=task.ruleset,
            seeds=seeds,
            beta=self._site.beta,
            own_device=own_device,
            optouts=OptOuts(world, task.partners),
        )
        warnings.extend(self._blocks(task, scan_block, reader.feed))
        return reader.finish()

    def _blocks(
        self, task: Task, scan_block: Callable[[Block], T], feed: Callable[[T], None]
    ) -> tuple[FileWarning, ...]:
        seen = 0
        with opened(
            task.path, task.name.ext, limits=self._site.file_limits, gpg=self._site.gpg, work=task.staging
        ) as stream:
            # threads for one block would take longer than what they have to do
            blocks = map(scan_block, stream.blocks()) if _small(task.path) else ordered(scan_block, stream.blocks())
            for rows in blocks:
                seen += len(rows)
                feed(rows)
            if not seen:
                raise reject_empty()
            return stream.warnings


def _weight(remembered: tuple[Coder, Memo]) -> int:
    coder, memo = remembered
    return 10_000 + memo.size + 10 * len(coder.sids)


def _small(path: Path) -> bool:
    return path.stat().st_size <= SMALL_BYTES


def _load_kernels() -> None:
    """Calls the compiled functions of the hot path once, on one line: loading them takes some tenths of a second."""
    layout = Layout("data", (Column(1, IdKind.COOKIE),))
    rows = scan(np.frombuffer(b"a\t1\n", np.uint8), 1, layout, Memo(lambda raw: 1), (1, 2))
    one, flags = np.zeros(1, np.int64), np.zeros(2, np.uint8)
    none, at = np.zeros(0, np.uint32), np.zeros(3, np.int64)
    gathering.count_signals(rows.tok, rows.codes, rows.reason, flags, 1, 255)
    combo = np.full(1, -1, np.int32)
    removes = np.full(2, -1, np.int32)
    stamp = np.full(2, -1, np.int64)
    gathering.qualify(
        rows.tok, rows.codes, one, flags, at, none, removes, combo, one, none, False, stamp, np.zeros(3, np.uint8)
    )
    gathering.gather(np.zeros(1, np.uint32), rows.line, one, np.arange(2, dtype=np.int64), np.zeros(1, np.uint32), 1)
    index = IdIndex([build_layer(0, rows.text, rows.start, rows.length, rows.k1, rows.k2)])
    index.find(rows.k1, rows.k2)
    LinkIndex([]).devices(np.zeros(1, np.uint32))
