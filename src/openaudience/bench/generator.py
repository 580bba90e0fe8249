"""Data shaped like the reference's sample receipt, from a seed (OP-50).

That receipt: 22.6 signals a record, 72 % of the signals unused, 66 % of the records realize nothing. So the third
of the records that realizes something is made almost wholly of used signals. Signals follow a zipf-like law.
Two forms: ``coded`` (``10234,173,…``) and ``key-value`` (``"color07"="v042",…``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
from isal import igzip
from numpy.typing import NDArray

Form = Literal["coded", "key-value"]
FORMS: tuple[Form, ...] = ("coded", "key-value")
RECORDS: dict[Form, int] = {"coded": 2_000_000, "key-value": 1_000_000}
"""Records at size 1: about 45 M and 22 M signals."""

PARTNER = 1001
ID_SOURCE = 5001
TARGETS: dict[Form, int] = {"coded": 5001, "key-value": 5002}
FIRST_SID: dict[Form, int] = {"coded": 100_001, "key-value": 200_001}
TRAITS = 2_000
UNUSED = 200_000

SIGNALS_A_RECORD = 22.6
REALIZING = 0.34
# A realizing record has one used signal for certain, its other 21.6 with this chance: 0.28 of all signals in total.
USED_CHANCE = (0.28 / REALIZING * SIGNALS_A_RECORD - 1) / (SIGNALS_A_RECORD - 1)

# The package has no types of its own.
_opened: Any = igzip.open
_CHUNK = 100_000
_PART = 4
"""Sizes above 4 are written as several splits, as no file may be over 5 GB uncompressed (IN-20)."""


@dataclass(slots=True)
class Figures:
    """What the receipt of generated files must say, and how large they are uncompressed (``text_bytes``)."""

    records_received: int = 0
    total_signals: int = 0
    total_unused_signals: int = 0
    no_trait_realized: int = 0
    total_realized_traits: int = 0
    text_bytes: int = 0

    def add(self, other: Figures) -> None:
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))


def tokens(form: Form) -> list[str]:
    """The raw signals of a form: the ``TRAITS`` used ones first, then the ``UNUSED``."""
    if form == "coded":
        used = [str(10_000 + number) for number in range(TRAITS)]
        return used + [str(100_000 + number) for number in range(UNUSED)]
    used = [f'"color{number % 40:02d}"="v{number // 40:03d}"' for number in range(TRAITS)]
    return used + [f'"item{number % 400:03d}"="w{number // 400:04d}"' for number in range(UNUSED)]


def rule(form: Form, number: int) -> str:
    """The trait rule that used signal ``number`` fulfils."""
    if form == "coded":
        return f'ic == "{10_000 + number}"'
    return f'color{number % 40:02d} == "v{number // 40:03d}"'


def workspace() -> str:
    """A workspace file (JSON) with the data sources and the 2,000 traits of each form."""
    traits = [
        {
            "sid": FIRST_SID[form] + number,
            "name": f"{form.replace('-', ' ')} {number}",
            "traitType": "ON_BOARDED_TRAIT",
            "dataSourceId": TARGETS[form],
            "traitRule": rule(form, number),
        }
        for form in FORMS
        for number in range(TRAITS)
    ]
    sources = [
        {"dataSourceId": 5001, "name": "Bench, coded", "idType": "COOKIE"},
        {"dataSourceId": 5002, "name": "Bench, key-value", "idType": "COOKIE"},
    ]
    return json.dumps({"partners": [{"pid": PARTNER, "name": "bench", "dataSources": sources, "traits": traits}]})


def _digits(values: NDArray[np.uint64], width: int) -> NDArray[np.uint8]:
    """Decimal digits of each value, zero-padded: shape (n, width)."""
    out = np.empty((len(values), width), np.uint8)
    rest = values.copy()
    for column in range(width - 1, -1, -1):
        rest, digit = np.divmod(rest, np.uint64(10))
        out[:, column] = digit + np.uint8(48)
    return out


def user_ids(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The user IDs of users 0, 1, 2 …: ``u`` and ten digits without order; shape (n, 11)."""
    scattered = (numbers.astype(np.uint64) * np.uint64(7_368_787) + np.uint64(1_234_567_891)) % np.uint64(10**10)
    out = np.empty((len(numbers), 11), np.uint8)
    out[:, 0] = ord("u")
    out[:, 1:] = _digits(scattered, 10)
    return out


class _Zipf:
    """Ranks 0 … n−1 with chance ∝ 1 / (rank + 10)."""

    def __init__(self, size: int) -> None:
        weights = 1.0 / (np.arange(size) + 10.0)
        self._upto = np.cumsum(weights) / weights.sum()

    def draw(self, rng: np.random.Generator, number: int) -> NDArray[np.int64]:
        return np.minimum(np.searchsorted(self._upto, rng.random(number)), len(self._upto) - 1)


