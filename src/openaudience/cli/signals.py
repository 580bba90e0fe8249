"""The command about signals that calls sent (RT-1013)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openaudience.cli.data import opened_site, show
from openaudience.dropoff.paths import printable
from openaudience.errors import UsageError

if TYPE_CHECKING:
    from openaudience.cli import Options


def signals(options: Options, partner: str | None, unused: bool, days: int) -> int:
    from openaudience.runs.signals import signal_documents

    if days < 1:
        raise UsageError(f"--days {days}: write a number of days from 1 on")
    with opened_site(options) as site:
        documents = signal_documents(site, partner=partner, unused=unused, days=days)
    if options.as_json:
        show(documents)
        return 0
    for one in documents:
        use = "used  " if one["used"] else "unused"
        signal = printable(f"{one['key']}={one['value']}")
        print(f"{one['count']:>12,}  {use}  {signal}  {one['partner'] or one['pid']}")
    if not documents:
        print(f"no {'unused ' if unused else ''}signals within {days} days")
    return 0
