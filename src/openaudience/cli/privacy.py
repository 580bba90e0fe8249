"""Commands about what is forgotten: clean-up, access and delete requests (RT-312, RT-1905)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openaudience.cli.data import opened_site, show
from openaudience.dropoff.paths import printable
from openaudience.errors import UsageError

if TYPE_CHECKING:
    from openaudience.cli import Options


def clean(options: Options, now: str | None) -> int:
    from openaudience.exports.owed import owed
    from openaudience.runs.cleaning import clean_up
    from openaudience.runs.erasing import erase_awaited

    instant = None if now is None else _instant(now)
    with opened_site(options) as site:
        cleaned = clean_up(site, instant)
        erase_awaited(site, lambda: owed(site))
    if options.as_json:
        show(cleaned.document())
        return 0
    for dpid, count in sorted(cleaned.customers.items()):
        print(f"{count:>12,} customer IDs of data source {dpid} removed")
    print(f"{cleaned.devices:>12,} devices removed")
    print(f"{cleaned.mappings:>12,} mappings removed")
    return 0


def privacy(options: Options, file: Path) -> int:
    from openaudience.exports.owed import owed
    from openaudience.runs.privacy import carry_out, read_request

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as text: {error}") from None
    request = read_request(text)
    with opened_site(options) as site:
        document = carry_out(site, request, lambda: owed(site))
    failed = [one for user in document["users"] for one in user["ids"] if one["status"] == "failed"]
    if options.as_json:
        show(document)
        return 1 if failed else 0
    for user in document["users"]:
        for one in user["ids"]:
            _tell(user, one)
    if not document["users"]:
        print("the request does not include AudienceManager; nothing was done")
    if document["deleted"] is not None:
        print("deleted: " + ", ".join(f"{count:,} {what}" for what, count in document["deleted"].items()))
        if document["erased"] is None:
            print("rows and texts are erased as soon as destinations have heard of it, in 30 days at the latest")
        else:
            print("erased rows: " + ", ".join(f"{store} {count:,}" for store, count in document["erased"].items()))
    return 1 if failed else 0


def _tell(user: dict[str, Any], one: dict[str, Any]) -> None:
    outcome = one.get("error", ", ".join(user["action"]) + " done")
    print(f"{user['key']}: {one['namespace']} {printable(one['value'])}: {outcome}")
    for found in one["access"]["profiles"] if "access" in one else ():
        for trait in found["traits"]:
            print(
                f"  trait {trait['sid']} {trait['name']} of data source {trait['data_source']}: since "
                f"{trait['first_realized']}, last {trait['last_realized']}, {trait['frequency']:,} times"
            )
        for segment in found["segments"]:
            print(f"  segment {segment['sid']} {segment['name']}, since {segment['joined']}")
    for mapped in one["access"]["mapped_ids"] if "access" in one else ():
        print(f"  mapped to {mapped['data_source']}:{printable(mapped['id'])}")
    for whom, out in one["access"]["opted_out"].items() if "access" in one else ():
        if out:
            print(f"  opted out {whom.replace('_', ' ')}")


def _instant(text: str) -> int:
    """UTC seconds of an ISO instant; one without an offset is UTC."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--now {text}: no instant; write one such as 2026-05-01T00:00:00Z") from None
    return int((instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp())
