"""File formats: which macros there are, what is wrong with a template, and files from templates (40 §6, §7).

``check_format`` judges a format on save, ``compile_format`` makes it ready for runs, ``default_format`` is the one of
destinations that name none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias

from openaudience.errors import TemplateError
from openaudience.outbound.dates import DatePattern, PatternFault
from openaudience.outbound.model import Batch, FileFormat, Rendered, RunContext
from openaudience.outbound.template_grammar import (
    CONSTANTS,
    SPLIT_NUMBER,
    AllOf,
    AnyOf,
    Cond,
    Loop,
    Name,
    Nodes,
    Not,
    Option,
    Tag,
    Test,
    Text,
    parse_template,
)
from openaudience.outbound.template_parts import (
    Choice,
    Column,
    Field,
    FieldName,
    IdPairs,
    Listing,
    ListName,
    OfRun,
    Part,
    Parts,
    SplitNumber,
    fields,
    known_of_run,
    mentioned,
    settle,
    whole,
)
from openaudience.outbound.template_parts import Text as Plain

TemplateName: TypeAlias = Literal["fileName", "header", "row"]
Note: TypeAlias = tuple[str, int, str]
"""A field of the format, the 0-based place in its text, and what is to be said."""

_SPLIT_WARNING = 10_000_000_000  # bytes; OB-184


@dataclass(frozen=True, slots=True)
class FormatCheck:
    """What is wrong with a format (``mistakes``: nothing is saved) and what is doubtful (``warnings``)."""

    mistakes: list[Note]
    warnings: list[Note]


@dataclass(frozen=True, slots=True)
class Needs:
    """What the rows of a template are rendered from, so that nothing else has to be looked up.

    ``dpuuid``, ``uuid``, ``mcid``, ``id_list``: the columns of ``Batch``; ``dpuuids``: (DPID, so many IDs of each user
    at most, 0 = all); ``segments``, ``removed``, ``traits``: the lists. Times stand beside the lists:
    ``segment_times`` is ``Lists.updated`` and ``realized_times`` ``Lists.realized`` of current and removed segments,
    ``trait_times`` ``Lists.realized`` of traits. ``one_row_per_user``: else one row per exported ID (OB-87).
    """

    dpuuid: bool
    uuid: bool
    mcid: bool
    id_list: bool
    dpuuids: tuple[tuple[int, int], ...]
    segments: bool
    removed: bool
    traits: bool
    segment_times: bool
    realized_times: bool
    trait_times: bool
    one_row_per_user: bool


class Templates:
    """The templates of a file format, ready to use. ``needs``: what the rows are rendered from."""

    def __init__(self, file_name: Parts, header: Parts, row: Parts) -> None:
        self._file_name = file_name
        self._header = header
        self._row = row
        self.needs = _needs(row)
        self._last: tuple[RunContext, Callable[[Batch], Rendered]] | None = None

    def file_name(self, run: RunContext, split: str) -> str:
        """The name of a part before compression; ``split``: its number as it is written, '' for a single one."""
        text = whole(settle(self._file_name, known_of_run(run, split)))
        assert text is not None
        return text.decode()

    def header(self, run: RunContext) -> bytes:
        """The header without the LF behind it; empty: files have none (OB-86)."""
        text = whole(settle(self._header, known_of_run(run)))
        assert text is not None
        return text

    def rows(self, run: RunContext, batch: Batch) -> Rendered:
        """The rows of a batch, each followed by LF.

        Raises ``ValueError`` if the batch lacks what ``needs`` names; lists of elements it lacks are empty.
        """
        if self._last is None or self._last[0] != run:
            self._last = run, _renderer(settle(self._row, known_of_run(run)))
        return self._last[1](batch)


def _renderer(parts: Parts) -> Callable[[Batch], Rendered]:
    # Imported here, for whoever only saves formats need not load the compiler.
    from openaudience.outbound.template_columns import Columns
    from openaudience.outbound.template_rows import render_rows

    if columns := Columns.of(parts):
        return columns.render
    return lambda batch: render_rows(parts, batch)


def compile_format(format: FileFormat) -> Templates:
    """Makes a saved format ready for runs. Raises ``TemplateError`` with its first mistake (OB-88)."""
    readings = [_Reading(name, text, format.timestamp_digits) for name, text in _texts(format)]
    for reading in readings:
        for _, position, text in reading.mistakes:
            raise TemplateError(position, f"{reading.template}: {text}")
    file_name, header, row = (reading.parts for reading in readings)
    return Templates(file_name, header, row)


def _texts(format: FileFormat) -> tuple[tuple[TemplateName, str], ...]:
    return ("fileName", format.file_name), ("header", format.header), ("row", format.row)


def check_format(document: Mapping[str, Any]) -> FormatCheck:
    """Judges the templates of a file format (API-204) on save (OB-88, OB-89).

    The types of the document's fields and the ranges of the others have been judged before. Mistakes and warnings
    stand in the order of the templates ``fileName``, ``header``, ``row`` and of their text.
    """
    check = FormatCheck([], [])
    names: tuple[TemplateName, ...] = ("fileName", "header", "row")
    for name in names:
        text = document.get(name) or ""
        reading = _Reading(name, text, document.get("timestampDigits", 13))
        check.mistakes.extend(reading.mistakes)
        check.warnings.extend(reading.warnings)
    if (document.get("maxFileSize") or 0) > _SPLIT_WARNING:
        check.warnings.append(("maxFileSize", 0, "recipients often cannot take files above 10 GB"))
    return check


def default_format(destination_type: str) -> FileFormat:
    """The format of destinations that name none (OB-113 … OB-115)."""
    match destination_type:
        case "BULK_TRAIT":
            row = '<DP_UUID> <TRAIT_LIST;separator=",">'
        case "BULK_ID":
            row = "<UUID><TAB><DP_UUID>"
        case _:
            row = (
                '<DP_UUID> <SEGMENT_LIST:{seg|<seg.sid>}; separator=","> '
                '<REMOVED_SEGMENT_LIST:{seg|<seg.sid>}; separator=",">'
            )
    name = "<SYNC_TYPE>_<ORDER_ID>_<MASTER_DPID><if(PID_ALIAS)>_<PID_ALIAS><endif>_<SYNC_MODE>_<TIMESTAMP>SPLITNUM.sync"
    return FileFormat(name, row)


@dataclass(frozen=True, slots=True)
class _Macro:
    """A macro and the templates it may stand in; ``deprecated``: what to say of its use (OB-89)."""

    part: Part
    where: frozenset[TemplateName]
    deprecated: str = ""


_EVERYWHERE: frozenset[TemplateName] = frozenset({"fileName", "header", "row"})
_IN_FILES: frozenset[TemplateName] = frozenset({"header", "row"})
_IN_NAMES: frozenset[TemplateName] = frozenset({"fileName"})
_IN_ROWS: frozenset[TemplateName] = frozenset({"row"})


def _listing(name: ListName, level: int = 0) -> Listing:
    return Listing(name, level, (Field(level, "id"),), b"")


_TIMESTAMP = OfRun(lambda run: str(run.started))
_SHORT_TIMESTAMP = OfRun(lambda run: str(run.started // 1000))
_PAIRS = IdPairs((), 0)

_MACROS: dict[str, _Macro] = {
    "SYNC_TYPE": _Macro(OfRun(lambda run: run.sync_type), _EVERYWHERE),
    "SYNC_MODE": _Macro(OfRun(lambda run: run.sync_mode), _EVERYWHERE),
    "ORDER_ID": _Macro(OfRun(lambda run: str(run.order_id)), _EVERYWHERE),
    "DPID": _Macro(OfRun(lambda run: str(run.dpid)), _EVERYWHERE),
    "MASTER_DPID": _Macro(OfRun(lambda run: str(run.master_dpid)), _EVERYWHERE),
    "PID_ALIAS": _Macro(OfRun(lambda run: run.pid_alias), _EVERYWHERE),
    "PIDALIAS": _Macro(OfRun(lambda run: run.pid_alias), _EVERYWHERE),
    "PID": _Macro(OfRun(lambda run: str(run.pid)), _EVERYWHERE),
    "TIMESTAMP": _Macro(_TIMESTAMP, _EVERYWHERE),
    SPLIT_NUMBER: _Macro(SplitNumber(), _IN_NAMES),
    "TAB": _Macro(Plain(b"\t"), _IN_FILES),
    "ASCII_SOH": _Macro(Plain(b"\x01"), _IN_FILES),
    "NEW_LINE": _Macro(Plain(b"\n"), _IN_FILES),
    "COMMA": _Macro(Plain(b","), _EVERYWHERE),
    "OPEN_CURLY_BRACKET": _Macro(Plain(b"{"), _IN_FILES),
    "CLOSE_CURLY_BRACKET": _Macro(Plain(b"}"), _IN_FILES),
    "DP_UUID": _Macro(Column("ids"), _IN_ROWS),
    "DP_UUID_LIST": _Macro(_listing("id_lists"), _IN_ROWS),
    "UUID": _Macro(Column("uuids"), _IN_ROWS),
    "MCID": _Macro(Column("mcids"), _IN_ROWS),
    "SEGMENT_LIST": _Macro(_listing("segments"), _IN_ROWS),
    "REMOVED_SEGMENT_LIST": _Macro(_listing("removed"), _IN_ROWS),
    "TRAIT_LIST": _Macro(_listing("traits"), _IN_ROWS),
    "DPUUIDS": _Macro(_PAIRS, _IN_ROWS),
    "SET_ATTRIBUTES": _Macro(Plain(b"1"), _IN_ROWS),
    "OUTPUT_ATTRIBUTE_VALUE": _Macro(Plain(b"1"), _IN_ROWS),
    "OPT_OUT": _Macro(Plain(b"0"), _IN_ROWS, "it is always 0"),
    "OUTPUT_ATTRIBUTE_TYPE": _Macro(Plain(b""), _IN_ROWS, "it is always empty"),
}

_SEGMENT_FIELDS: dict[str, FieldName] = {
    "sid": "id",
    "segmentid": "legacy",
    "csegid": "legacy",
    "type": "segment_type",
    "alias": "alias",
    "lastupdatetime": "updated",
    "lastrealizationtime": "realized",
}
_FIELDS: dict[ListName, dict[str, FieldName]] = {
    "segments": _SEGMENT_FIELDS,
    "removed": _SEGMENT_FIELDS,
    "traits": {"traitid": "id", "id": "id", "sid": "id", "type": "trait_type", "lastrealized": "realized"},
    "id_lists": {},
}
_DEPRECATED_FIELDS = {
    "segmentid": "it is the legacy ID of an imported segment; use sid",
    "csegid": "it is the legacy ID of an imported segment; use sid",
    "alias": "recipients of the reference are told so, yet it works here and gives the destination value",
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(?:\.(?:[A-Za-z][A-Za-z0-9_]*|[0-9]+|\([A-Za-z][A-Za-z0-9_]*\)))*")
_VARIABLE = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_NOTHING = Plain(b"")
_PLACES: dict[TemplateName, str] = {"fileName": "file names", "header": "headers", "row": "rows"}


@dataclass
class _Reading:
    """A template with what it means and what is to be said of it. ``parts`` count only without mistakes."""

    template: TemplateName
    source: str
    timestamp_digits: int
    mistakes: list[Note] = field(default_factory=list)
    warnings: list[Note] = field(default_factory=list)
    parts: Parts = ()
    # The loop variables with their lists, the outermost iterator first.
    _scope: list[tuple[str, ListName]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.source and self.template != "header":
            self._wrong(0, "the template is empty; every file format needs one")
        try:
            nodes = parse_template(self.source, split_number=self.template == "fileName")
        except TemplateError as error:
            self._wrong(error.position, error.message)
        else:
            self.parts = self._all(nodes)
            # The options of a list stand behind its body, yet are judged first.
            self.mistakes.sort(key=lambda note: note[1])
            self.warnings.sort(key=lambda note: note[1])

    def _wrong(self, at: int, text: str) -> Part:
        self.mistakes.append((self.template, at, text))
        return _NOTHING

    def _doubt(self, at: int, text: str) -> None:
        self.warnings.append((self.template, at, text))

    def _all(self, nodes: Nodes) -> Parts:
        parts: list[Part] = []
        for node in nodes:
            if isinstance(node, Text):
                parts.append(Plain(node.text.encode()))
            elif isinstance(node, Tag):
                parts.append(self._tag(node))
            else:
                parts.append(self._choice(node))
        return tuple(parts)

    def _choice(self, node: Cond) -> Choice:
        return Choice(self._test(node.test), self._all(node.then), self._all(node.otherwise))

    def _test(self, test: Test[Name]) -> Test[Part]:
        if isinstance(test, Not):
            return Not(self._test(test.test))
        if isinstance(test, AllOf):
            return AllOf(tuple(self._test(one) for one in test.tests))
        if isinstance(test, AnyOf):
            return AnyOf(tuple(self._test(one) for one in test.tests))
        part = self._named(test)
        if part is _PAIRS:
            return self._wrong(test.at, "DPUUIDS needs a format and so cannot stand in a condition")
        return part

    def _named(self, name: Name) -> Part:
        """What a macro or a field of a loop variable means, without options."""
        base, _, rest = name.text.partition(".")
        if not _NAME.fullmatch(name.text):
            return self._wrong(name.at, f"{name.text[:60]!r} is no name of a macro or field")
        for level in reversed(range(len(self._scope))):
            if self._scope[level][0] == base:
                return self._field(name, level, rest)
        macro = _MACROS.get(base)
        if macro is None:
            known = [one for one in _MACROS if self.template in _MACROS[one].where]
            close = get_close_matches(base.upper(), known, 1)
            hint = f"did you mean {close[0]}?" if close else f"{_PLACES[self.template]} know {', '.join(known)}"
            what = "loop variable (here) and no macro" if rest else "macro"
            return self._wrong(name.at, f"there is no {what} {base[:60]!r}; {hint}")
        if self.template not in macro.where:
            places = " and ".join(_PLACES[one] for one in _PLACES if one in macro.where)
            return self._wrong(name.at, f"{base} cannot stand in {_PLACES[self.template]}; it is for {places}")
        if rest:
            return self._wrong(
                name.at, f"{base} has no fields; fields belong to loop variables, as in {{seg|<seg.sid>}}"
            )
        if macro.deprecated:
            self._doubt(name.at, f"{base} is deprecated: {macro.deprecated}")
        if macro.part is _TIMESTAMP and self.timestamp_digits == 10:
            return _SHORT_TIMESTAMP
        return macro.part

    def _field(self, name: Name, level: int, rest: str) -> Part:
        known = _FIELDS[self._scope[level][1]]
        # The variable itself is what a list without iterator writes.
        found: FieldName | None = known.get(rest.lower()) if rest else "id"
        if found is None:
            hint = f"it has {', '.join(known)}" if known else "IDs have none"
            return self._wrong(name.at, f"there is no field {rest[:60]!r}; {hint}")
        if text := _DEPRECATED_FIELDS.get(rest.lower()):
            self._doubt(name.at, f"{rest} is deprecated: {text}")
        return Field(level, found)

    def _tag(self, tag: Tag) -> Part:
        name = tag.name
        part = self._named(name)
        if part is _NOTHING:
            return part
        options = self._options(tag, part)
        separator, pattern = options.get("separator"), options.get("format")
        if isinstance(part, Listing):
            if separator is None:
                self._doubt(name.at, f"{name.text} has no separator, so its elements run together")
            return self._list(part, tag.loop, b"" if separator is None else self._value(separator).encode())
        if tag.loop:
            return self._wrong(tag.loop.variable.at, f"{name.text} is no list and so takes no iterator")
        if part is _PAIRS:
            if pattern is None:
                return self._wrong(
                    name.at, 'DPUUIDS needs a format, such as format="dpids=1,2|maxMappings=1|format=json"'
                )
            return self._pairs(pattern)
        return part if pattern is None else self._date(pattern)

    def _list(self, part: Listing, loop: Loop | None, separator: bytes) -> Listing:
        level = len(self._scope)
        body: Parts = (Field(level, "id"),)
        if loop:
            if not _VARIABLE.fullmatch(loop.variable.text):
                self._wrong(loop.variable.at, f"{loop.variable.text[:60]!r} is no name for a loop variable")
            self._scope.append((loop.variable.text, part.name))
            body = self._all(loop.body)
            self._scope.pop()
        return Listing(part.name, level, body, separator)

    def _options(self, tag: Tag, part: Part) -> dict[str, Option]:
        allowed = ""
        if isinstance(part, Listing):
            allowed = "separator"
        elif part in (_TIMESTAMP, _SHORT_TIMESTAMP, _PAIRS):
            allowed = "format"
        options: dict[str, Option] = {}
        for option in tag.options:
            name, value = option.name, option.value
            if name.text not in ("separator", "format"):
                self._wrong(name.at, f"there is no option {name.text[:60]!r}; there are separator and format")
            elif name.text != allowed:
                self._wrong(name.at, f"{tag.name.text} takes {f'only {allowed}' if allowed else 'no option'}")
            elif name.text in options:
                self._wrong(name.at, f"{name.text} is given twice; remove one")
            elif isinstance(value, Name) and value.text not in CONSTANTS:
                known = ", ".join(CONSTANTS)
                self._wrong(value.at, f'there is no constant {value.text[:60]!r}; use {known} or a text in "…"')
            else:
                options[name.text] = option
        return options

    @staticmethod
    def _value(option: Option) -> str:
        return CONSTANTS[option.value.text] if isinstance(option.value, Name) else option.value

    @staticmethod
    def _place(option: Option, at: int) -> int:
        """Where character ``at`` of the value stands in the template."""
        if isinstance(option.value, Name):
            return option.value.at
        return option.places[at] if at < len(option.places) else option.name.at

    def _date(self, option: Option) -> Part:
        try:
            pattern = DatePattern(self._value(option))
        except PatternFault as fault:
            return self._wrong(self._place(option, fault.remark.at), fault.remark.text)
        for remark in pattern.remarks:
            self._doubt(self._place(option, remark.at), remark.text)
        return OfRun(lambda run: pattern.text(run.started))

    def _pairs(self, option: Option) -> Part:
        """OB-110: ``dpids=A,B|maxMappings=n|format=json``, the parts in any order."""
        values: dict[str, str] = {}
        begin = 0
        for piece in self._value(option).split("|"):
            at, begin = self._place(option, begin), begin + len(piece) + 1
            name, _, value = (one.strip() for one in piece.partition("="))
            pattern = _PAIR_OPTIONS.get(name)
            if pattern is None:
                return self._wrong(
                    at, f"the format of DPUUIDS has no part {name[:60]!r}; it has {', '.join(_PAIR_OPTIONS)}"
                )
            if name in values:
                return self._wrong(at, f"{name} is given twice; remove one")
            if not pattern.fullmatch(value):
                return self._wrong(at, f"{value[:60]!r} cannot be the {name} of DPUUIDS; {_PAIR_EXAMPLE}")
            values[name] = value
        if "dpids" not in values:
            return self._wrong(option.name.at, f"the format of DPUUIDS needs dpids; {_PAIR_EXAMPLE}")
        return IdPairs(tuple(int(one) for one in values["dpids"].split(",")), int(values.get("maxMappings", 0)))


_PAIR_OPTIONS = {
    "dpids": re.compile(r"[0-9]{1,18}(?:\s*,\s*[0-9]{1,18})*"),
    "maxMappings": re.compile(r"[0-9]{1,9}"),
    "format": re.compile("json"),
}
_PAIR_EXAMPLE = "write dpids=52011,52022|maxMappings=0|format=json"


def _needs(row: Parts) -> Needs:
    parts = list(mentioned(row))
    columns = {part.name for part in parts if isinstance(part, Column)}
    listed = {part.name for part in parts if isinstance(part, Listing)}
    pairs: dict[int, int] = {}
    for pair in (part for part in parts if isinstance(part, IdPairs)):
        for dpid in pair.dpids:
            # Of two tags the one that asks for more counts, and 0 asks for all.
            most = pairs.get(dpid, pair.most)
            pairs[dpid] = max(most, pair.most) if most and pair.most else 0
    times = {(part.name, name) for part in parts if isinstance(part, Listing) for name in fields(part)}
    return Needs(
        dpuuid="ids" in columns,
        uuid="uuids" in columns,
        mcid="mcids" in columns,
        id_list="id_lists" in listed,
        dpuuids=tuple(pairs.items()),
        segments="segments" in listed,
        removed="removed" in listed,
        traits="traits" in listed,
        segment_times=bool(times & {("segments", "updated"), ("removed", "updated")}),
        realized_times=bool(times & {("segments", "realized"), ("removed", "realized")}),
        trait_times=("traits", "realized") in times,
        one_row_per_user="id_lists" in listed or "ids" not in columns,
    )
