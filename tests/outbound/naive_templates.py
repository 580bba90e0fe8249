"""Rows as the specification says, from the parse tree, one value after another: what the renderers must give."""

from __future__ import annotations

from typing import Any

from openaudience.outbound.model import Batch, Lists, RunContext
from openaudience.outbound.template_grammar import AllOf, AnyOf, Name, Nodes, Not, Tag, Test, Text, parse_template

SIGNS = {"TAB": "\t", "COMMA": ",", "NEW_LINE": "\n", "ASCII_SOH": "\x01"}
BRACKETS = {"OPEN_CURLY_BRACKET": "{", "CLOSE_CURLY_BRACKET": "}"}


def naive_rows(template: str, run: RunContext, batch: Batch) -> bytes:
    nodes = parse_template(template)
    return b"".join(f"{_Row(run, batch, row).text(nodes, {})}\n".encode() for row in range(batch.count))


class _Row:
    def __init__(self, run: RunContext, batch: Batch, row: int) -> None:
        def column(values: Any) -> str:
            return values[row].decode() if values else ""

        self.scalars = {
            "SYNC_TYPE": run.sync_type,
            "SYNC_MODE": run.sync_mode,
            "ORDER_ID": str(run.order_id),
            "PIDALIAS": run.pid_alias,
            "OUTPUT_ATTRIBUTE_TYPE": "",
            "DP_UUID": column(batch.ids),
            "UUID": column(batch.uuids),
            "MCID": column(batch.mcids),
            **SIGNS,
            **BRACKETS,
        }
        self.lists = {
            "SEGMENT_LIST": _elements(batch.segments, batch.segment_table, row, segments=True),
            "REMOVED_SEGMENT_LIST": _elements(batch.removed, batch.segment_table, row, segments=True),
            "TRAIT_LIST": _elements(batch.traits, batch.trait_table, row, segments=False),
        }

    def text(self, nodes: Nodes, loops: dict[str, dict[str, str]]) -> str:
        return "".join(self._one(node, loops) for node in nodes)

    def _one(self, node: Any, loops: dict[str, dict[str, str]]) -> str:
        if isinstance(node, Text):
            return node.text
        if not isinstance(node, Tag):
            return self.text(node.then if self._true(node.test, loops) else node.otherwise, loops)
        if node.name.text not in self.lists:
            return self._scalar(node.name, loops)
        separator = ""
        for option in node.options:
            separator = option.value if isinstance(option.value, str) else SIGNS[option.value.text]
        return separator.join(
            self.text(node.loop.body, {**loops, node.loop.variable.text: element}) if node.loop else element["sid"]
            for element in self.lists[node.name.text]
        )

    def _scalar(self, name: Name, loops: dict[str, dict[str, str]]) -> str:
        variable, _, field = name.text.partition(".")
        return loops[variable][field.lower()] if variable in loops else self.scalars[name.text]

    def _true(self, test: Test[Name], loops: dict[str, dict[str, str]]) -> bool:
        if isinstance(test, Not):
            return not self._true(test.test, loops)
        if isinstance(test, AllOf):
            return all(self._true(one, loops) for one in test.tests)
        if isinstance(test, AnyOf):
            return any(self._true(one, loops) for one in test.tests)
        if test.text in self.lists:
            return len(self.lists[test.text]) > 0
        return self._scalar(test, loops) != ""


def _elements(lists: Lists | None, table: Any, row: int, *, segments: bool) -> list[dict[str, str]]:
    if lists is None:
        return []
    found = []
    for place in range(lists.offsets[row], lists.offsets[row + 1]):
        element = table[lists.items[place]]
        fields = {"sid": element.sid, "id": element.sid, "traitid": element.sid, "alias": element.alias}
        fields["csegid"] = element.sid if element.legacy_id is None else element.legacy_id
        fields["type"] = 5 if segments else 10 if element.onboarded else 3
        if lists.updated is not None and lists.realized is not None:
            fields["lastupdatetime"] = lists.updated[place]
            fields["lastrealizationtime"] = fields["lastrealized"] = lists.realized[place]
        found.append({name: str(value) for name, value in fields.items()})
    return found
