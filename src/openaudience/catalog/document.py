"""Text of a workspace file to a tree in which every value knows its line and column (OP-31).

YAML and JSON are read by one parser. Timestamps stay text; only null, booleans, numbers and text come out.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from openaudience.errors import Mistake, WorkspaceError

Scalar = str | int | float | bool | None

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?[0-9]+\Z")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?\Z")
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_DEEPEST = 100
_PAIR = re.compile(r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")


@dataclass(slots=True)
class Node:
    """A value of the file: ``value`` is a scalar, a list of nodes, or a dict of nodes by key.

    ``text`` is a plain scalar as it was written (``off`` beside the value false); ``line`` and ``column`` count from 1.
    """

    file: str
    line: int
    column: int
    value: Any
    text: str = ""
    keys: dict[str, Node] = field(default_factory=dict)
    style: str = ""

    def mistake(self, text: str) -> Mistake:
        return Mistake(self.file, self.line, self.column, text)


class _Reader:
    def __init__(self, file: str, json: bool, mistakes: list[Mistake]) -> None:
        self.file = file
        self.json = json
        self.mistakes = mistakes
        self.known: dict[int, Node] = {}
        self.open: set[int] = set()

    def node(self, source: Any, depth: int = 0) -> Node:
        known = self.known.get(id(source))
        if known is not None:
            return known
        mark = source.start_mark
        node = Node(self.file, mark.line + 1, mark.column + 1, None)
        if id(source) in self.open or depth > _DEEPEST:
            self.mistakes.append(node.mistake("an alias that holds itself, or nesting deeper than 100; write it out"))
            return node
        self.open.add(id(source))
        if isinstance(source, yaml.MappingNode):
            node.value = {}
            for key_source, value_source in source.value:
                self.pair(node, key_source, value_source, depth)
        elif isinstance(source, yaml.SequenceNode):
            node.value = [self.node(item, depth + 1) for item in source.value]
        else:
            self.scalar(node, source)
        self.open.discard(id(source))
        self.known[id(source)] = node
        return node

    def pair(self, node: Node, key_source: Any, value_source: Any, depth: int) -> None:
        key = Node(self.file, key_source.start_mark.line + 1, key_source.start_mark.column + 1, None)
        if not isinstance(key_source, yaml.ScalarNode):
            self.mistakes.append(key.mistake("a key must be text"))
            return
        name = str(key_source.value)
        if name in node.value:
            first = node.keys[name]
            self.mistakes.append(key.mistake(f"key {name!r} is given twice, first in line {first.line}; keep one"))
            return
        node.keys[name] = key
        node.value[name] = self.node(value_source, depth + 1)

    def scalar(self, node: Node, source: Any) -> None:
        raw = str(source.value)
        node.text = raw
        node.style = source.style or ""
        if any("\ud800" <= char <= "\udfff" for char in raw):
            self.mistakes.append(node.mistake("half of a surrogate pair stands alone; write the character itself"))
            raw = ""
        node.value = raw
        if source.style in (None, "") and not source.tag.endswith(":str"):
            node.value = _plain(raw)
        elif self.json and source.style in (None, "") and _FLOAT.match(raw):
            # 1e6 is a number in JSON, text in YAML 1.1.
            node.value = _plain(raw)


def _plain(raw: str) -> Scalar:
    if raw in _NULLS:
        return None
    lowered = raw.lower()
    if lowered in _BOOLS:
        return _BOOLS[lowered]
    if _INT.match(raw) and len(raw) <= 4000:
        return int(raw)
    if _FLOAT.match(raw):
        number = float(raw)
        return number if math.isfinite(number) else raw
    return raw


def parse(text: str, file: str) -> Node:
    """The tree of a workspace file's text. Raises WorkspaceError with every fault of form found."""
    mistakes: list[Mistake] = []
    text = text.removeprefix("\ufeff")
    json = text.lstrip()[:1] == "{"
    if json:
        # JSON may be indented with tabs, YAML not; inside JSON text a bare tab is not allowed anyway.
        text = _PAIR.sub(_character, text.replace("\t", " "))
    try:
        source = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise WorkspaceError([Mistake(file, line, column, _problem(error))]) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position] if isinstance(error.position, int) else ""
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        raise WorkspaceError(
            [Mistake(file, line, column, "a character that YAML does not allow; remove or escape it")]
        ) from None
    except (yaml.YAMLError, RecursionError, UnicodeError):
        raise WorkspaceError([Mistake(file, 1, 1, "not readable as YAML or JSON; check the nesting")]) from None
    if source is None:
        raise WorkspaceError([Mistake(file, 1, 1, "the file is empty; it must hold the key 'partners'")])
    root = _Reader(file, json, mistakes).node(source)
    if mistakes:
        raise WorkspaceError(mistakes)
    return root


def _character(match: re.Match[str]) -> str:
    """The character beyond U+FFFF that JSON writes as two escapes; libyaml refuses the halves."""
    high, low = int(match[2], 16), int(match[3], 16)
    return match[1] + chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))


def _problem(error: yaml.MarkedYAMLError) -> str:
    parts = [str(part) for part in (error.context, error.problem) if part]
    return f"not YAML or JSON: {', '.join(parts) or 'unreadable'}; mend the text here"


def locate(node: Node, lines: list[str], offset: int) -> tuple[int, int]:
    """Line and column (from 1) in the file of character ``offset`` of a text scalar.

    Exact for scalars on one line and for ``|`` blocks; of other scalars over several lines, where they begin.
    """
    line = node.line
    if node.style == "|":
        return _locate_block(node, lines, offset)
    if line > len(lines):
        return node.line, node.column
    raw = lines[line - 1]
    at = node.column - 1
    if node.style == "":
        return (line, at + offset + 1) if raw[at : at + len(node.text)] == node.text else (line, node.column)
    quote = node.style
    at += 1
    for _ in range(offset):
        if at >= len(raw):
            return node.line, node.column
        if quote == "'" and raw[at] == "'":
            at += 2
        elif quote == '"' and raw[at] == "\\":
            at += {"x": 4, "u": 6, "U": 10}.get(raw[at + 1 : at + 2], 2)
        elif raw[at] == quote:
            break
        else:
            at += 1
    return line, at + 1


def _locate_block(node: Node, lines: list[str], offset: int) -> tuple[int, int]:
    before = node.text[:offset]
    line = node.line + 1 + before.count("\n")
    column = len(before) - (before.rfind("\n") + 1)
    first = next((text for text in lines[node.line :] if text.strip()), "")
    indent = len(first) - len(first.lstrip(" "))
    return line, indent + column + 1
