"""Commands about data: ingest, jobs, undo, profiles, tables, backup (OP-12 … OP-22)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openaudience.dropoff.paths import printable
from openaudience.errors import InputError, SystemFailure, UsageError

if TYPE_CHECKING:
    from openaudience.cli import Options
    from openaudience.home import Home
    from openaudience.runs.site import Site


@contextmanager
def opened_home(options: Options) -> Iterator[Home]:
    from openaudience.home import Home

    with Home.open(options.home, options.clock) as home:
        yield home


@contextmanager
def opened_site(options: Options) -> Iterator[Site]:
    """One environment of the home; unfinished work of a process that died is finished first."""
    from openaudience.runs.service import finish_unfinished
    from openaudience.runs.site import Site

    with opened_home(options) as home:
        site = Site(home, options.chosen)
        try:
            finish_unfinished(site)
            yield site
        finally:
            site.close()


def bring_up_to_date(options: Options) -> None:
    """After a change of the configuration: the index follows it, and schedules of exports begin or end."""
    from openaudience.exports.runner import Runner
    from openaudience.runs.service import finish_unfinished
    from openaudience.runs.site import Site

    with opened_home(options) as home:
        for environment in ("production", "beta"):
            site = Site(home, environment)
            finish_unfinished(site)
            Runner(site).note_schedules()
            site.close()


def show(document: Any) -> None:
    print(json.dumps(document, ensure_ascii=False, indent=2))


def validate(options: Options, files: Sequence[Path], against: Path | None) -> int:
    from openaudience.cli import validate as checking
    from openaudience.cli import workspace
    from openaudience.inbound.decode import GpgHome

    view = None if against is None else workspace.load_view(against)
    keys = options.home / "keys" / "pgp"
    if not keys.is_dir():
        return checking.validate(files, view, options.as_json)
    gpg = GpgHome(keys)
    try:
        return checking.validate(files, view, options.as_json, gpg=gpg)
    finally:
        gpg.close()


def ingest(options: Options, files: Sequence[Path], partner: str | None) -> int:
    from openaudience.runs.service import ingest as ingest_files
    from openaudience.runs.service import set_aside

    for path in files:
        if not path.is_file():
            raise UsageError(f"{path} is no file; name the files to be taken")
    with opened_site(options) as site:
        shown = ingest_files(site, files, partner)
        failed = set_aside(site)
    if options.as_json:
        show([one.document() for one in shown])
    else:
        for place, one in enumerate(shown):
            print(("\n" if place else "") + f"Job {one.receipt.job}")
            print(one.text(), end="")
    if failed:
        raise SystemFailure(
            "\n".join(f"{one}; it is kept, the next ingest tries it again; please report it" for one in failed)
        )
    return 1 if any(one.receipt.status == "rejected" for one in shown) else 0


def jobs(options: Options) -> int:
    from openaudience.runs.inquiry import job_documents

    with opened_site(options) as site:
        documents = job_documents(site)
    if options.as_json:
        show(documents)
        return 0
    for job in documents:
        what = ", ".join(job["files"]) or f"of job {job['of_job']}"
        print(
            f"{job['job']:>6}  {job['at']}  {job['kind']:<8} {job['status']:<10} "
            f"{job['stored']:>10,} of {job['received']:>10,} stored  {what}"
        )
    if not documents:
        print("no jobs yet")
    return 0


def receipt(options: Options, job: int) -> int:
    from openaudience.runs.receipts import receipts_of

    with opened_site(options) as site, site.reading() as session:
        shown = receipts_of(session, site.name, [job])
    if not shown:
        raise InputError(f"there is no receipt of a job {job}; `openaudience jobs` lists the jobs")
    if options.as_json:
        document = shown[0].document()
        if len(shown) > 1:
            document["run_again"] = [one.document() for one in shown[1:]]
        show(document)
        return 0
    print("\n".join(one.text() for one in shown), end="")
    return 0


def flip(options: Options, job: int, file: str | None, *, on: bool) -> int:
    from openaudience.runs.receipts import receipts_of
    from openaudience.runs.service import flip as flip_job

    with opened_site(options) as site:
        number = flip_job(site, job, file, on)
        with site.reading() as session:
            own = receipts_of(session, site.name, [job])
            again = [one for one in receipts_of(session, site.name) if one.cause == number]
    word = "redo" if on else "undo"
    if options.as_json:
        show(
            {
                "job": number,
                "kind": word,
                "of_job": job,
                "receipt": own[0].document(),
                "run_again": [one.document() for one in again],
            }
        )
        return 0
    print(f"job {number}: {word} of job {job}: {own[0].receipt.status}")
    for one in again:
        print(f"\njob {one.receipt.job} matches differently now and was run again:\n{one.text()}", end="")
    return 0


def profile(options: Options, ident: str) -> int:
    from openaudience.runs.inquiry import Inquiry

    with opened_site(options) as site:
        document = Inquiry(site).profile(ident)
    if options.as_json:
        show(document)
        return 0
    print(f"UUID    {document['uuid'] or '— (no device is synced)'}")
    for one in document["ids"]:
        print(f"ID      {one['data_source']}:{printable(one['id'])}  last sync {one['last_sync'] or '—'}")
    for one in document["traits"]:
        print(
            f"trait   {one['sid']} {one['name']}  since {one['first_realized']}, last {one['last_realized']}, "
            f"expires {one['expires'] or 'never'}"
        )
    if not document["traits"]:
        print("no traits")
    for one in document["memberships"]:
        print(f"segment {one['sid']} {one['name']}  since {one['joined']}")
    return 0


def why(options: Options, ident: str, sid: int) -> int:
    from openaudience.runs.explaining import Explanation
    from openaudience.runs.inquiry import Inquiry

    with opened_site(options) as site:
        document = Explanation(Inquiry(site)).why(ident, sid)
    if options.as_json:
        show(document)
    elif isinstance(document["because"], dict):
        show_tree(ident, document)
    else:
        show_history(ident, document)
    return 0


def show_tree(ident: str, document: dict[str, Any]) -> None:
    """A segment's rule with the truth of each part."""
    tree = document["because"]
    print(f"{ident} {'is' if document['holds'] else 'is not'} in segment {document['sid']}")
    if tree.get("opted_out"):
        print("it is opted out, and in no segment of this partner whatever the rule says")
    elif tree["true"] != document["holds"]:
        print(
            f"its rule is {'' if tree['true'] else 'not '}true now: the next evaluation will tell, unless it is paused"
        )

    def show_node(node: dict[str, Any], depth: int) -> None:
        text = node["op"]
        if text == "FREQUENCY":
            text = " ".join(f"{sid}T" for sid in node["sids"])
            if node["frequency"]:
                text = f"FREQUENCY([{text.replace(' ', ',')}]"
                if node["recency"]:
                    text += f" {node['recency']['op']} {node['recency']['days']}D"
                text += f") {node['frequency']['op']} {node['frequency']['value']}"
        print(f"  {'true ' if node['true'] else 'false'}  {'  ' * depth}{text}")
        for inner in node.get("operands", ()):
            show_node(inner, depth + 1)

    show_node(tree, 0)


