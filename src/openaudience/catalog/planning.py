"""From workspace files and the stored objects to the objects as they should be (OP-30 … OP-36).

Four passes, each over everything, so that one run names every mistake: which object each entry is, its fields, what its
references mean, and (in ``checks``) whether the whole is consistent. Nothing is written here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from openaudience.catalog.automatic import FIRST, automatic, complete
from openaudience.catalog.document import Node
from openaudience.catalog.objects import RESERVED_DPIDS, Collection, Entry, milliseconds, trait_types
from openaudience.catalog.schema import (
    FOLDER_TREES,
    KINDS,
    LIST_IGNORED,
    METRICS,
    NUMBER_MAX,
    PARTNER,
    SERVER_FIELDS,
    Field,
    Kind,
)
from openaudience.catalog.secrets import Place, Reader
from openaudience.catalog.values import BAD, convert
from openaudience.config import nearest
from openaudience.errors import InputError, Mistake

KEPT = ("startDate", "traitAlias")
"""Fields of a mapping that null leaves as they are."""
SAMPLING = 1209600000
RETENTION = 62208000
_METRIC = re.compile(METRICS)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(slots=True)
class Source:
    """A parsed workspace file: its tree, its lines, and the folder that ``_file`` paths start from."""

    root: Node
    lines: list[str]
    folder: Path


@dataclass(slots=True)
class Given:
    """An entry of a file and the object it describes; ``old`` is that object as it is stored, if it is."""

    kind: Kind
    node: Node
    source: Source
    partner: Given | None
    entry: Entry
    old: Entry | None
    mappings: list[tuple[dict[str, Any], Node]] = field(default_factory=list)

    def at(self, name: str) -> Node:
        """Where a mistake in field ``name`` shows: the value, or the whole entry when it is not given."""
        found = self.node.value.get(name)
        return found if isinstance(found, Node) else self.node


class Planner:
    """One environment's plan: ``new`` is what should be, ``given`` the entries of the files, ``mistakes`` all faults.

    ``reader`` reads the secrets that the files refer to, which ``secrets`` then holds; none: they are not looked for.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        old: Collection,
        now: datetime,
        *,
        prune: bool = False,
        reader: Reader | None = None,
    ) -> None:
        self.sources = sources
        self.old = old
        self.now = now
        self.reader = reader
        self.secrets: dict[Place, str] = {}
        self.mistakes: list[Mistake] = []
        self.given: list[Given] = []
        self.claimed: dict[tuple[str, int], Given] = {}
        self.names: dict[tuple[str, int], dict[str, list[int]]] = {}
        self.stored_words: dict[tuple[str, int], dict[tuple[str, ...], list[int]]] = {}
        self.given_words: dict[tuple[Any, ...], Given] = {}
        destinations = old.entries["destination"].values()
        self.mapping_numbers = {m["mappingId"] for one in destinations for m in one.document.get("mappings") or ()}
        self.new = Collection({name: dict(found) for name, found in old.entries.items()}, dict(old.next))
        self._identify()
        for given in self.given:
            self._fields(given)
        self._index_names()
        for node in (node for given in self.given for _, node in given.mappings):
            self.new.keep("mapping", _mapping_number(node))
        for given in self.given:
            self._references(given)
        if prune:
            self._prune()
        complete(self.new)

    def report(self, node: Node, text: str) -> None:
        self.mistakes.append(node.mistake(text))

    # Which object an entry is

    def _identify(self) -> None:
        waiting: list[tuple[Kind, Node, Source, Given]] = []
        for partner in self._partners():
            waiting.extend(self._listed(partner))
        numbered = [item for item in waiting if item[0].identifier and self._has(item[1], item[0].identifier)]
        unnumbered = [item for item in waiting if not (item[0].identifier and self._has(item[1], item[0].identifier))]
        for kind, node, source, partner in numbered:
            self._claim_number(kind, node, source, partner)
        folders = [item for item in unnumbered if item[0].name in FOLDER_TREES]
        self._place_folders(folders)
        for kind, node, source, partner in unnumbered:
            if kind.name not in FOLDER_TREES:
                self._claim_name(kind, node, source, partner)
        order = {kind.name: place for place, kind in enumerate((PARTNER, *KINDS))}
        self.given.sort(key=lambda given: order[given.kind.name])

    @staticmethod
    def _has(node: Node, name: str) -> bool:
        found = node.value.get(name)
        return found is not None and found.value is not None

    def _partners(self) -> Iterator[Given]:
        nodes: list[tuple[Node, Source]] = []
        for source in self.sources:
            root = source.root
            if not isinstance(root.value, dict):
                self.report(root, "the file must be a mapping with the key 'partners'")
                continue
            for key in root.value:
                if key != "partners":
                    self.report(root.keys[key], f"unknown key {key!r}; {nearest(key, ['partners'])}")
            if "partners" not in root.value:
                self.report(root, "the key 'partners' is missing; put every partner under it")
                continue
            nodes.extend((node, source) for node in self._items(root.value["partners"], "partners"))
        numbered = [(node, source) for node, source in nodes if self._has(node, "pid")]
        found = [self._claim_number(PARTNER, node, source, None) for node, source in numbered]
        found += [self._claim_name(PARTNER, node, source, None) for node, source in nodes if not self._has(node, "pid")]
        return (given for given in found if given is not None)

    def _items(self, node: Node, name: str) -> list[Node]:
        """Entries of a list that are mappings; anything else is reported. Null is an empty list."""
        if node.value is None:
            return []
        if not isinstance(node.value, list):
            self.report(node, f"{name}: must be a list")
            return []
        good = []
        for item in node.value:
            if isinstance(item.value, dict):
                good.append(item)
            else:
                self.report(item, f"{name}: every entry must be a mapping of fields")
        return good

    def _listed(self, partner: Given) -> Iterator[tuple[Kind, Node, Source, Given]]:
        for kind in KINDS:
            head, _, tail = kind.key.partition(".")
            node = partner.node.value.get(head)
            if node is None or node.value is None:
                continue
            if tail:
                if not isinstance(node.value, dict):
                    self.report(node, f"{head}: must be a mapping of lists")
                    continue
                node = node.value.get(tail)
                if node is None:
                    continue
            for item in self._items(node, kind.key):
                self._rename(kind, item)
                if kind.name != "trait" or not self._kept_by_the_platform(item):
                    yield kind, item, partner.source, partner

    def _rename(self, kind: Kind, node: Node) -> None:
        """Puts fields that are given under another name under their own."""
        for other, name in kind.other_names:
            if other in node.value and name in node.value:
                self.report(node.keys[other], f"{other} and {name} are one field; keep one of them")
                del node.value[other]
            elif other in node.value:
                node.value[name] = node.value.pop(other)
                node.keys[name] = node.keys.pop(other)

    def _kept_by_the_platform(self, node: Node) -> bool:
        """Whether an entry is one of the platform's own traits as the API lists them: they are what they are."""
        found, sid = node.value.get("traitType"), node.value.get("sid")
        if found is None or sid is None or not isinstance(found.value, str) or not isinstance(sid.value, int):
            return False
        stored = self.old.entries["trait"].get(sid.value)
        return stored is not None and stored.document["traitType"] == found.value.upper() and automatic(stored)

    def _claim_number(self, kind: Kind, node: Node, source: Source, partner: Given | None) -> Given | None:
        place = node.value[kind.identifier]
        number = place.value
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= NUMBER_MAX:
            self.report(place, f"{kind.identifier}: must be a whole number from 1 to {NUMBER_MAX}")
            return None
        if kind.sequence == "dpid" and number in RESERVED_DPIDS:
            self.report(place, f"{kind.identifier}: {number} is reserved; choose another")
            return None
        for other in KINDS:
            if other is kind or other.sequence != kind.sequence:
                continue
            if (other.name, number) in self.claimed or number in self.old.entries[other.name]:
                self.report(place, f"{kind.identifier}: {number} is a {other.name} already; choose another")
                return None
        if kind.name == "dataSource" and number in self.old.gone:
            # its IDs and mappings would come back to life with it (RT-219, API-53)
            self.report(
                place, f"{kind.identifier}: {number} was deleted, and numbers are never used again; choose another"
            )
            return None
        old = self.old.entries[kind.name].get(number)
        if kind.sequence != "sid" or number < FIRST:
            self.new.keep(kind.sequence, number)
        elif old is None or not automatic(old):
            self.report(place, f"{kind.identifier}: numbers from {FIRST} on are the platform's own; choose a lower one")
            return None
        if old is not None and partner is not None and old.pid != partner.entry.number:
            self.report(place, f"{kind.identifier}: {number} belongs to partner {old.pid}; choose another")
            return None
        return self._claim(kind, number, node, source, partner, old)

    def _claim_name(self, kind: Kind, node: Node, source: Source, partner: Given | None) -> Given | None:
        words = []
        for name in kind.find:
            found = node.value.get(name)
            if found is None or not isinstance(found.value, str) or not found.value:
                needs = " and ".join(kind.find)
                also = f" or {kind.identifier}" if kind.identifier else ""
                self.report(found or node, f"a {kind.name} needs {needs}{also}, as text")
                return None
            words.append(found.value)
        pid = 0 if partner is None else partner.entry.number
        numbers = [n for n in self._stored(kind, pid).get(tuple(words), ()) if (kind.name, n) not in self.claimed]
        if len(numbers) > 1:
            listed = ", ".join(map(str, numbers))
            self.report(node, f"{len(numbers)} stored objects are named {words[0]!r}; give {kind.identifier}: {listed}")
            return None
        taken = self.given_words.get((kind.name, pid, *words))
        if taken is not None and taken.source is source:
            self.report(node, f"{kind.name} {words[0]!r} is given twice, first in line {taken.node.line}; keep one")
            return None
        if taken is not None:
            return self._claim(kind, taken.entry.number, node, source, partner, taken.old)
        number = numbers[0] if numbers else self.new.take(kind.sequence, kind.first)
        return self._claim(kind, number, node, source, partner, self.old.entries[kind.name].get(number))

    def _stored(self, kind: Kind, pid: int) -> dict[tuple[str, ...], list[int]]:
        if (kind.name, pid) not in self.stored_words:
            index: dict[tuple[str, ...], list[int]] = {}
            for number, entry in self.old.entries[kind.name].items():
                if kind is PARTNER or entry.pid == pid:
                    index.setdefault(tuple(str(entry.document.get(f, "")) for f in kind.find), []).append(number)
            self.stored_words[kind.name, pid] = index
        return self.stored_words[kind.name, pid]

    def _claim(
        self, kind: Kind, number: int, node: Node, source: Source, partner: Given | None, old: Entry | None
    ) -> Given | None:
        first = self.claimed.get((kind.name, number))
        if first is not None and (first.source is source or kind is not PARTNER):
            self.report(node, f"{kind.name} {number} is given twice, first in line {first.node.line}; keep one")
            return None
        if first is not None:
            entry = first.entry
        elif old is not None:
            entry = old.clone()
        else:
            entry = Entry(kind, number, number if partner is None else partner.entry.number, {})
        given = Given(kind, node, source, partner, entry, old)
        self.given.append(given)
        self.claimed.setdefault((kind.name, number), given)
        self.new.entries[kind.name][number] = entry
        words = [node.value[name].value for name in kind.find if name in node.value]
        if len(words) == len(kind.find):
            self.given_words.setdefault((kind.name, 0 if partner is None else partner.entry.number, *words), given)
        return given

    # Folders: an entry without its number is found by its path, which its parent's place gives

    def _place_folders(self, waiting: list[tuple[Kind, Node, Source, Given]]) -> None:
        placed = [given for given in self.given if given.kind.name in FOLDER_TREES]
        for given in placed:
            name = given.node.value.get("name")
            if name is not None and isinstance(name.value, str):
                given.entry.document["name"] = name.value
            parent = given.node.value.get("parentFolderId")
            if parent is not None and isinstance(parent.value, int):
                given.entry.document["parentFolderId"] = parent.value
            else:
                given.entry.document.setdefault("parentFolderId", 0)
        texts = [g for g in placed if isinstance(getattr(g.node.value.get("parentFolderId"), "value", None), str)]
        progress = True
        while (waiting or texts) and progress:
            before = len(waiting) + len(texts)
            texts = [given for given in texts if not self._parent_by_path(given)]
            waiting = [item for item in waiting if not self._place_folder(item)]
            progress = len(waiting) + len(texts) < before
        for node in [given.at("parentFolderId") for given in texts]:
            self.report(node, f"parentFolderId: no folder has the path {node.value!r}")
        for _, node, _, _ in waiting:
            place = node.value.get("parentFolderId", node)
            self.report(place, f"parentFolderId: no folder has the path {place.value!r}")

    def _parent_by_path(self, given: Given) -> bool:
        pid = given.entry.pid
        parent = self.folder_at(given.kind.name, pid, given.node.value["parentFolderId"].value)
        if parent is None:
            return False
        given.entry.document["parentFolderId"] = parent
        return True

    def _place_folder(self, item: tuple[Kind, Node, Source, Given]) -> bool:
        kind, node, source, partner = item
        name = node.value.get("name")
        if name is None or not isinstance(name.value, str) or not name.value:
            self.report(name or node, f"a {kind.name} needs name, as text")
            return True
        place = node.value.get("parentFolderId")
        pid = partner.entry.number
        parent: Any = 0 if place is None or place.value is None else place.value
        if isinstance(parent, str):
            parent = self.folder_at(kind.name, pid, parent)
            if parent is None:
                return False
        if isinstance(parent, bool) or not isinstance(parent, int):
            self.report(place or node, "parentFolderId: must be an identifier or, as text, a path")
            return True
        number = self._child(kind.name, pid, parent, name.value)
        old = self.old.entries[kind.name].get(number) if number is not None else None
        number = self.new.take(kind.sequence) if number is None else number
        given = self._claim(kind, number, node, source, partner, old)
        if given is not None:
            given.entry.document.update(name=name.value, parentFolderId=parent)
        return True

    def _child(self, kind: str, pid: int, parent: int, name: str) -> int | None:
        for number, entry in self.new.entries[kind].items():
            document = entry.document
            if (
                entry.pid == pid
                and document.get("parentFolderId") == parent
                and str(document.get("name")).casefold() == name.casefold()
            ):
                return number
        return None

    def folder_at(self, kind: str, pid: int, path: str) -> int | None:
        """The folder of a path such as ``/CRM/Loyalty`` (the first ``/`` may be left out); 0 is the root."""
        at = 0
        for name in (part for part in path.split("/") if part):
            child = self._child(kind, pid, at, name)
            if child is None:
                return None
            at = child
        return at

    # Fields

    def _fields(self, given: Given) -> None:
        kind, document, fresh = given.kind, given.entry.document, given.old is None
        if fresh:
            for name, known in kind.fields.items():
                if known.type != "list" and name not in document:
                    document[name] = list(known.default) if isinstance(known.default, tuple) else known.default
                elif name not in document:
                    document[name] = []
        others = set(kind.ignored)
        if kind is PARTNER:
            others |= {other.key.partition(".")[0] for other in KINDS}
            self._check_groups(given)
        if kind.identifier:
            others.add(kind.identifier)
        if kind.name in FOLDER_TREES:
            others |= {"parentFolderId", "path", "subFolders"}
        self._convert(given, given.node, kind.fields, kind.secrets, others, document, fresh)
        if kind.name == "dataSource":
            self._data_source(given)
        elif kind.name == "trait" and document.get("traitType") == "ALGO_TRAIT":
            document["traitRule"] = None

    def _check_groups(self, given: Given) -> None:
        for head in ("folders", "dropoff"):
            node = given.node.value.get(head)
            if node is None or not isinstance(node.value, dict):
                continue
            known = [kind.key.partition(".")[2] for kind in KINDS if kind.key.startswith(f"{head}.")]
            for key in node.value:
                if key not in known:
                    self.report(node.keys[key], f"unknown key {key!r} in {head}; {nearest(key, known)}")

    def _convert(
        self,
        given: Given,
        node: Node,
        fields: Mapping[str, Field],
        secrets: tuple[str, ...],
        others: set[str],
        document: dict[str, Any],
        fresh: bool,
        path: str = "",
    ) -> None:
        """Takes the fields of ``node`` into ``document``; null keeps the value, or clears one that may be null.

        ``path`` leads from the object to a nested ``document``.
        """
        ways = {f"{secret}_{way}": (secret, way) for secret in secrets for way in ("env", "file")}
        for key, value in node.value.items():
            known = fields.get(key)
            if known is not None and known.type != "list":
                self._field(key, known, value, document, fresh)
            elif known is not None:
                self._list(given, key, known, value, document)
            elif key in ways:
                self._secret(given, ways[key], value, node, document, path)
            elif key in secrets:
                if value.value is not None:
                    self.report(value, f"{key}: secrets never stand in the file; write {key}_env or {key}_file")
            elif key not in others and key not in SERVER_FIELDS and not _METRIC.match(key):
                words = [*fields, *ways, *others]
                self.report(node.keys[key], f"unknown key {key!r}; {nearest(key, words)}")
        for key, known in fields.items():
            empty = node.value.get(key) is None or node.value[key].value is None
            if fresh and known.required and empty:
                self.report(node, f"{key} is missing; it is required")

    def _field(self, key: str, known: Field, value: Node, document: dict[str, Any], fresh: bool) -> None:
        if value.value is None:
            if known.nullable and not known.fixed:
                document[key] = None
            return
        found = convert(key, known, value, self.report)
        if found is BAD:
            return
        if known.fixed and not fresh and document.get(key) is not None and document[key] != found:
            if known.type != "ref" or isinstance(found, int):
                self.report(value, f"{key}: {document[key]} cannot be changed to {found}; make a new object instead")
            return
        document[key] = found

    def _list(self, given: Given, key: str, known: Field, value: Node, document: dict[str, Any]) -> None:
        items = self._items(value, key)
        if known.high is not None and len(items) > known.high:
            self.report(value, f"{key}: {len(items)} entries; at most {known.high} are allowed")
        entries: list[dict[str, Any]] = []
        for item in items:
            entry: dict[str, Any] = {}
            # Mappings keep what is stored; the other lists are replaced as a whole, so they start from the defaults.
            if key != "mappings":
                for name, inner in known.fields.items():
                    entry[name] = list(inner.default) if isinstance(inner.default, tuple) else inner.default
            path = f"{key}.{len(entries)}."
            self._convert(given, item, known.fields, known.secrets, set(LIST_IGNORED), entry, True, path)
            entries.append(entry)
            if key == "mappings":
                given.mappings.append((entry, item))
        if key != "mappings":
            document[key] = entries

    def _secret(
        self, given: Given, secret: tuple[str, str], value: Node, node: Node, document: dict[str, Any], path: str
    ) -> None:
        """Takes a reference to a secret, and the secret; null keeps both, empty text takes both away (API-414)."""
        name, way = secret
        if value.value is None:
            return
        if not isinstance(value.value, str):
            self.report(value, f"{name}_{way}: must be text")
            return
        if way == "env" and self._has(node, f"{name}_file"):
            self.report(value, f"{name}: give {name}_env or {name}_file, not both")
            return
        document.pop(f"{name}_env", None)
        document.pop(f"{name}_file", None)
        if not value.value:
            return
        file = (given.source.folder / value.value).absolute()
        # What has not the form of a name may be the secret itself, put in the wrong place: it is not shown.
        if way == "env" and not _VARIABLE.match(value.value):
            self.report(value, f"{name}_env: must be the name of an environment variable: letters, digits and _")
            return
        document[f"{name}_{way}"] = value.value if way == "env" else str(file)
        if self.reader is None:
            return
        place, login = Place(given.kind.key, given.entry.number, f"{path}{name}"), given.kind.login
        try:
            if way == "env":
                self.secrets[place] = self.reader.variable(value.value, login=login)
            else:
                self.secrets[place] = self.reader.file(file, value.value, login=login)
        except InputError as error:
            self.report(value, f"{name}_{way}: {error}")

    def _data_source(self, given: Given) -> None:
        """Defaults and fields of a data source that hang on others (API-80, UI-61)."""
        document = given.entry.document
        cross = document.get("idType") == "CROSS_DEVICE"
        old = {} if given.old is None else given.old.document
        if cross:
            if document.get("subIdType") is None:
                document["subIdType"] = "CROSS_DEVICE_PERSON"
            document["useAudienceManagerVisitorID"] = False
            if document.get("customerProfileDataRetention") is None:
                document["customerProfileDataRetention"] = old.get("customerProfileDataRetention") or RETENTION
            if document.get("supportsAuthenticatedProfile") is None:
                document["supportsAuthenticatedProfile"] = True
            if document.get("authenticatedProfileName") is None:
                document["authenticatedProfileName"] = document.get("name")
        else:
            document["subIdType"] = None
            document["customerProfileDataRetention"] = None
            document["supportsAuthenticatedProfile"] = False
            document["authenticatedProfileName"] = ""
        if document.get("masterDataSourceIdProvider") is None:
            document["masterDataSourceIdProvider"] = document.get("outboundS2S")
        document.setdefault("customNamespaceCode", f"DS{given.entry.number}")
        wanted = document.pop("samplingEnabled", None)
        given_sampling = self._has(given.node, "samplingEnabled") and isinstance(wanted, bool)
        end = old.get("samplingEndTime")
        now = milliseconds(self.now)
        on = end is not None and now < end
        if given_sampling and wanted and not on:
            document["samplingStartTime"], document["samplingEndTime"] = now, now + SAMPLING
        elif given_sampling and not wanted and on:
            document["samplingEndTime"] = now

    # References

    def _index_names(self) -> None:
        for kind in KINDS:
            for number, entry in self.new.entries[kind.name].items():
                index = self.names.setdefault((kind.name, entry.pid), {})
                index.setdefault(entry.name, []).append(number)

    def _references(self, given: Given) -> None:
        self._resolve(given, given.kind.fields, given.node, given.entry.document, given.entry.document)
        if given.mappings:
            self._mappings(given)

    def _resolve(
        self, given: Given, fields: Mapping[str, Field], node: Node, document: dict[str, Any], context: dict[str, Any]
    ) -> None:
        for name, known in fields.items():
            place = node.value.get(name)
            if place is None or name not in document:
                continue
            value = document[name]
            if known.type == "ref" and isinstance(value, str):
                document[name] = self._number(given, known, name, value, place, context)
            elif known.type == "refs" and isinstance(value, list):
                places = place.value if isinstance(place.value, list) else [place] * len(value)
                numbers = [
                    self._number(given, known, name, item, at, context) if isinstance(item, str) else item
                    for item, at in zip(value, places, strict=False)
                ]
                document[name] = list(dict.fromkeys(numbers))

    def _number(self, given: Given, known: Field, name: str, text: str, place: Node, context: dict[str, Any]) -> int:
        """The number a text reference means; 0 after a report when it means none."""
        pid = given.entry.pid
        target = known.target
        if target == "element":
            target = "trait" if context.get("traitType") == "TRAIT" else "segment"
        if target in FOLDER_TREES:
            folder = self.folder_at(target, pid, text)
            if folder is not None:
                return folder
            numbers: list[int] = []
        elif target == "customerTraitType":
            found = trait_types(self.new, pid).get(text)
            numbers = [] if found is None else [found]
        elif target == "foreignSource":
            numbers = [
                n for (kind, _), index in self.names.items() if kind == "dataSource" for n in index.get(text, ())
            ]
            numbers = [n for n in numbers if self.new.entries["dataSource"][n].pid != pid]
        else:
            kind = "dataSource" if target == "anySource" else target
            numbers = self.names.get((kind, pid), {}).get(text, [])
        if not numbers and text.isascii() and text.isdigit():
            return int(text)
        if len(numbers) == 1:
            return numbers[0]
        if numbers:
            listed = ", ".join(map(str, numbers))
            self.report(place, f"{name}: {len(numbers)} objects are named {text!r}; give the identifier: {listed}")
        else:
            what = {"anySource": "dataSource", "foreignSource": "dataSource of another partner"}.get(target, target)
            self.report(place, f"{name}: no {what} is named {text!r}")
        return 0

    def _mappings(self, given: Given) -> None:
        document = given.entry.document
        known = given.kind.fields["mappings"].fields
        merged = {mapping["sid"]: copy.deepcopy(mapping) for mapping in document.get("mappings", [])}
        named: set[int] = set()
        for partial, node in given.mappings:
            self._resolve(given, known, node, partial, partial)
            sid = partial.get("sid")
            if not isinstance(sid, int):
                continue
            if sid in named:
                self.report(node, f"mappings: {sid} is mapped twice to this destination; keep one")
                continue
            named.add(sid)
            stored = merged.get(sid)
            if stored is None:
                number = _mapping_number(node) or self.new.take("mapping")
                if number in self.mapping_numbers:
                    self.report(node, f"mappingId: {number} is another mapping; leave it out to be given a number")
                self.mapping_numbers.add(number)
                stored = {"mappingId": number} | {name: inner.default for name, inner in known.items()}
                stored["activeSince"] = milliseconds(self.now)
                stored["startDate"] = f"{self.now:%Y-%m-%d}"
                stored["traitAlias"] = self._filled(document, sid)
                merged[sid] = stored
            elif partial.get("traitType", stored["traitType"]) != stored["traitType"]:
                self.report(node, "traitType: cannot be changed; make a new mapping instead")
            stored.update({name: value for name, value in partial.items() if value is not None or name not in KEPT})
        document["mappings"] = list(merged.values())

    def _filled(self, destination: dict[str, Any], sid: int) -> str | None:
        """The destination value of a new mapping that gives none (OB-29, API-196)."""
        match destination.get("mappingAutoFiller"):
            case "SID":
                return str(sid)
            case "IC":
                segment = self.new.entries["segment"].get(sid)
                return (segment.document.get("integrationCode") if segment else None) or str(sid)
        return None

    # What the files do not name

    def _prune(self) -> None:
        for kind in (PARTNER, *KINDS):
            found = self.new.entries[kind.name]
            for number, entry in list(found.items()):
                if entry.pid != 0 and (kind.name, number) not in self.claimed and not automatic(entry):
                    del found[number]
        for given in self.given:
            if "mappings" in given.entry.document:
                named = {partial.get("sid") for partial, _ in given.mappings}
                kept = [m for m in given.entry.document["mappings"] if m["sid"] in named]
                given.entry.document["mappings"] = kept


def _mapping_number(node: Node) -> int:
    """The number that a file gives a mapping, 0 for none."""
    found = next((node.value[n].value for n in ("mappingId", "destinationMappingId") if n in node.value), 0)
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 < found <= NUMBER_MAX else 0
