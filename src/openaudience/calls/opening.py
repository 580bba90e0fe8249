"""Which edge store the setting ``edge.store`` means."""

from __future__ import annotations

from pathlib import Path

from openaudience.calls.owner import Owner
from openaudience.calls.sqlite import SqliteCalls
from openaudience.calls.store import CallStore
from openaudience.errors import UsageError
from openaudience.store.files import Fault, no_fault

FILE = "calls.db"
"""Where nothing else is said, the calls of an environment lie in its folder under this name."""


def open_calls(
    address: str, folder: Path, seeds: tuple[int, int], *, owner: Owner | None = None, fault: Fault = no_fault
) -> CallStore:
    """The calls of the environment that lies in ``folder``; ``seeds`` and ``owner`` as for ``SqliteCalls``.

    ``address``: as for ``file_of``. Raises UsageError for any other, and where it names a new file although the old one
    lies in the folder; and as ``SqliteCalls``.
    """
    path, old = file_of(address, folder), folder / FILE
    if old.exists() and not path.exists():
        raise UsageError(
            f"edge.store names {path}, which is not there, but the calls of this installation lie in {old}. Stop all "
            f"programs, then move {old} there with {FILE}-wal and {FILE}-shm, or set edge.store back."
        )
    return SqliteCalls(path, seeds=seeds, owner=owner, fault=fault)


def file_of(address: str, folder: Path) -> Path:
    """The file in which the calls of the environment lie whose folder is ``folder``.

    ``address``: empty, or ``sqlite:///PATH``, where a relative path starts at ``folder`` (an absolute one needs a
    fourth slash). One setting serves all environments, so an absolute path gets the name of the folder appended.
    Raises UsageError for any other.
    """
    if not address:
        return folder / FILE
    scheme, colon, rest = address.partition(":")
    if not colon:
        raise UsageError("edge.store is no address; write sqlite:///PATH, or leave it empty for a file of the home")
    # Nothing but the scheme is shown: what follows may hold a password.
    if scheme != "sqlite":
        raise UsageError(f"edge.store: {scheme}: is not available yet; write sqlite:///PATH, or leave it empty")
    path = Path(rest.removeprefix("///"))
    if not rest.startswith("///") or not path.name:
        raise UsageError("edge.store names no file; write sqlite:///PATH, with four slashes for an absolute path")
    return path.with_name(f"{path.name}.{folder.name}") if path.is_absolute() else folder / path
