"""Which edge store the setting ``edge.store`` means."""

from __future__ import annotations

from pathlib import Path

from openaudience.calls.sqlite import SqliteCalls
from openaudience.calls.store import CallStore
from openaudience.errors import UsageError
from openaudience.store.files import Fault, no_fault

FILE = "calls.db"
"""Where nothing else is said, the calls of an environment lie in its folder under this name."""


def open_calls(
    address: str, folder: Path, seeds: tuple[int, int], *, keep: bool = False, fault: Fault = no_fault
) -> CallStore:
    """The calls of the environment that lies in ``folder``; ``seeds`` and ``keep`` as for ``SqliteCalls``.

    ``address``: empty, or ``sqlite:///PATH``, where a relative path starts at ``folder`` (an absolute one needs a
    fourth slash). One setting serves all environments, so an absolute path gets the name of the folder appended.
    Raises UsageError for any other, and as ``SqliteCalls``.
    """
    if not address:
        return SqliteCalls(folder / FILE, seeds=seeds, keep=keep, fault=fault)
    scheme, colon, rest = address.partition(":")
    if not colon:
        raise UsageError("edge.store is no address; write sqlite:///PATH, or leave it empty for a file of the home")
    # Nothing but the scheme is shown: what follows may hold a password.
    if scheme != "sqlite":
        raise UsageError(f"edge.store: {scheme}: is not available yet; write sqlite:///PATH, or leave it empty")
    path = Path(rest.removeprefix("///"))
    if not rest.startswith("///") or not path.name:
        raise UsageError("edge.store names no file; write sqlite:///PATH, with four slashes for an absolute path")
    path = path.with_name(f"{path.name}.{folder.name}") if path.is_absolute() else folder / path
    return SqliteCalls(path, seeds=seeds, keep=keep, fault=fault)