def show_history(ident: str, document: dict[str, Any]) -> None:
    """What put a profile into a trait, or which lines failed to."""
    print(f"{ident} {'has' if document['holds'] else 'does not have'} trait {document['sid']}")
    for one in document["because"]:
        if "leaves" in one:
            print(f"  {one['file']}, line {one['line']}:")
            for leaf in one["leaves"]:
                sent = "absent" if leaf["value"] is None else f"sent: {printable(leaf['value'])}"
                print(f"    {'true ' if leaf['true'] else 'false'}  {leaf['leaf']}  ({sent})")
        else:
            what = f"trait {one['trait']} " if "trait" in one else ""
            if one["job"] is None:
                by = f"by {one['count']:,} calls since {one['first']}" if "call" in one else "with the whole profile"
                print(f"  {one['at']}  {what}{one['op']} {by}")
                continue
            where = f"{one['file']}, line {one['line']}" if one["line"] else one["file"]
            print(f"  {one['at']}  {what}{one['op']} by job {one['job']}: {where}")
            if one["text"]:
                print("    " + "\t".join(map(printable, one["text"].split("\t"))))


def traits(options: Options) -> int:
    from openaudience.runs.inquiry import Inquiry

    with opened_site(options) as site:
        documents = Inquiry(site).trait_documents()
    if options.as_json:
        show(documents)
        return 0
    for trait in documents:
        population = trait["population"]
        print(
            f"{trait['sid']:>8}  {population['device']:>12,} devices  {population['cross_device']:>12,} customers  "
            f"{trait['name']}"
        )
    return 0


