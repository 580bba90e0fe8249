"""What ``/metrics`` shows, counted from the ledger every ten seconds; asking costs nothing (OP-41)."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from openaudience import __version__
from openaudience.catalog.exports import ExportRow
from openaudience.catalog.ledger import FileRow, MailRow, ReceiptRow, evicted, seconds
from openaudience.catalog.migrate import ENVIRONMENTS
from openaudience.exports.schedule import lag
from openaudience.home import Home
from openaudience.runs.receipts import decoded
from openaudience.serve.parts import enabled
from openaudience.serve.readiness import free_bytes
from openaudience.serve.state import FOLDER, states

RECEIPTS_AT_ONCE = 500
CLASSES = {
    "received": "records_received",
    "stored": "stored_records",
    "format_errors": "format_errors",
    "invalid_aam_ids": "invalid_aam_ids",
    "invalid_device_ids": "invalid_device_ids",
    "no_matching_aam_ids": "no_matching_aam_ids",
    "no_trait_realized": "no_trait_realized",
}
"""Classes of records, each with its field of the receipt (IN-80)."""

FIGURES = ".figures"
"""End of the names of files in which edge processes tell what they have done since they started."""

Labels = tuple[str, str]


@dataclass(slots=True)
class Numbers:
    """The ledger at one moment. Keys are (environment; state, status, class or DPID)."""

    files: dict[Labels, int] = field(default_factory=dict)
    oldest: dict[str, int] = field(default_factory=dict)
    mails: dict[Labels, int] = field(default_factory=dict)
    exports: dict[Labels, int] = field(default_factory=dict)
    lag: dict[Labels, int] = field(default_factory=dict)
    evicted: Counter[Labels] = field(default_factory=Counter)


class Figures(Collector):
    """Counts the ledger with ``refresh``; ``collect`` shows what was counted last."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._numbers = Numbers()
        self._lock = threading.Lock()
        self._last: dict[str, int] = dict.fromkeys(ENVIRONMENTS, 0)
        self._receipts: Counter[Labels] = Counter()
        self._records: Counter[Labels] = Counter()

    def refresh(self) -> None:
        """Counts what is new. Raises StoreUnavailable."""
        numbers = Numbers()
        with self._home.catalog().reading() as session:
            files = select(FileRow.environment, FileRow.state, func.count())
            for environment, state, count in session.execute(files.group_by(FileRow.environment, FileRow.state)):
                numbers.files[environment, state] = count
            oldest = select(FileRow.environment, func.min(FileRow.dropped)).where(FileRow.state == "waiting")
            numbers.oldest.update(
                (environment, dropped) for environment, dropped in session.execute(oldest.group_by(FileRow.environment))
            )
            mails = select(MailRow.environment, MailRow.state, func.count())
            for environment, state, count in session.execute(mails.group_by(MailRow.environment, MailRow.state)):
                numbers.mails[environment, state] = count
            runs = select(ExportRow.environment, ExportRow.state, func.count())
            for environment, state, count in session.execute(runs.group_by(ExportRow.environment, ExportRow.state)):
                numbers.exports[environment, state] = count
            for (environment, dpid), count in evicted(session).items():
                numbers.evicted[environment, str(dpid)] = count
            now, tick = seconds(self._home.clock()), self._home.settings.export.tick
            for environment in ENVIRONMENTS:
                for destination, late in lag(session, environment, now, tick).items():
                    numbers.lag[environment, str(destination)] = late
        with self._lock:
            self._numbers = numbers
        for environment in ENVIRONMENTS:
            while self._count_receipts(environment):
                pass

    def _count_receipts(self, environment: str) -> bool:
        """Adds some receipts that came since; gives whether there are more."""
        with self._home.catalog().reading() as session:
            query = (
                select(ReceiptRow)
                .where(ReceiptRow.receipt > self._last[environment], ReceiptRow.environment == environment)
                .order_by(ReceiptRow.receipt)
                .limit(RECEIPTS_AT_ONCE)
            )
            rows: Sequence[ReceiptRow] = list(session.scalars(query))
        receipts: Counter[Labels] = Counter()
        records: Counter[Labels] = Counter()
        for row in rows:
            if not row.visible:
                # it will be in a moment, and those after it can wait for it
                rows = ()
                break
            self._last[environment] = row.receipt
            if row.cause is not None:
                continue
            receipt = decoded(row.document)
            document = receipt.document()
            receipts[environment, receipt.status] += 1
            for name, key in CLASSES.items():
                records[environment, name] += document[key] or 0
        with self._lock:
            self._receipts.update(receipts)
            self._records.update(records)
        return len(rows) == RECEIPTS_AT_ONCE

    def _calls(self) -> Iterable[Metric]:
        """The edge: calls, their codes, how long answers took; all since each process started (OP-41)."""
        edges = _edges(self._home)
        calls = Counter({(part,): told["calls"] for part, told in edges.items()})
        yield _counter("openaudience_calls", "Calls answered.", ("part",), calls)
        stored = Counter({(part,): told["stored"] for part, told in edges.items()})
        yield _counter(
            "openaudience_calls_decided", "Calls that were not stopped before their data.", ("part",), stored
        )
        found: Counter[Labels] = Counter()
        for part, told in edges.items():
            found.update({(part, code): count for code, count in told["errors"].items()})
        yield _counter("openaudience_call_errors", "Calls by error code.", ("part", "code"), found)
        refused: Counter[Labels] = Counter()
        hosts: Counter[Labels] = Counter()
        colons: Counter[Labels] = Counter()
        for part, told in edges.items():
            refused.update({(part, status): count for status, count in told["refused"].items()})
            for environment, by_host in told["redirects_refused"].items():
                hosts.update({(environment, host): count for host, count in by_host.items()})
            colons.update({(part, environment): count for environment, count in told["colons"].items()})
        yield _counter("openaudience_calls_refused", "Calls by status that were not read.", ("part", "status"), refused)
        yield _counter(
            "openaudience_redirects_refused", "Redirects to hosts on no list.", ("environment", "host"), hosts
        )
        yield _counter(
            "openaudience_ids_with_colon", "IDs with a colon, which no file can name.", ("part", "environment"), colons
        )
        latency = HistogramMetricFamily("openaudience_call_seconds", "Time to an answer.", labels=["part"])
        for part, told in edges.items():
            buckets = [(bound, count) for bound, count in told["within"].items()]
            latency.add_metric([part], [*buckets, ("+Inf", told["calls"])], told["seconds"])
        yield latency

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            numbers = self._numbers
            receipts, records = Counter(self._receipts), Counter(self._records)
        now = seconds(self._home.clock())
        version = GaugeMetricFamily("openaudience_info", "The version that runs.", labels=["version"])
        version.add_metric([__version__], 1)
        yield version
        yield _gauge("openaudience_files", "Files by state.", ("environment", "state"), numbers.files)
        yield _counter("openaudience_receipts", "Receipts by status.", ("environment", "status"), receipts)
        yield _counter("openaudience_records", "Records by class.", ("environment", "class"), records)
        age = {(name,): max(0, now - numbers.oldest.get(name, now)) for name in ENVIRONMENTS}
        yield _gauge(
            "openaudience_queue_age_seconds", "How long the oldest waiting file has waited.", ("environment",), age
        )
        yield _gauge("openaudience_mails", "Receipt mails by state.", ("environment", "state"), numbers.mails)
        yield _gauge("openaudience_exports", "Export runs by state.", ("environment", "state"), numbers.exports)
        yield _gauge(
            "openaudience_export_lag_seconds",
            "For how long a run that was due is not delivered.",
            ("environment", "destination"),
            numbers.lag,
        )
        yield _counter(
            "openaudience_mappings_evicted",
            "Mappings that newer ones pushed out, by data source.",
            ("environment", "dpid"),
            numbers.evicted,
        )
        yield from self._calls()
        living = states(self._home.path)
        up = {(part,): sum(state.part == part for state in living) for part in enabled(self._home.settings)}
        yield _gauge("openaudience_part_up", "Processes of a part that are alive.", ("part",), up)
        well = {
            (part,): sum(state.part == part and state.state == "ready" and not state.stale for state in living)
            for (part,) in up
        }
        yield _gauge("openaudience_part_ready", "Processes of a part that can do their work.", ("part",), well)
        yield GaugeMetricFamily(
            "openaudience_disk_free_bytes", "Free space on the disk of the home.", value=free_bytes(self._home)
        )


def _edges(home: Home) -> dict[str, dict[str, Any]]:
    """What each edge process told last, by part."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((home.path / FOLDER).glob(f"*{FIGURES}")):
        with suppress(OSError, ValueError):
            found[path.name.removesuffix(FIGURES)] = json.loads(path.read_text("utf-8"))
    return found


def _gauge(name: str, text: str, labels: Sequence[str], values: dict[Labels, int] | dict[tuple[str], int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _counter(name: str, text: str, labels: Sequence[str], values: Counter[Labels] | Counter[tuple[str]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
