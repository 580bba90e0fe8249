"""The run and the users of the golden cases of templates (40 §7), as batches of rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from openaudience.outbound.model import Batch, Element, FileFormat, Lists, RunContext
from openaudience.outbound.templates import Needs, default_format

HERE = Path(__file__).parent

RUN = RunContext(
    sync_type="s3",
    sync_mode="iter",
    order_id=7301,
    dpid=640,
    master_dpid=52011,
    pid_alias="acct-77",
    pid=1510,
    started=1710003906789,
)

SEGMENTS = (
    Element(2900, "old"),
    Element(3100, "gold"),
    Element(3205, "3205", legacy_id=77),
    Element(3350, "s9"),
    Element(4001, "4001"),
)
TRAITS = (Element(8001, "8001", onboarded=True), Element(8102, "8102"))

Entry = tuple[int, int, int]
"""SID, last update, last realization."""
LEFT = (1709990000000, 1709800000000)


@dataclass(frozen=True)
class User:
    """``ids``: by data source, most recently synced first."""

    uuid: bytes
    mcid: bytes
    ids: dict[int, tuple[bytes, ...]]
    added: tuple[Entry, ...] = ()
    removed: tuple[Entry, ...] = ()
    traits: tuple[Entry, ...] = ()


USERS = {
    "U1": User(
        b"38400217650193847261905538274610293847",
        b"61728394050617283940506172839405061728",
        {52011: (b"crm-B4", b"crm-A9"), 52022: (b"W1",), 20915: (b"7C9D1A40-0B5E-4A57-9C1F-2E66D0B3A915",)},
        (
            (3100, 1709971200000, 1709942400000),
            (3205, 1709974800000, 1709974800000),
            (3350, 1709978400000, 1709982000000),
        ),
        ((2900, *LEFT), (4001, *LEFT)),
        ((8001, 0, 1709900000000), (8102, 0, 1709985600000)),
    ),
    "U2": User(
        b"41750028836194057712360984415507763920",
        b"",
        {52011: (b"crm-C7",)},
        ((3100, 1709971200000, 1709942400000),),
    ),
    "U3": User(
        b"50913386472201958834710026659184470315",
        b"72839405061728394050617283940506172839",
        {52011: (b"crm-D1",)},
        removed=((2900, *LEFT),),
    ),
}


@dataclass(frozen=True)
class Case:
    """``kind``: ``name``, ``header``, ``row`` (of ``user``), with what deviates from the run above."""

    rule: str
    kind: str
    user: str
    template: str
    output: str
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def run(self) -> RunContext:
        get = self.settings.get
        return replace(
            RUN,
            sync_mode="full" if get("mode") == "full" else "iter",
            sync_type=get("type", RUN.sync_type),
            pid_alias=get("alias", RUN.pid_alias),
            master_dpid=int(get("key", RUN.master_dpid)),
            started=int(get("started", RUN.started)),
        )

    @property
    def format(self) -> FileFormat:
        default = default_format("S2S")
        return replace(
            default,
            file_name=self.template if self.kind == "name" and self.template != "default" else default.file_name,
            header=self.template if self.kind == "header" else "",
            row=self.template if self.kind == "row" and self.template != "default" else default.row,
            compression="gz" if self.settings.get("compression") == "gz" else "none",
            timestamp_digits=int(self.settings.get("digits", 13)),
        )

    @property
    def part(self) -> int:
        """The number of the part, 0: it is the only one."""
        return int(self.settings.get("part", 0))


def blocks(name: str) -> list[list[str]]:
    """The blocks of lines of a fixture; a line that begins with # and a space is a remark."""
    text = (HERE / name).read_text("utf-8")
    lines = [line for line in text.split("\n") if not line.startswith("# ")]
    return [block.split("\n") for block in re.split("\n\n+", "\n".join(lines).strip("\n"))]


def cases() -> list[Case]:
    found = []
    for block in blocks("template_cases.txt"):
        rule, kind, *words = block[0].split()
        user = words.pop(0) if kind == "row" else ""
        output = block[2]
        for sign, meant in (("(empty)", ""), ("\\t", "\t"), ("\\x01", "\x01"), ("\\n", "\n"), ("␠", " ")):
            output = output.replace(sign, meant)
        settings = {name: value for name, _, value in (word.partition("=") for word in words)}
        found.append(Case(rule, kind, user, block[1], output, settings))
    return found


def batch(needs: Needs, run: RunContext) -> tuple[list[str], Batch]:
    """The rows of all users, and whose they are. Only what is needed is there."""
    rows: list[tuple[str, bytes]] = []
    for name, user in USERS.items():
        ids = user.ids.get(run.master_dpid, ())
        rows += [(name, id) for id in (ids[:1] if needs.one_row_per_user else reversed(ids))]
    users = [USERS[name] for name, _ in rows]
    return [name for name, _ in rows], Batch(
        len(rows),
        ids=[id for _, id in rows] if needs.dpuuid else None,
        uuids=[user.uuid for user in users] if needs.uuid else None,
        mcids=[user.mcid for user in users] if needs.mcid else None,
        id_lists=[user.ids[run.master_dpid] for user in users] if needs.id_list else None,
        others={dpid: [user.ids.get(dpid, ())[: most or None] for user in users] for dpid, most in needs.dpuuids},
        segments=lists([user.added for user in users], SEGMENTS, needs.segment_times, needs.realized_times)
        if needs.segments
        else None,
        removed=lists(
            [() if run.sync_mode == "full" else user.removed for user in users],
            SEGMENTS,
            needs.segment_times,
            needs.realized_times,
        )
        if needs.removed
        else None,
        traits=lists([user.traits for user in users], TRAITS, False, needs.trait_times) if needs.traits else None,
        segment_table=SEGMENTS,
        trait_table=TRAITS,
    )


def lists(rows: Sequence[Sequence[Entry]], table: Sequence[Element], updated: bool, realized: bool) -> Lists:
    places = {element.sid: place for place, element in enumerate(table)}
    entries = [entry for row in rows for entry in row]
    return Lists(
        np.cumsum([0, *map(len, rows)], dtype=np.int64),
        np.array([places[sid] for sid, _, _ in entries], np.int32),
        np.array([at for _, at, _ in entries], np.int64) if updated else None,
        np.array([at for _, _, at in entries], np.int64) if realized else None,
    )