def datasources(options: Options) -> int:
    from openaudience.runs.inquiry import Inquiry

    with opened_site(options) as site:
        documents = Inquiry(site).source_documents()
    if options.as_json:
        show(documents)
        return 0
    for source in documents:
        print(
            f"{source['dataSourceId']:>8}  {source['idType']:<22} {source['synced_devices']:>12,} synced devices  "
            f"{source['evicted_mappings']:>10,} mappings evicted  {source['name']}"
        )
    return 0


def samples(options: Options, data_source: int) -> int:
    from openaudience.runs.inquiry import sample_documents

    with opened_site(options) as site:
        documents = sample_documents(site, data_source)
    if options.as_json:
        show(documents)
        return 0
    for one in documents:
        print(f"{one['count']:>10,} × {one['code']}  {one['file']}:{one['line']}:{one['column']}  job {one['job']}")
        marked = {name: f"»{one[name]}«" if one["offending"] == name else one[name] for name in ("id", "signals")}
        parts = [part for part in marked.values() if part] if one["id"] else [f"»{one['shown']}«"]
        print(" " * 13 + "  ".join(parts))
        print(" " * 13 + one["text"] + (f" Expected: {one['expected']}." if "expected" in one else ""))
    if not documents:
        print("no samples: switch them on with samplingEnabled: true in the workspace file")
    return 0


def mail_test(options: Options, address: str) -> int:
    from openaudience.runs.post import PostOffice
    from openaudience.runs.site import Site

    with opened_home(options) as home:
        site = Site(home, options.chosen)
        answer = PostOffice(site).send_test(address)
    if options.as_json:
        show({"address": address, "answer": answer})
    else:
        print(f"the mail server answered: {answer}")
    return 0


def sql(options: Options, query: str) -> int:
    from openaudience.runs.service import sql as run_sql

    with opened_site(options) as site:
        frame = run_sql(site, query)
    if options.as_json:
        show(json.loads(frame.write_json()))
        return 0
    print(frame.write_csv(), end="")
    return 0


def check(options: Options, repair: bool) -> int:
    from openaudience.runs.checking import check as check_site
    from openaudience.runs.site import Site

    # unfinished work is finished by the check itself: with a lost index nothing else could go on before the repair
    with opened_home(options) as home:
        site = Site(home, options.chosen)
        try:
            report = check_site(site, repair=repair)
        finally:
            site.close()
    if options.as_json:
        show(report.document())
    else:
        for line in report.lines():
            print(line)
    return 0 if report.good else 1


def backup(options: Options, folder: Path) -> int:
    from openaudience.runs.backups import backup as make_backup

    with opened_home(options) as home:
        make_backup(home, folder)
    if options.as_json:
        show({"backup": str(folder.absolute())})
    else:
        print(f"backup written to {folder}")
    return 0


def restore(options: Options, folder: Path) -> int:
    from openaudience.runs.backups import restore as restore_backup

    restore_backup(folder, options.home)
    if options.as_json:
        show({"home": str(options.home.absolute())})
    else:
        print(f"{options.home} was made from {folder}")
    return 0
