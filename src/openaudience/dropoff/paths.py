"""Paths as clients write them: one normaliser for FTP, SFTP, object keys and exports (OP-62).

What comes out is a tuple of plain names: none is empty, ``.``, ``..``, too long, or holds ``/``, NUL or a control
character. So joined to a folder it stays inside, whatever was written.
"""

from __future__ import annotations

import os
from pathlib import Path

from openaudience.errors import InputError

LONGEST_NAME = 255
LONGEST_PATH = 4096
MOST_PARTS = 64
UNFINISHED = (".tmp", ".part", ".partial", ".filepart", "~")
"""Endings of names under which senders' programs upload before they rename (IN-05)."""


class PathRefused(InputError):
    """A path that no file of a partner can have."""


def parts(path: str | bytes, base: tuple[str, ...] = (), *, clamp: bool = True) -> tuple[str, ...]:
    """The names of a path, from the root of what the client sees; ``base``: where a relative path starts.

    ``..`` goes up and, with ``clamp``, stays at the root as in any file system; without it, going above the root is
    refused. Raises ``PathRefused``.
    """
    if isinstance(path, bytes):
        try:
            path = path.decode()
        except UnicodeDecodeError:
            raise PathRefused("the path is not UTF-8; name the file in UTF-8") from None
    if len(path) > LONGEST_PATH:
        raise PathRefused(f"the path is longer than {LONGEST_PATH} characters")
    found = [] if path.startswith("/") else list(base)
    for name in path.split("/"):
        if name in ("", "."):
            continue
        if name == "..":
            if found:
                found.pop()
            elif not clamp:
                raise PathRefused("the path leads out of the folder")
            continue
        check_name(name)
        found.append(name)
    if len(found) > MOST_PARTS:
        raise PathRefused(f"the path has more than {MOST_PARTS} folders")
    return tuple(found)


def check_name(name: str) -> None:
    """Raises ``PathRefused`` unless this can be the name of one file or folder."""
    if name in ("", ".", ".."):
        raise PathRefused(f"{name!r} is no name")
    if any(char < " " or char == "\x7f" or char in "/\\" for char in name):
        raise PathRefused("a name holds a slash, a backslash or a control character; rename the file")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        # names that came as other bytes than UTF-8
        raise PathRefused("a name is not UTF-8; rename the file") from None
    if size > LONGEST_NAME:
        raise PathRefused(f"a name is longer than {LONGEST_NAME} bytes; shorten it")


def inside(root: Path, names: tuple[str, ...]) -> Path:
    """The place of a path below ``root``, where no folder on the way, nor the place itself, is a symbolic link.

    Raises ``PathRefused``.
    """
    place = root
    for name in names:
        check_name(name)
        place = place / name
        if place.is_symlink():
            raise PathRefused("symbolic links are not followed")
    return place


def shown(names: tuple[str, ...]) -> str:
    """The path as the client sees it."""
    return "/" + "/".join(names)


def printable(text: str) -> str:
    """A name, path or command as it can be stored, shown, logged and mailed: no control characters, valid UTF-8."""
    if text.isprintable():
        return text
    clean = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in clean)


def unfinished(name: str) -> bool:
    """Whether a name says that its upload is still going on (IN-05)."""
    return name.startswith(".") or name.lower().endswith(UNFINISHED)


def real_folder(path: str | os.PathLike[str]) -> Path:
    """A configured folder without links, so that ``inside`` speaks of what is really there."""
    return Path(os.path.realpath(path))
