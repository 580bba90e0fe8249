"""Error samples of a file while it is read (IN-85, UI-61 … UI-69)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from openaudience.catalog.ledger import SampleRow
from openaudience.identity import formats
from openaudience.inbound.scan import Rows
from openaudience.vocabulary import (
    FORMAT_ERRORS,
    INVALID_AAM_IDS,
    INVALID_DEVICE_IDS,
    NO_MATCHES,
    NO_TRAITS,
    REASONS,
    Layout,
)

MOST_GROUPS = 10_000
SHOWN = 10
LONGEST = 200
TYPES = (FORMAT_ERRORS, INVALID_AAM_IDS, INVALID_DEVICE_IDS, NO_MATCHES, NO_TRAITS)
KEEP_DAYS = 30


@dataclass(slots=True)
class _Group:
    count: int
    line: int
    column: int
    shown: str


class ErrorSampler:
    """Groups failing records by reason and offending content; keeps at most 10,000 groups a type."""

    def __init__(self, environment: str, data_source: int, layout: Layout) -> None:
        self._environment = environment
        self._data_source = data_source
        self._layout = layout
        self._groups: list[dict[tuple[int, bytes], _Group]] = [{} for _ in TYPES]

    def see(self, rows: Rows) -> None:
        """Takes the failing rows of a block, whose reasons are final."""
        for place, members in enumerate(TYPES):
            groups = self._groups[place]
            failing = np.flatnonzero((rows.reason >= members.start) & (rows.reason < members.stop))
            for row in failing.tolist():
                reason = int(rows.reason[row])
                # what offends is the ID where there is one, else the whole line
                content = rows.raw(row)[:LONGEST] if place in (0, 4) else rows.id(row)
                group = groups.get((reason, content))
                if group is not None:
                    group.count += 1
                elif len(groups) < MOST_GROUPS:
                    groups[reason, content] = _Group(
                        1, int(rows.line[row]), int(rows.column[row]), masked(content, REASONS[reason])
                    )

    def rows(self, file: int, now: int = 0) -> list[SampleRow]:
        """The ten most frequent groups of each type, ready for the ledger."""
        out: list[SampleRow] = []
        for groups in self._groups:
            best = sorted(groups.items(), key=lambda item: (-item[1].count, item[1].line))[:SHOWN]
            out.extend(
                SampleRow(
                    environment=self._environment,
                    file=file,
                    data_source=self._data_source,
                    reason=REASONS[reason],
                    count=group.count,
                    line=group.line,
                    column=group.column,
                    shown=group.shown,
                    until=now + KEEP_DAYS * 86_400,
                )
                for (reason, _), group in best
            )
        return out


_PRIVATE = re.compile(r'((?:^|[\t,]) *["“”]?[- ]*p_[^=,]*=)((?: *["“”][^"“”]*["“”])?[^,]*)', re.IGNORECASE)


def masked(content: bytes, reason: str) -> str:
    """Offending content as it may be shown (UI-68): what the guard refuses is masked for everybody (RT-1920), values
    of ``p_`` keys are left out (RT-1010).
    """
    text = content.decode("utf-8", "replace")
    ident, tab, rest = text.partition("\t")
    if reason in ("pii", "pii_value") or formats.pii(ident.strip()):
        return formats.mask(ident.strip()) + (tab + "…" if rest else "")
    return _PRIVATE.sub(r"\1…", text)
