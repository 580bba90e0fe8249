"""The seam between a file check and what reads its lines: the compiled scanner, or its exact twin in plain Python."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openaudience.errors import FileRejected
from openaudience.inbound.decode import Block
from openaudience.inbound.records import Line, parse_line, split_lines
from openaudience.vocabulary import INVALID_AAM_IDS, REASON_NUMBER, Layout

_SEEDS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)


@dataclass(frozen=True, slots=True)
class Found:
    """The non-blank lines of a block in file order, ``n`` of them.

    ``line``: physical numbers from 1; ``reason``: REASON_NUMBER; ``column``: character column of the fault, from 1,
    0 without one; ``key``: one number a user ID (data files; None for ID-sync files); codes of row i:
    ``codes[tok[i]:tok[i + 1]]``; ``id_dpid``: of ODC lines. ``raw(row)`` is the line, ``id(column, row)`` an ID.
    """

    line: NDArray[np.int64]
    reason: NDArray[np.uint8]
    column: NDArray[np.int32]
    key: NDArray[np.uint64] | None
    tok: NDArray[np.int64]
    codes: NDArray[np.int32]
    id_dpid: NDArray[np.int32] | None
    raw: Callable[[int], bytes]
    id: Callable[[int, int], bytes]

    @property
    def well_formed(self) -> NDArray[np.bool_]:
        """Rows without a format error; their IDs may still be invalid (IN-26)."""
        formed: NDArray[np.bool_] = (self.reason == 0) | (self.reason >= INVALID_AAM_IDS.start)
        return formed


Scanner = Callable[[Block], Found]


def scanned(scan: Scanner, blocks: Iterable[Block], ahead: int = 2) -> Iterator[Found]:
    """Scans blocks in ``ahead`` threads while the next are read and the last are judged; keeps their order.

    What reading raises comes after the results of all blocks before it.
    """
    problem: FileRejected | None = None
    waiting: deque[Future[Found]] = deque()
    with ThreadPoolExecutor(ahead) as pool:
        try:
            for block in blocks:
                waiting.append(pool.submit(scan, block))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
        except FileRejected as error:
            problem = error
        while waiting:
            yield waiting.popleft().result()
    if problem is not None:
        raise problem


def compiled_scanner(layout: Layout, code_of: Callable[[bytes], int]) -> Scanner:
    """The compiled scanner with a memo of its own; ``code_of`` numbers raw signals from 1."""
    from openaudience.inbound import scan  # compiles, so only where files are read
    from openaudience.inbound.memo import Memo

    if layout.form in ("data", "odc"):
        memo = Memo(code_of, careful=scan.personal_signal if layout.pii_values else None)

        def data(block: Block) -> Found:
            rows = scan.scan(block.data, block.first_line, layout, memo, _SEEDS)
            return Found(
                rows.line,
                rows.reason,
                rows.column,
                rows.k1,
                rows.tok,
                rows.codes,
                rows.id_dpid,
                rows.raw,
                lambda _column, row: rows.id(row),
            )

        return data

    def ids(block: Block) -> Found:
        rows = scan.scan_ids(block.data, block.first_line, layout, _SEEDS)
        nothing = np.zeros(len(rows) + 1, np.int64)
        return Found(rows.line, rows.reason, rows.column, None, nothing, np.empty(0, np.int32), None, rows.raw, rows.id)

    return ids


def exact_scanner(layout: Layout, code_of: Callable[[bytes], int]) -> Scanner:
    """The same in plain Python, a line at a time: the oracle of the compiled one."""

    def scan(block: Block) -> Found:
        lines: list[tuple[int, bytes, Line]] = [
            (block.first_line + number - 1, line, parse_line(line, layout))
            for number, line in split_lines(block.data.tobytes())
        ]
        tokens = [[code_of(token) for token in parsed.tokens] for _, _, parsed in lines]
        data = layout.form in ("data", "odc")

        def column(values: list[int], kind: Any) -> Any:
            return np.array(values, kind)

        return Found(
            line=column([number for number, _, _ in lines], np.int64),
            reason=column([REASON_NUMBER[parsed.reason] for _, _, parsed in lines], np.uint8),
            column=column([parsed.column for _, _, parsed in lines], np.int32),
            key=column([hash(parsed.ids) & (2**64 - 1) for _, _, parsed in lines], np.uint64) if data else None,
            tok=np.cumsum([0, *(len(codes) for codes in tokens)], dtype=np.int64),
            codes=column([code for codes in tokens for code in codes], np.int32),
            id_dpid=column([parsed.id_dpid or 0 for _, _, parsed in lines], np.int32) if layout.form == "odc" else None,
            raw=lambda row: lines[row][1],
            id=lambda place, row: lines[row][2].ids[place],
        )

    return scan
