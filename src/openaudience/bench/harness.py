"""One benchmark run: make the data, prepare an installation, measure everyone, print the table (OP-50, OP-54)."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from openaudience.bench import generator, measure
from openaudience.bench.peers import PEERS, missing
from openaudience.errors import SystemFailure, UsageError

OURS = "ingest"
CHECK = "validate"
RUNNERS: tuple[str, ...] = (OURS, CHECK, *PEERS)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. ``records`` replaces the 2 M and 1 M records of size 1 (for a quick look)."""

    sizes: tuple[int, ...] = (1, 4, 16)
    runs: int = 3
    runners: tuple[str, ...] = RUNNERS
    forms: tuple[generator.Form, ...] = generator.FORMS
    known: int = 1_000_000
    seed: int = 2026
    records: int | None = None

    def checked(self) -> Plan:
        """The same; UsageError names what is wrong and what would do."""
        for runner in self.runners:
            if runner not in RUNNERS:
                raise UsageError(f"bench: there is no peer {runner!r}; choose from {', '.join(RUNNERS)}")
        for form in self.forms:
            if form not in generator.FORMS:
                raise UsageError(f"bench: there is no form {form!r}; choose from {', '.join(generator.FORMS)}")
        for name, values in (("sizes", self.sizes), ("runs", (self.runs,)), ("known", (self.known,))):
            if not values or min(values) < 1:
                raise UsageError(f"bench: {name} must be whole numbers from 1 on")
        return self


@dataclass(frozen=True, slots=True)
class Result:
    """Medians of one runner on one form and size; ``note`` says why there are none."""

    form: str
    size: int
    runner: str
    records: int
    signals: int
    text_bytes: int
    seconds: float | None
    peak: int | None
    note: str = ""


def measure_all(plan: Plan, say: Say) -> list[Result]:
    """Run the whole plan in a temporary folder, which is removed afterwards."""
    plan.checked()
    with tempfile.TemporaryDirectory(prefix="openaudience-bench-") as name:
        folder = Path(name)
        stage = _Stage(folder, plan, say)
        results: list[Result] = []
        for form in plan.forms:
            for size in plan.sizes:
                results.extend(stage.compare(form, size))
        return results


class _Stage:
    """A prepared installation, the helper files of the peers, and the counting of file names already used."""

    def __init__(self, folder: Path, plan: Plan, say: Say) -> None:
        self._folder = folder
        self._plan = plan
        self._say = say
        self._timestamp = 1_700_000_000
        self._environ = {**os.environ, "OPENAUDIENCE_HOME": str(folder / "home")}
        if OURS in plan.runners:
            self._prepare()
        ids = generator.user_ids(pl.int_range(plan.known, eager=True).to_numpy())
        texts = [bytes(row).decode() for row in ids]
        pl.DataFrame({"id": texts, "ord": range(plan.known)}).write_parquet(folder / "ids.parquet")

    def _prepare(self) -> None:
        self._say(
            f"preparing an installation with {self._plan.known:,} known IDs and {generator.TRAITS:,} traits a form"
        )
        (self._folder / "workspace.json").write_text(generator.workspace())
        self._ours("init")
        self._ours("workspace", "apply", str(self._folder / "workspace.json"))
        sync = generator.write_sync(self._folder, self._plan.known, self._plan.seed)
        (receipt,) = json.loads(self._ours("ingest", str(sync), "--json").output)
        if receipt["new_mappings"] != self._plan.known:
            raise SystemFailure(f"bench: the ID sync mapped {receipt['new_mappings']} of {self._plan.known} IDs")
        sync.unlink()
        # What is compiled on first use is compiled now, outside the measurement.
        for form in self._plan.forms:
            few, figures = generator.write_data(self._folder, form, 1, self._plan.known, self._plan.seed, 1_000)
            self._ingest(form, few, figures)

    def _ours(self, *arguments: str) -> measure.Measured:
        program = (sys.executable, "-c", "from openaudience.cli import run; run()")
        return measure.run([*program, *arguments], self._environ)

    def _ingest(self, form: generator.Form, files: Sequence[Path], figures: generator.Figures) -> measure.Measured:
        """Ingest the files under names never used before, and hold the receipt against what was generated."""
        self._timestamp += 1
        names = generator.data_names(form, self._timestamp, len(files))
        fresh = [file.with_name(name) for file, name in zip(files, names, strict=True)]
        for file, link in zip(files, fresh, strict=True):
            os.link(file, link)
        try:
            measured = self._ours("ingest", *map(str, fresh), "--json")
        finally:
            for link in fresh:
                link.unlink()
        receipts = json.loads(measured.output)
        for name, expected in asdict(figures).items():
            if name != "text_bytes" and (found := sum(receipt[name] for receipt in receipts)) != expected:
                raise SystemFailure(f"bench: the receipt says {name} = {found}, generated were {expected}")
        return measured

    def compare(self, form: generator.Form, size: int) -> list[Result]:
        """All runners on one form and size, one after the other, run by run."""
        plan, folder = self._plan, self._folder
        self._say(f"generating {form} × {size}")
        files, figures = generator.write_data(folder, form, size, plan.known, plan.seed, plan.records)
        sids: list[int | None] = [generator.FIRST_SID[form] + number for number in range(generator.TRAITS)]
        used = generator.tokens(form)[: generator.TRAITS]
        pl.DataFrame({"token": used, "sid": sids}).write_parquet(folder / "tokens.parquet")
        spec = folder / "spec.json"
        helper = {name: str(folder / f"{name}.parquet") for name in ("ids", "tokens")}
        spec.write_text(json.dumps({"files": [str(file) for file in files], **helper}))

        taken: dict[str, list[measure.Measured]] = {runner: [] for runner in plan.runners}
        notes = {runner: missing(runner) for runner in plan.runners}
        for turn in range(plan.runs):
            for runner in plan.runners:
                if notes[runner]:
                    continue
                self._say(f"{form} × {size}, run {turn + 1} of {plan.runs}: {runner}")
                taken[runner].append(self._one(runner, form, files, figures, spec))
        for file in files:
            file.unlink()
        return [
            Result(
                form,
                size,
                runner,
                figures.records_received,
                figures.total_signals,
                figures.text_bytes,
                statistics.median(each.seconds for each in taken[runner]) if taken[runner] else None,
                int(statistics.median(each.peak for each in taken[runner])) if taken[runner] else None,
                notes[runner],
            )
            for runner in plan.runners
        ]

    def _one(
        self, runner: str, form: generator.Form, files: Sequence[Path], figures: generator.Figures, spec: Path
    ) -> measure.Measured:
        if runner == OURS:
            return self._ingest(form, files, figures)
        if runner == CHECK:
            return self._ours("validate", *map(str, files), "--json")
        measured = measure.run([sys.executable, "-m", "openaudience.bench.peers", runner, str(spec)])
        counted = json.loads(measured.output.splitlines()[-1])
        expected = {
            "records": figures.records_received,
            "signals": figures.total_signals,
            "used": figures.total_signals - figures.total_unused_signals,
        }
        if any(counted[name] != expected[name] for name in counted):
            raise SystemFailure(f"bench: {runner} counted {counted}, generated were {expected}")
        return measured


