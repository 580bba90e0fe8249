"""Generations: which immutable index files are valid together, and which generation readers see (design 2.1, 2.6).

The folder holds layer files, manifests ``gen-N.json`` and ``CURRENT``, whose text names the published manifest.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from openaudience.errors import SystemFailure
from openaudience.store.files import TEMPORARY, Fault, no_fault, replace_file, replace_text, storing

GRACE = timedelta(minutes=10)
"""How long files stay after the generation that names them was replaced: readers may still open them."""


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One manifest. ``layers``: component → its layer files, base first; ``counters``: name → next number;
    ``as_of``: ISO instant up to which expiry is applied; ``table_versions``: Delta table → version;
    ``drained``: the number of the call up to which all are in it."""

    number: int = 0
    layers: dict[str, list[str]] = {}
    counters: dict[str, int] = {}
    as_of: str | None = None
    table_versions: dict[str, int] = {}
    drained: int = 0
    notes: dict[str, str | int | float | bool | None] = {}


class Generations:
    """The generations in one folder, which is created when the first one is written."""

    def __init__(self, folder: Path, fault: Fault = no_fault) -> None:
        self.folder = folder
        self._fault = fault
        self._given: set[str] = set()

    def write(self, generation: Generation) -> None:
        """Writes the manifest durably; readers do not see it before ``publish``.

        A manifest of the same number that was never published is replaced. Raises ``StoreUnavailable``, and
        ``SystemFailure`` when the number is not above the published one or a layer file is missing.
        """
        published = self.current_number()
        if generation.number <= published:
            raise SystemFailure(f"generation {generation.number} cannot be written: {published} is already published")
        for file in sorted({file for files in generation.layers.values() for file in files}):
            if not self.path(file).is_file():
                raise SystemFailure(f"generation {generation.number} names {self.path(file)}, which is not there")
        encoded = msgspec.json.format(msgspec.json.encode(generation), indent=1)
        replace_file(self._manifest(generation.number), lambda file: file.write(encoded))
        self._fault("manifest.written")

    def publish(self, number: int) -> None:
        """Makes a written generation the one that readers see. Repeating it changes nothing.

        Raises ``SystemFailure`` when its manifest is missing or a newer one is published.
        """
        published = self.current_number()
        if number == published:
            return
        if number < published:
            raise SystemFailure(f"generation {number} cannot be published: {published} already is")
        self.load(number)
        manifest = self._manifest(number)
        with storing(manifest):
            # The manifest's time now says when the generation before it was replaced; sweep goes by it.
            os.utime(manifest)
        self._fault("publish.checked")
        replace_text(self.folder / "CURRENT", f"{manifest.name}\n", self._fault)
        self._fault("publish.done")

    def current_number(self) -> int:
        """Number of the published generation; 0 before the first."""
        try:
            name = (self.folder / "CURRENT").read_text("utf-8").strip()
        except FileNotFoundError:
            return 0
        except (OSError, UnicodeDecodeError) as error:
            raise SystemFailure(f"{self.folder / 'CURRENT'} cannot be read: {error}. Restore a backup.") from error
        number = number_of(name)
        if number is None:
            raise SystemFailure(f"{self.folder / 'CURRENT'} names no generation: {name[:40]!r}. Restore a backup.")
        return number

    def current(self) -> Generation:
        """The published generation; an empty one, number 0, before the first."""
        number = self.current_number()
        return self.load(number) if number else Generation()

    def load(self, number: int) -> Generation:
        """A written generation, published or not. Raises ``SystemFailure`` naming a manifest that cannot be used."""
        path = self._manifest(number)
        try:
            generation = msgspec.json.decode(path.read_bytes(), type=Generation)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SystemFailure(f"{path} is no usable manifest: {error}. Restore a backup.") from error
        if generation.number != number:
            raise SystemFailure(f"{path} says it is generation {generation.number}. Restore a backup.")
        return generation

    def path(self, file: str) -> Path:
        """Where a layer file lies."""
        return self.folder / file

    def new_file_name(self, component: str, number: int) -> str:
        """A name for a new layer file of ``component`` (as ``ids/5001``) in generation ``number``: relative to the
        folder, not on disk, and not given before by this object."""
        plain = component.replace("/", "").replace("-", "").replace("_", "")
        if not (plain.isascii() and plain.isalnum()) or "" in component.split("/"):
            raise ValueError(f"{component!r} is no component name: words of letters, digits, '-', '_' between '/'")
        name = f"{component}.{number:08d}"
        again = 1
        while name in self._given or self.path(name).exists():
            again += 1
            name = f"{component}.{number:08d}-{again}"
        self._given.add(name)
        return name

    def sweep(self, keep: Collection[int], now: datetime, grace: timedelta = GRACE) -> list[str]:
        """Deletes what no reader can want any more and returns its names.

        Kept are the published generation, newer ones, those in ``keep`` (a backup's), each that was replaced less
        than ``grace`` before ``now``, the layer files they name, and every file younger than ``grace``. Called between
        runs: layer files of a run that has no manifest yet are kept by their age only.
        """
        oldest = (now - grace).timestamp()
        published = self.current_number()
        numbers = self.numbers()
        kept: set[int] = set()
        successor_time = float("inf")
        for number in reversed(numbers):
            if number >= published or number in keep or successor_time > oldest:
                kept.add(number)
            # An attempt that was never published replaced nothing; only what readers saw counts.
            if number <= published:
                successor_time = self._manifest(number).stat().st_mtime
        wanted = {"CURRENT"}
        for number in kept:
            wanted.add(self._manifest(number).name)
            wanted.update(file for files in self.load(number).layers.values() for file in files)
        deleted: list[str] = []
        dead_manifests = {self._manifest(number).name for number in numbers} - wanted
        for path in sorted(self.folder.rglob("*")) if self.folder.is_dir() else []:
            name = path.relative_to(self.folder).as_posix()
            if name in wanted or not path.is_file():
                continue
            if name in dead_manifests or path.stat().st_mtime < oldest:
                deleted.append(name)
        # Manifests go first: one that is still there names only files that are there.
        for name in sorted(deleted, key=lambda name: (name not in dead_manifests, name)):
            with storing(self.path(name)):
                self.path(name).unlink(missing_ok=True)
            self._fault("sweep.deleted")
        return deleted

    def numbers(self) -> list[int]:
        """Numbers of all manifests in the folder, ascending."""
        found = (number_of(path.name) for path in self.folder.glob("gen-*.json"))
        return sorted(number for number in found if number is not None)

    def _manifest(self, number: int) -> Path:
        return self.folder / f"gen-{number}.json"


def number_of(name: str) -> int | None:
    """The number in a manifest's name, ``None`` for any other file."""
    digits = name.removeprefix("gen-").removesuffix(".json")
    valid = name == f"gen-{digits}.json" and digits.isascii() and digits.isdigit() and not name.endswith(TEMPORARY)
    return int(digits) if valid else None
