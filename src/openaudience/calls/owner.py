"""Whose an edge store is: no installation opens the file of another, nor one that is behind its tables unawares."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from openaudience.errors import SystemFailure
from openaudience.store.files import make_once

STAMP = "calls.stamp"
"""In the folder of an environment: what its edge store bears, 1 to 2^31 - 1, as text."""

OptOutRow = tuple[int, int, int, int, int, str | None]
"""Both keys of the ID, DPID, partner, UTC seconds, text."""


@dataclass(frozen=True, slots=True)
class Owner:
    """An environment as its edge store asks for it, while it is opened by one process at a time.

    ``drained``: gives the number of the last call that is in the tables. ``optouts``: gives all that are in them.
    """

    folder: Path
    drained: Callable[[], int]
    optouts: Callable[[], Sequence[OptOutRow]]

    def had_store(self) -> bool:
        """Whether there was a store before."""
        return (self.folder / STAMP).is_file()

    def stamp(self) -> int:
        """What the store bears; made when it is first asked for. Raises StoreUnavailable, SystemFailure."""
        file = self.folder / STAMP
        if not file.is_file():
            write_stamp(self.folder, new_stamp())
        try:
            stamp = int(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise SystemFailure(f"{file}: cannot be read: {error.strerror}; mend that, then try again") from None
        except ValueError:
            stamp = 0
        if not 0 < stamp < 1 << 31:
            raise SystemFailure(
                f"{file} is damaged: it holds the stamp of the edge store, a number. Write the number into it that "
                "`sqlite3 FILE 'PRAGMA application_id'` prints for this installation's edge store."
            )
        return stamp


def new_stamp() -> int:
    return secrets.randbelow((1 << 31) - 1) + 1


def write_stamp(folder: Path, stamp: int) -> None:
    """Gives an environment its stamp, unless it has one. Raises StoreUnavailable."""
    make_once(folder / STAMP, f"{stamp}\n".encode())
