"""Commands about exports: ``export``, ``exports``, ``redeliver``, ``test-server`` (OP-19)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from openaudience.cli.data import opened_site, show
from openaudience.clock import iso, plain
from openaudience.errors import InputError, UsageError

if TYPE_CHECKING:
    from openaudience.cli import Options
    from openaudience.exports.runner import Runner


def export(options: Options, destination: str | None, full: bool) -> int:
    from openaudience.exports.runner import Runner

    with opened_site(options) as site:
        runner = Runner(site, tell=_tell)
        if destination is None and not site.beta:
            chosen = [one.number for one in runner.delivering()]
            if not chosen:
                raise InputError("there is no active destination with a server; `workspace apply` makes one")
        else:
            chosen = [_destination(runner, destination or "")]
        return _finish(options, runner, runner.enter(chosen, "full" if full else "iter"))


def redeliver(options: Options, run: int) -> int:
    from openaudience.exports.runner import Runner

    with opened_site(options) as site:
        runner = Runner(site, tell=_tell)
        return _finish(options, runner, [runner.enter_again(run)])


def _tell(event: str, **figures: Any) -> None:
    """Says on standard error what a command that takes long is waiting for."""
    run, file = figures.get("run"), figures.get("file")
    if event == "export-attempt-failed":
        print(f"run {run}: attempt {figures['attempt']} at {file} failed: {figures['why']}", file=sys.stderr)
    elif event == "export-waiting":
        waits = f"attempt {figures['attempt']} at {file} follows in {figures['seconds']} s"
        print(f"run {run}: {waits} (setting export.retry_seconds)", file=sys.stderr, flush=True)
    elif event == "export-warning":
        print(f"run {run}: {figures['note']}", file=sys.stderr)


def _finish(options: Options, runner: Runner, runs: Sequence[int]) -> int:
    """Waits for runs and shows them; 1 if one of them failed."""
    from openaudience.exports.history import moment, run_documents

    rows = runner.finish(runs)
    as_json = options.as_json
    documents = run_documents(
        runner.site, runs=runs, shown=lambda instant: (iso if as_json else plain)(moment(instant))
    )
    if as_json:
        show(documents)
    else:
        for document in reversed(documents):
            print(
                f"run {document['runId']}: destination {document['destinationId']}, {document['mode']}: "
                f"{document['status']}, {document['records']:,} records"
            )
            for file in document["files"]:
                word = "delivered" if file["success"] else "not delivered"
                print(f"  {file['dataFileName']}  {file['bytes']:,} bytes, {file['lines']:,} lines  {word}")
            if document["error"]:
                print(f"  {document['error']}")
    return 1 if any(row.state == "failed" for row in rows) else 0


def exports(options: Options, destination: str | None, first: str | None, last: str | None) -> int:
    from openaudience.exports.history import LAST_DAYS, history, moment
    from openaudience.exports.runner import Runner

    with opened_site(options) as site:
        number = None if destination is None else _destination(Runner(site), destination)
        until = site.clock().date() if last is None else _day(last, "--to")
        since = until - timedelta(days=LAST_DAYS) if first is None else _day(first, "--from")
        if since > until:
            raise UsageError(f"--from {since} is after --to {until}; exchange them")
        found = history(site, since, until, number, shown=lambda instant: iso(moment(instant)))
    if options.as_json:
        show(found)
        return 0
    for day in found["days"]:
        print(f"{day['date']}  {_figures(day)}")
        for file in day["files"]:
            print(f"  run {file['run']:<6} {file['destination']:>8} {file['mode']}  {file['file']}  {_figures(file)}")
            if file["error"]:
                print(f"    {file['error']}")
    for run in found["runs_without_files"]:
        print(
            f"run {run['runId']} of destination {run['destinationId']} failed: {run['error'] or 'no reason is known'}"
        )
    if found["days"]:
        print(f"total       {_figures(found)}")
    elif not found["runs_without_files"]:
        print(f"nothing was exported from {since} to {until}")
    return 0


def _figures(found: Mapping[str, Any]) -> str:
    return f"{found['successful']:,} successful, {found['failed']:,} failed, {found['received']:,} received"


def test_server(options: Options, server: str) -> int:
    from openaudience.errors import OpenAudienceError
    from openaudience.exports.delivery import connect, servers
    from openaudience.exports.runner import Runner

    with opened_site(options) as site:
        number = _chosen(servers(site), server, "delivery server", "`workspace export` shows them")
        document = Runner(site).configured().server_document(number)
        message = None
        try:
            with connect(site, number, document) as target:
                target.test()
        except OpenAudienceError as error:
            message = str(error)
    good = message is None
    if options.as_json:
        show({"success": good, "message": message or ""})
    else:
        print(f"server {number}: {message or 'a file could be written and deleted'}")
    return 0 if good else 1


def _destination(runner: Runner, text: str) -> int:
    """The number of a destination that is named by number or name. Raises InputError."""
    if runner.site.beta:
        raise InputError(f"nothing was exported: {runner.refusal(None)}")
    configured = runner.configured()
    every = configured.documents("destinations")
    names = {number: str(document["name"]) for number, (_, document) in every.items()}
    number = _chosen(names, text, "destination", "`openaudience destinations` lists them")
    if number not in configured.destinations:
        raise InputError(f"destination {number} is of type {every[number][1]['destinationType']}: it gets no files")
    return number


def _chosen(found: Mapping[int, str], text: str, what: str, where: str) -> int:
    if text.isdigit() and int(text) in found:
        return int(text)
    named = [number for number, name in found.items() if name == text]
    if not named:
        raise InputError(f"there is no {what} {text}; {where}")
    if len(named) > 1:
        raise InputError(f"several {what}s are called {text}: {', '.join(map(str, named))}; give the number")
    return named[0]


def _day(text: str, option: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option} {text}: this is no date; write it as 2026-03-02") from None