class Lines:
    """Makes the lines of data files of one form, chunk by chunk."""

    def __init__(self, form: Form, known: int, seed: int) -> None:
        self._known = known
        self._rng = np.random.default_rng([seed, FORMS.index(form)])
        pieces = [f"{token},".encode() for token in tokens(form)]
        self._blob = np.frombuffer(b"".join(pieces), np.uint8)
        self._lengths = np.array([len(piece) for piece in pieces], np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._used = _Zipf(TRAITS)
        self._unused = _Zipf(UNUSED)

    def chunk(self, records: int) -> tuple[NDArray[np.uint8], Figures]:
        """The bytes of ``records`` lines, and what they count."""
        rng = self._rng
        counts = 1 + rng.poisson(SIGNALS_A_RECORD - 1, records)
        signals = int(counts.sum())
        firsts = np.cumsum(counts) - counts
        record = np.repeat(np.arange(records), counts)
        realizing = rng.random(records) < REALIZING
        used = realizing[record] & (rng.random(signals) < USED_CHANCE)
        used[firsts[realizing]] = True
        used_number = int(used.sum())
        token = np.empty(signals, np.int64)
        token[used] = self._used.draw(rng, used_number)
        token[~used] = TRAITS + self._unused.draw(rng, signals - used_number)

        # One piece an ID (with its TAB) and one a signal (with its comma), gathered from one blob in one go.
        ids = np.empty((records, 12), np.uint8)
        ids[:, :11] = user_ids(rng.integers(0, self._known, records))
        ids[:, 11] = ord("\t")
        blob = np.concatenate((self._blob, ids.ravel()))
        starts = np.empty(signals + records, np.int64)
        lengths = np.empty(signals + records, np.int64)
        id_places = firsts + np.arange(records)
        places = np.arange(signals) + record + 1
        starts[id_places] = len(self._blob) + 12 * np.arange(records)
        lengths[id_places] = 12
        starts[places] = self._starts[token]
        lengths[places] = self._lengths[token]
        ends = np.cumsum(lengths)
        out = blob[np.repeat(starts - (ends - lengths), lengths) + np.arange(int(ends[-1]))]
        line_ends = ends[np.append(id_places[1:] - 1, signals + records - 1)]
        out[line_ends - 1] = ord("\n")

        pairs = np.unique(record[used] * TRAITS + token[used])
        return out, Figures(
            records_received=records,
            total_signals=signals,
            total_unused_signals=signals - used_number,
            no_trait_realized=records - int(realizing.sum()),
            total_realized_traits=len(pairs),
            text_bytes=len(out),
        )


def data_names(form: Form, timestamp: int, parts: int) -> list[str]:
    """File names of a batch: IDs of 5001, traits of the form's target."""
    target = TARGETS[form]
    stem = f"ftp_dpm_{ID_SOURCE}_{timestamp}" if target == ID_SOURCE else f"ftp_dpm_{ID_SOURCE}_{target}_{timestamp}"
    return [f"{stem}.sync.gz"] if parts == 1 else [f"{stem}.sync.{part}.gz" for part in range(1, parts + 1)]


def write_data(
    folder: Path, form: Form, size: int, known: int, seed: int, records: int | None = None
) -> tuple[list[Path], Figures]:
    """Write the gzip files of ``size`` × the form's records (or × ``records``) for users below ``known``."""
    base = RECORDS[form] if records is None else records
    lines = Lines(form, known, seed)
    total = Figures()
    paths = []
    parts = -(-size // _PART)
    for name, share in zip(data_names(form, 1_700_000_000, parts), _shares(base * size, parts), strict=True):
        path = folder / name
        with cast(IO[bytes], _opened(path, "wb", compresslevel=1)) as stream:
            for chunk in _chunks(share):
                data, figures = lines.chunk(chunk)
                stream.write(data.data)
                total.add(figures)
        paths.append(path)
    return paths, total


def write_sync(folder: Path, known: int, seed: int) -> Path:
    """Write the ID-sync file that gives each of the ``known`` users a device of its own."""
    path = folder / f"adobe_id_0_{ID_SOURCE}_1600000000.sync"
    rng = np.random.default_rng([seed, len(FORMS)])
    first = 0
    with path.open("wb") as stream:
        for chunk in _chunks(known):
            row = np.empty((chunk, 51), np.uint8)
            for half in (0, 19):
                row[:, half : half + 19] = _digits(rng.integers(0, 10**19, chunk, dtype=np.uint64), 19)
            row[:, 38] = ord("\t")
            row[:, 39:50] = user_ids(np.arange(first, first + chunk))
            row[:, 50] = ord("\n")
            stream.write(row.tobytes())
            first += chunk
    return path


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (part < total % parts) for part in range(parts)]


def _chunks(total: int) -> Iterator[int]:
    for start in range(0, total, _CHUNK):
        yield min(_CHUNK, total - start)
