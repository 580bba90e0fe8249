"""``openaudience workspace apply | diff | export`` and the view that ``validate --against`` reads (OP-11, OP-12)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from openaudience.catalog import workspace
from openaudience.catalog.migrate import ENVIRONMENTS
from openaudience.clock import Clock, system_clock
from openaudience.errors import UsageError, WorkspaceError
from openaudience.home import Home
from openaudience.inbound.validation import WorkspaceView

SIGNS = {"create": "+", "update": "~", "delete": "-"}


def apply(
    home: Path,
    files: Sequence[Path],
    environment: str | None = None,
    prune: bool = False,
    as_json: bool = False,
    clock: Clock = system_clock,
) -> int:
    """Makes the catalog what the files say and prints what changed; 1 when a file has mistakes (OP-31)."""
    return _both(workspace.apply, home, files, environment, prune, as_json, "nothing to change", clock)


def diff(
    home: Path,
    files: Sequence[Path],
    environment: str | None = None,
    prune: bool = False,
    as_json: bool = False,
    clock: Clock = system_clock,
) -> int:
    """Prints what ``apply`` would change, without doing it."""
    return _both(workspace.diff, home, files, environment, prune, as_json, "no differences", clock)


def export(home: Path, environment: str = "production", as_json: bool = False, clock: Clock = system_clock) -> int:
    """Prints the workspace file of an environment, as YAML, or as JSON on request; never a secret (OP-36)."""
    with Home.open(home, clock) as opened:
        name = opened.environment(environment).name
        document = workspace.exported(opened.engine, name, opened.clock())
    print(json.dumps(document, ensure_ascii=False) if as_json else workspace.as_yaml(document), end="\n" * as_json)
    return 0


def load_view(path: Path) -> WorkspaceView:
    """What ``validate --against`` may know of a workspace file, without an installation. Raises WorkspaceError."""
    view = workspace.load_view(path, system_clock())
    return WorkspaceView(
        sources=view.sources,
        traits=view.traits,
        access={partner.pid: partner.access for partner in view.partners},
        segments=view.segments,
    )


def _both(
    act: Callable[..., workspace.Outcome],
    home: Path,
    files: Sequence[Path],
    environment: str | None,
    prune: bool,
    as_json: bool,
    nothing: str,
    clock: Clock,
) -> int:
    if not files:
        raise UsageError("workspace: no file is given; name at least one workspace file")
    with Home.open(home, clock) as opened:
        environments = ENVIRONMENTS if environment is None else (opened.environment(environment).name,)
        try:
            outcome = act(
                opened.engine,
                workspace.load(files),
                opened.clock(),
                opened.settings.limits,
                opened.vault,
                environments=environments,
                prune=prune,
            )
        except WorkspaceError as error:
            for mistake in error.mistakes:
                print(f"error: {mistake}", file=sys.stderr)
            count = len(error.mistakes)
            print(
                f"error: {count} mistake{'s' * (count > 1)}, nothing was changed; correct and repeat", file=sys.stderr
            )
            return error.exit_status
    for warning in outcome.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    documents: list[dict[str, Any]] = [change.as_json() for change in outcome.changes]
    if as_json:
        print(json.dumps(documents, ensure_ascii=False))
        return 0
    for change in outcome.changes:
        print(f"{SIGNS[change.action]} {change.action} {change.kind} {change.id} {change.name}")
    if not outcome.changes:
        print(nothing)
    return 0
