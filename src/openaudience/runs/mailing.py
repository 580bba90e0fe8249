"""Receipts as mails: to whom, under which subject, in which words; put into the queue with the receipt (UI-31 … UI-35).

The mails are handed to a server by ``runs.post``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from openaudience.catalog.ledger import MailRow, ReceiptRow
from openaudience.catalog.tables import DataSourceRow, PartnerRow
from openaudience.catalog.values import ADDRESS
from openaudience.config import ReceiptsSection
from openaudience.inbound.receipt import Counters, Receipt
from openaudience.runs.receipts import Shown, decoded
from openaudience.runs.site import Site

COMPATIBLE_SUBJECT = "Adobe Audience Manager Server-To-Server Processing Result:"
"""What mail filters of senders look for (UI-31)."""

_PLACEHOLDER = re.compile(r"<(status|DPID|number of files)>")
_ID_SYNC = re.compile(r"(?:adobe_id|c2c_id)((?:_[0-9]+?)+?)(?:_[0-9]{9,13})?(?![0-9_])", re.IGNORECASE)


def queue(session: Session, site: Site, jobs: Sequence[int], at: int) -> None:
    """Puts one mail into the queue for each receipt of ``jobs``, or caused by them, that is not visible yet.

    Called inside the transaction that makes these receipts visible, before it does so: there is exactly one mail a
    receipt. ``at``: UTC seconds. No mail without recipients (UI-34), nor where no mail server is configured.
    """
    if not site.settings.mail.host:
        return
    query = select(ReceiptRow).where(
        ReceiptRow.environment == site.name,
        ReceiptRow.visible.is_(False),
        or_(ReceiptRow.job.in_(jobs), ReceiptRow.cause.in_(jobs)),
    )
    for row in session.scalars(query.order_by(ReceiptRow.receipt)):
        receipt = dataclasses.replace(decoded(row.document), job=row.job)
        addresses = recipients(session, site, receipt)
        if addresses:
            session.add(
                MailRow(
                    environment=site.name,
                    receipt=row.receipt,
                    job=row.job,
                    recipients=json.dumps(addresses),
                    subject=subject(receipt, site.settings.receipts),
                    body=body(Shown(receipt, row.cause), report_address(site.settings.receipts, row.job)),
                    state="queued",
                    attempts=0,
                    queued=at,
                    due=at,
                    sent=None,
                    error=None,
                )
            )


def recipients(session: Session, site: Site, receipt: Receipt) -> list[str]:
    """The addresses a receipt goes to, each once whatever its letter case (UI-34, UI-35).

    Of the data sources in the file name, target first, then ``receipts.always``. Of a file that was not taken only
    data sources count that its sender may name: nobody can send mail to the people of another partner by a file name.
    """
    lists = [*_lists(session, site, receipt), site.settings.receipts.always]
    kept: dict[str, str] = {}
    for address in (address for several in lists for address in several):
        if ADDRESS.fullmatch(address):
            kept.setdefault(address.casefold(), address)
    return list(kept.values())


def _lists(session: Session, site: Site, receipt: Receipt) -> Iterator[list[str]]:
    sender = None
    if receipt.status != "processed" and receipt.partner is not None:
        query = select(PartnerRow).where(PartnerRow.environment == site.name, PartnerRow.name == receipt.partner)
        sender = session.scalars(query).first()
    for dpid in _sources(receipt):
        source = session.get(DataSourceRow, (site.name, dpid))
        if source is None:
            continue
        if sender is None or source.pid == sender.number or dpid in (sender.document.get("dataSourceAccess") or ()):
            yield source.document.get("inboundMailingList") or []


def subject(receipt: Receipt, settings: ReceiptsSection) -> str:
    """The subject of the setting with its placeholders filled in, or the literal one (UI-31)."""
    if settings.subject_compat:
        return COMPATIBLE_SUBJECT
    values = {"status": receipt.status_word, "DPID": _dpid(receipt), "number of files": str(len(receipt.files))}
    return _PLACEHOLDER.sub(lambda match: values[match[1]], settings.subject)


def body(shown: Shown, report: str = "") -> str:
    """The text of the mail: its second paragraph names ``(ID:<DPID>)``, then the receipt unchanged (UI-30, UI-31)."""
    receipt = shown.receipt
    what = {
        "rejected": "This file was rejected; nothing of it was applied.",
        "duplicate": "This file was delivered before; it was not applied again.",
    }.get(receipt.status, "These files were processed.")
    if shown.cause is not None:
        what = "These files match differently than before and were run again."
    if receipt.environment == "beta":
        what += " This is the beta environment: it checks files and stores nothing."
    return (
        f"Receipt of a Server-To-Server file delivery\n\nPartner (ID:{_dpid(receipt)}): {what}\n\n{shown.text(report)}"
    )


def report_address(settings: ReceiptsSection, job: int) -> str:
    """The page that shows a job; empty where ``receipts.report_url`` is."""
    return f"{settings.report_url.rstrip('/')}/{job}" if settings.report_url else ""


def sample(site: Site) -> tuple[str, str]:
    """Subject and text of a receipt that is marked as a test (UI-73)."""
    now = site.clock()
    receipt = Receipt(
        job=0,
        environment=site.name,
        partner=None,
        data_source=None,
        id_data_source=None,
        files=("test",),
        status="processed",
        counters=Counters(records_received=2, reason_counts=Counter(not_synced=1)),
        job_start_time=now,
        job_end_time=now,
    )
    mark = "TEST: the mail settings are being tried; no file was processed."
    return f"[TEST] {subject(receipt, site.settings.receipts)}", f"{mark}\n\n{body(Shown(receipt, None))}"


def invalid(addresses: Iterable[str]) -> str | None:
    """The first text that is no e-mail address (UI-70)."""
    return next((address for address in addresses if not ADDRESS.fullmatch(address)), None)


def _sources(receipt: Receipt) -> list[int]:
    """The data sources of the file name, the one that matters most first: target, DPID; of an ID-sync file the DPIDs
    whose IDs it brings, then the one that devices are known by.
    """
    match = _ID_SYNC.match(receipt.files[0])
    if match is not None:
        # the name of a rejected file may be wrong anywhere; what is too long is its time
        master, *others = [int(number) for number in match[1].split("_") if 0 < len(number) <= 10] or [0]
        return [*others, master]
    return [dpid for dpid in dict.fromkeys((receipt.data_source, receipt.id_data_source)) if dpid is not None]


def _dpid(receipt: Receipt) -> str:
    """The DPID of the file name (IN-10, IN-70), as far as it can be read."""
    sources = _sources(receipt)
    if not sources:
        return "unknown"
    return str(sources[0] if receipt.data_source is None else sources[-1])
