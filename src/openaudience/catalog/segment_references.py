"""Which traits a segment rule names; the language itself belongs to the room of segments."""

from __future__ import annotations

import re

_TRAIT = re.compile(r"(?<![A-Za-z0-9_])([0-9]{1,10})T(?![A-Za-z0-9_])")


def trait_sids(rule: str) -> tuple[int, ...]:
    """Distinct trait numbers of a segment rule (``901T AND NOT 902T``) in order of first mention."""
    return tuple(dict.fromkeys(int(number) for number in _TRAIT.findall(rule)))