def table(results: Sequence[Result]) -> str:
    """A Markdown table a form. Ratios: time of the row ÷ time of our ingest, and ÷ time of the floor."""
    head = "| size | runner | seconds | M signals/s | MB/s | ÷ ingest | ÷ floor | peak memory MB |"
    rule = "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    parts = []
    for form in dict.fromkeys(result.form for result in results):
        chosen = [result for result in results if result.form == form]
        lines = [f"**{form}**", "", head, rule]
        for result in chosen:
            same = {other.runner: other.seconds for other in chosen if other.size == result.size}
            if result.seconds is None or result.peak is None:
                lines.append(f"| {result.size}× | {result.runner} | {result.note} | | | | | |")
                continue
            cells = [
                f"{result.seconds:.2f}",
                f"{result.signals / result.seconds / 1e6:.1f}",
                f"{result.text_bytes / result.seconds / 1e6:.0f}",
                _ratio(result.seconds, same.get(OURS)),
                _ratio(result.seconds, same.get("floor")),
                f"{result.peak / 1e6:.0f}",
            ]
            lines.append(f"| {result.size}× | {result.runner} | {' | '.join(cells)} |")
        sizes = {result.size: result for result in chosen}
        told = ", ".join(f"{size}× = {one.records:,} records, {one.signals:,} signals" for size, one in sizes.items())
        parts.append("\n".join([*lines, "", told]))
    return "\n\n".join(parts) + "\n"


def _ratio(seconds: float, base: float | None) -> str:
    return "" if not base else f"{seconds / base:.2f}"


def documents(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The results for ``--json``."""
    return [asdict(result) for result in results]


def told(plan: Plan) -> str:
    """What was measured, for the sentence about the machine."""
    return f"medians of {plan.runs} runs, {plan.known:,} known IDs, {generator.TRAITS:,} traits, seed {plan.seed}"


def surroundings(what: str, now: datetime) -> str:
    """The sentence that a table needs to be worth anything: machine, versions, date, seed (OP-54)."""
    versions = []
    for package in (
        "openaudience",
        "numpy",
        "numba",
        "polars",
        "pyarrow",
        "pyroaring",
        "deltalake",
        "duckdb",
        "pyspark",
    ):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    python = f"Python {platform.python_version()}"
    return (
        f"{now:%Y-%m-%d %H:%M} UTC; {_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}; "
        f"{python}, {', '.join(versions)}; {what}."
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def record(path: Path, what: str, tables: str, now: datetime) -> None:
    """Append the run to the file of results (OP-54)."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(f"\n## {now:%Y-%m-%d %H:%M} UTC\n\n{surroundings(what, now)}\n\n{tables}")
