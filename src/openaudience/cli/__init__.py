"""The command line (70 §2): thin; every command calls the rooms and prints what they say.

``--home``, ``--environment`` and ``--json`` may stand anywhere on the line. Exit status: 0 done, 1 the input was
refused or has errors, 2 wrong usage, 3 internal or system failure.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from openaudience import __version__
from openaudience.clock import Clock, system_clock
from openaudience.errors import OpenAudienceError, UsageError

HOME_VARIABLE = "OPENAUDIENCE_HOME"
DEFAULT_HOME = "openaudience-home"


@dataclass(slots=True)
class Options:
    """What holds for every command."""

    home: Path
    environment: str | None = None
    as_json: bool = False
    clock: Clock = field(default=system_clock)

    @property
    def chosen(self) -> str:
        """The environment, production unless another is named."""
        return self.environment or "production"


def main(argv: Sequence[str] | None = None, clock: Clock = system_clock) -> int:
    """Runs one command line and gives its exit status; ``clock`` is for tests."""
    try:
        arguments, options = _common(list(sys.argv[1:] if argv is None else argv), clock)
        command = typer.main.get_command(app)
        status = command.main(args=arguments, prog_name="openaudience", standalone_mode=False, obj=options)
        return status if isinstance(status, int) else 0
    except OpenAudienceError as error:
        for line in str(error).splitlines() or [""]:
            print(f"error: {line}", file=sys.stderr)
        return error.exit_status
    except typer.Exit as ended:
        return int(ended.exit_code)
    except typer.Abort:
        print("error: stopped", file=sys.stderr)
        return 3
    except typer.TyperException as error:
        # the library's own refusals are all about how the command was written
        text = error.format_message().strip() or "No command was named."
        print(f"error: {text} See `openaudience --help`.", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # whoever read our output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        print("error: stopped by the keyboard; nothing half done is left", file=sys.stderr)
        return 3
    except Exception as error:
        print(f"error: internal failure: {type(error).__name__}: {error}; please report it", file=sys.stderr)
        if os.environ.get("OPENAUDIENCE_TRACEBACK"):
            traceback.print_exc()
        return 3


def run() -> None:
    """Entry point of the program."""
    # one command, then the end: looking for garbage in what was just loaded costs a tenth of a command's start
    gc.set_threshold(100_000, 50, 100)
    status = main()
    with suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    # everything is closed by now; the large libraries' own clearing up would take a quarter of a second
    os._exit(status)


def _common(arguments: list[str], clock: Clock) -> tuple[list[str], Options]:
    """Takes the options that hold for every command out of the line, wherever they stand."""
    options = Options(Path(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME), clock=clock)
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if argument == "--":
            rest.extend(["--", *waiting])
        elif argument == "--json":
            options.as_json = True
        elif name in ("--home", "--environment"):
            if not equals:
                following = next(waiting, None)
                if following is None:
                    raise UsageError(f"{name} needs a value")
                value = following
            if name == "--home":
                options.home = Path(value)
            elif value in ("production", "beta"):
                options.environment = value
            else:
                raise UsageError(f"--environment {value}: there is no such environment; choose production or beta")
        else:
            rest.append(argument)
    return rest, options


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="OpenAudience: onboard offline audience data. Every command also takes --home DIR "
    f"(default: ${HOME_VARIABLE}, else ./{DEFAULT_HOME}), --environment production|beta and --json.",
)
workspace_app = typer.Typer(no_args_is_help=True, help="The taxonomy as code: one file says what the catalog holds.")
keys_app = typer.Typer(no_args_is_help=True, help="Keys that senders need.")
config_app = typer.Typer(no_args_is_help=True, help="Settings and where they come from.")
mail_app = typer.Typer(no_args_is_help=True, help="Receipts by mail.")
app.add_typer(workspace_app, name="workspace")
app.add_typer(keys_app, name="keys")
app.add_typer(config_app, name="config")
app.add_typer(mail_app, name="mail")

Files = Annotated[list[Path], typer.Argument(help="Files, in any order.", show_default=False)]
Job = Annotated[int, typer.Argument(help="Number of the job.", show_default=False)]


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


@app.command()
def init(context: typer.Context) -> int:
    """Create the home: catalog, keys, default settings."""
    from openaudience.cli import home

    options: Options = context.obj
    return home.init(options.home, options.as_json, options.clock)


@keys_app.command("create")
def keys_create(context: typer.Context) -> int:
    """Make the PGP key for encrypted files, if there is none yet."""
    from openaudience.cli import home

    options: Options = context.obj
    return home.keys_create(options.home, options.as_json)


@keys_app.command("export")
def keys_export(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="Where to; default: standard output.", show_default=False)] = None,
) -> int:
    """Write the public PGP key that senders encrypt to."""
    from openaudience.cli import home

    options: Options = context.obj
    return home.keys_export(options.home, file, options.as_json)


@config_app.command("show")
def config_show(context: typer.Context) -> int:
    """Show every setting with its effective value and where it comes from."""
    from openaudience.cli import home

    options: Options = context.obj
    return home.config_show(options.home, options.as_json)


@mail_app.command("test")
def mail_test(context: typer.Context, address: Annotated[str, typer.Argument(show_default=False)]) -> int:
    """Mail a sample receipt and show what the mail server answers."""
    from openaudience.cli import data

    return data.mail_test(context.obj, address)


@workspace_app.command("apply")
def workspace_apply(
    context: typer.Context,
    files: Files,
    prune: Annotated[bool, typer.Option(help="Delete what the files do not name.")] = False,
) -> int:
    """Make the catalog what the workspace files say, all or nothing; show what changed."""
    from openaudience.cli import data, workspace

    options: Options = context.obj
    status = workspace.apply(options.home, files, options.environment, prune, options.as_json, options.clock)
    if status == 0:
        data.bring_up_to_date(options)
    return status


@workspace_app.command("diff")
def workspace_diff(
    context: typer.Context,
    files: Files,
    prune: Annotated[bool, typer.Option(help="Delete what the files do not name.")] = False,
) -> int:
    """Show what `apply` would change, without doing it."""
    from openaudience.cli import workspace

    options: Options = context.obj
    return workspace.diff(options.home, files, options.environment, prune, options.as_json, options.clock)


@workspace_app.command("export")
def workspace_export(context: typer.Context) -> int:
    """Print the catalog as a workspace file."""
    from openaudience.cli import workspace

    options: Options = context.obj
    return workspace.export(options.home, options.chosen, options.as_json, options.clock)


@app.command("validate")
def validate_files(
    context: typer.Context,
    files: Files,
    against: Annotated[Path | None, typer.Option(help="Workspace file that says what the data sources are.")] = None,
) -> int:
    """Check files before they are sent: every error with line, column, reason and fix. Needs no installation."""
    from openaudience.cli import data

    return data.validate(context.obj, files, against)


@app.command()
def ingest(
    context: typer.Context,
    files: Files,
    partner: Annotated[str | None, typer.Option(help="The sender; default: the owner of the IDs.")] = None,
) -> int:
    """Take files as if they had been dropped together; wait for their receipts and show them."""
    from openaudience.cli import data

    return data.ingest(context.obj, files, partner)


@app.command()
def jobs(context: typer.Context) -> int:
    """List the jobs, newest first."""
    from openaudience.cli import data

    return data.jobs(context.obj)


@app.command()
def receipt(context: typer.Context, job: Job) -> int:
    """Show the receipts of a job."""
    from openaudience.cli import data

    return data.receipt(context.obj, job)


FileOption = Annotated[str | None, typer.Option("--file", help="Only this file of the job.")]


@app.command()
def undo(context: typer.Context, job: Job, file: FileOption = None) -> int:
    """Take a job back, as if its files had never been sent."""
    from openaudience.cli import data

    return data.flip(context.obj, job, file, on=False)


@app.command()
def redo(context: typer.Context, job: Job, file: FileOption = None) -> int:
    """Take an undo back."""
    from openaudience.cli import data

    return data.flip(context.obj, job, file, on=True)


Ident = Annotated[str, typer.Argument(metavar="ID", help="A UUID, or DPID:user ID.", show_default=False)]


@app.command()
def profile(context: typer.Context, ident: Ident) -> int:
    """Show a profile: its IDs, traits and segments."""
    from openaudience.cli import data

    return data.profile(context.obj, ident)


@app.command()
def why(
    context: typer.Context,
    ident: Ident,
    sid: Annotated[int, typer.Argument(metavar="SID", help="The trait or segment.", show_default=False)],
) -> int:
    """Tell why a profile has a trait or is in a segment, or not."""
    from openaudience.cli import data

    return data.why(context.obj, ident, sid)


@app.command()
def traits(context: typer.Context) -> int:
    """List the traits with their populations."""
    from openaudience.cli import data

    return data.traits(context.obj)


@app.command()
def segments(context: typer.Context) -> int:
    """List the segments with their populations."""
    from openaudience.cli import audiences

    return audiences.segments(context.obj)


@app.command()
def destinations(context: typer.Context) -> int:
    """List the destinations with what is mapped to them."""
    from openaudience.cli import audiences

    return audiences.destinations(context.obj)


@app.command()
def estimate(
    context: typer.Context, rule: Annotated[str, typer.Argument(metavar="'SEGMENT RULE'", show_default=False)]
) -> int:
    """Tell the exact size that a segment rule would have now."""
    from openaudience.cli import audiences

    return audiences.estimate(context.obj, rule)


@app.command()
def populations(
    context: typer.Context,
    sid: Annotated[int, typer.Argument(metavar="SID", help="The trait or segment.", show_default=False)],
    date: Annotated[
        str | None, typer.Option(metavar="YYYY-MM-DD", help="Last day of the windows; default: yesterday (UTC).")
    ] = None,
) -> int:
    """Show realisations and populations of a trait or segment over 1, 7, 14, 30, 60 and 90 days."""
    from openaudience.cli import audiences

    return audiences.populations(context.obj, sid, date)


@app.command()
def overlaps(
    context: typer.Context,
    sids: Annotated[list[int], typer.Argument(metavar="SID...", help="Traits or segments.", show_default=False)],
    others: Annotated[
        list[int] | None, typer.Option("--with", metavar="SID", help="Compare with this one. May be repeated.")
    ] = None,
) -> int:
    """Count the profiles that any two traits or segments share now."""
    from openaudience.cli import audiences

    return audiences.overlaps(context.obj, sids, others)


@app.command("signals")
def signals_list(
    context: typer.Context,
    unused: Annotated[bool, typer.Option("--unused", help="Only those that no trait's rule asks for.")] = False,
    partner: Annotated[str | None, typer.Option(help="Number or name; default: all.")] = None,
    days: Annotated[int, typer.Option(help="UTC days back, today included.")] = 10,
) -> int:
    """List the signals that calls sent, with how often they came, the most frequent first."""
    from openaudience.cli import signals as signalling

    return signalling.signals(context.obj, partner, unused, days)


@app.command()
def datasources(context: typer.Context) -> int:
    """List the data sources with the devices synced to them."""
    from openaudience.cli import data

    return data.datasources(context.obj)


@app.command()
def export(
    context: typer.Context,
    destination: Annotated[
        str | None, typer.Argument(help="Number or name; default: all that are active.", show_default=False)
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="All current members, not only what changed.")] = False,
) -> int:
    """Export to a destination now, or to all; wait until the files are delivered or given up."""
    from openaudience.cli import exports as exporting

    return exporting.export(context.obj, destination, full)


@app.command("exports")
def exports_history(
    context: typer.Context,
    destination: Annotated[str | None, typer.Argument(help="Number or name; default: all.", show_default=False)] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="DATE", help="First UTC day.")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="DATE", help="Last UTC day.")] = None,
) -> int:
    """Show the files that were exported, by day, with the records delivered and not delivered."""
    from openaudience.cli import exports as exporting

    return exporting.exports(context.obj, destination, first, last)


@app.command()
def redeliver(
    context: typer.Context, run: Annotated[int, typer.Argument(help="Number of the run.", show_default=False)]
) -> int:
    """Send the files of an export run again, byte for byte."""
    from openaudience.cli import exports as exporting

    return exporting.redeliver(context.obj, run)


@app.command("test-server")
def test_server(
    context: typer.Context, server: Annotated[str, typer.Argument(help="Number or name.", show_default=False)]
) -> int:
    """Write and delete an empty file at a delivery server; show what goes wrong."""
    from openaudience.cli import exports as exporting

    return exporting.test_server(context.obj, server)


@app.command()
def samples(context: typer.Context, data_source: Annotated[int, typer.Argument(metavar="DPID")]) -> int:
    """Show the error samples of a data source."""
    from openaudience.cli import data

    return data.samples(context.obj, data_source)


@app.command()
def sql(context: typer.Context, query: Annotated[str, typer.Argument(metavar="'SELECT …'", show_default=False)]) -> int:
    """Read-only SQL over the open tables."""
    from openaudience.cli import data

    return data.sql(context.obj, query)


@app.command()
def check(
    context: typer.Context,
    repair: Annotated[bool, typer.Option(help="Make anew what is wrong in the index.")] = True,
) -> int:
    """Prove that the index equals the fold of the facts, and the counters the facts; mend the index."""
    from openaudience.cli import data

    return data.check(context.obj, repair)


@app.command()
def clean(
    context: typer.Context,
    now: Annotated[
        str | None, typer.Option(metavar="INSTANT", help="Judge by this instant (ISO, UTC); default: the present.")
    ] = None,
) -> int:
    """Remove devices, customer IDs and mappings whose time is over."""
    from openaudience.cli import privacy

    return privacy.clean(context.obj, now)


@app.command()
def denied(context: typer.Context) -> int:
    """List the IDs whose calls are refused because they came too often."""
    from openaudience.cli import edge

    return edge.denied(context.obj)


@app.command()
def allow(
    context: typer.Context,
    ident: Annotated[str, typer.Argument(metavar="ID", help="UUID or DPID:user ID.", show_default=False)],
) -> int:
    """Take an ID off the deny list."""
    from openaudience.cli import edge

    return edge.allow(context.obj, ident)


@app.command("privacy")
def privacy_request(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A privacy request as JSON.", show_default=False)],
) -> int:
    """Answer a privacy request: show what is known of IDs, delete it, or both."""
    from openaudience.cli import privacy

    return privacy.privacy(context.obj, file)


@app.command()
def backup(context: typer.Context, folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)]) -> int:
    """Write a consistent backup into a new folder, while everything goes on."""
    from openaudience.cli import data

    return data.backup(context.obj, folder)


@app.command()
def restore(context: typer.Context, folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)]) -> int:
    """Make the home from a backup; the home must not exist yet."""
    from openaudience.cli import data

    return data.restore(context.obj, folder)


@app.command()
def serve(
    context: typer.Context,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="PART",
            help="Only this part: ftp, sftp, intake, worker, mail, export or web. May be repeated.",
        ),
    ] = None,
) -> int:
    """Run the drop-offs, the intake, the workers, the mail, the exports and the health page until stopped."""
    from openaudience.serve.supervisor import serve as run_parts

    options: Options = context.obj
    return run_parts(options.home, only or (), as_json=options.as_json)


@app.command("bench")
def bench_ingest(
    context: typer.Context,
    sizes: Annotated[
        str | None,
        typer.Option(help="Multiples of the base size; with --segments or --exports users, with --edge processes."),
    ] = None,
    runs: Annotated[int, typer.Option(help="Runs of which the median is shown.")] = 3,
    peers: Annotated[str | None, typer.Option(help="Which systems to run, by comma.")] = None,
    forms: Annotated[str | None, typer.Option(help="coded, keyvalue or both, by comma.")] = None,
    known: Annotated[int, typer.Option(help="Known IDs.")] = 1_000_000,
    seed: Annotated[int, typer.Option(help="Seed of the generator.")] = 2026,
    records: Annotated[int | None, typer.Option(help="Records of the base size.")] = None,
    append: Annotated[Path | None, typer.Option(help="Append the table to this file.")] = None,
    segments: Annotated[bool, typer.Option("--segments", help="Measure segments instead, beside DuckDB.")] = False,
    exports: Annotated[bool, typer.Option("--exports", help="Measure exports instead, beside DuckDB.")] = False,
    edge: Annotated[bool, typer.Option("--edge", help="Measure calls to the edge instead, and its store.")] = False,
) -> int:
    """Measure ingest against the floor, DuckDB, Polars and Spark on this machine."""
    from openaudience.cli import bench as benching

    options: Options = context.obj
    if segments:
        return benching.bench_segments(
            sizes or benching.PROFILES, runs=runs, seed=seed, append=append, as_json=options.as_json
        )
    if exports:
        return benching.bench_exports(
            sizes or benching.USERS, runs=runs, seed=seed, append=append, as_json=options.as_json
        )
    if edge:
        return benching.bench_edge(
            sizes or benching.PROCESSES, runs=runs, seed=seed, append=append, as_json=options.as_json
        )
    chosen = {
        name: value for name, value in (("sizes", sizes), ("peers", peers), ("forms", forms)) if value is not None
    }
    return benching.bench(
        runs=runs, known=known, seed=seed, records=records, append=append, as_json=options.as_json, **chosen
    )
