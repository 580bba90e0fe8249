"""The table of hostile paths, as bytes on a wire (OP-62)."""

from __future__ import annotations

import re
from pathlib import Path

TABLE = Path(__file__).with_name("hostile_paths.txt")
BYTE = re.compile(r"\\x([0-9a-f]{2})")


def hostile() -> list[bytes]:
    r"""One path a line of the table; ``\xNN`` with two hexadecimal digits stands for one byte."""
    lines = TABLE.read_text(encoding="utf-8").split("\n")[:-1]
    found = []
    for line in lines:
        pieces = BYTE.split(line)
        found.append(
            b"".join(bytes.fromhex(piece) if place % 2 else piece.encode() for place, piece in enumerate(pieces))
        )
    return found
