"""Drives the product through its command line only (70 §2), inside this process, with a clock of its own."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import io
import json
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from oracle.installation import Files, Receipt
from oracle.model import FIGURES, MAPPING_FIGURES, Limits

Profile = dict[str, Any]


class CommandFailed(AssertionError):
    """A command ended with another status than expected."""


class Product:
    """One environment of an installation in ``home``; made, if the folder is not there yet."""

    def __init__(
        self,
        home: Path,
        workspace: Mapping[str, Any] | None,
        limits: Limits | None = None,
        environment: str = "production",
    ) -> None:
        self.home = home
        self.environment = environment
        self.now = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
        self.drops = 0
        self.kept_receipts: list[dict[str, Any]] = []
        if not home.exists():
            shutil.copytree(fresh_home(), home)
            if limits is not None:
                set_limits(home / "openaudience.toml", limits)
        if workspace is not None:
            self.apply(workspace)

    def run(self, *arguments: str, expect: tuple[int, ...] = (0,)) -> str:
        """Runs one command; gives what it printed."""
        main = importlib.import_module("openaudience.cli").main
        out, err = io.StringIO(), io.StringIO()
        argv = [*arguments, "--home", str(self.home)]
        if arguments[0] not in ("init", "workspace"):
            argv += ["--environment", self.environment]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(argv, lambda: self.now)
        if status not in expect:
            raise CommandFailed(f"{' '.join(argv)}\nended with {status}\n{out.getvalue()}\n{err.getvalue()}")
        self.status = status
        return out.getvalue()

    def json(self, *arguments: str, expect: tuple[int, ...] = (0,)) -> Any:
        """Runs one command with ``--json``; one document, nothing else, must stand on its output."""
        text = self.run(*arguments, "--json", expect=expect)
        return json.loads(text) if text.strip() else None

    def apply(self, workspace: Mapping[str, Any]) -> None:
        file = self.home.with_name(self.home.name + "-workspace.yaml")
        file.write_text(yaml.safe_dump(dict(workspace), allow_unicode=True), encoding="utf-8")
        self.run("workspace", "apply", str(file))

    def drop(self, files: Files, partner: str | None = None) -> list[Receipt]:
        paths = self.write(files)
        sender = ["--partner", partner] if partner else []
        documents = self.json("ingest", *map(str, paths), *sender, expect=(0, 1))
        assert isinstance(documents, list)
        assert (self.status == 1) == any(document["status"] == "rejected" for document in documents)
        self.kept_receipts += documents
        return [plain_receipt(document) for document in documents]

    def write(self, files: Files) -> list[Path]:
        """The files in a new folder; one of the same name as another in a folder of its own below."""
        self.drops += 1
        folder = self.home.with_name(f"{self.home.name}-{self.environment}-drop-{self.drops}")
        folder.mkdir()
        paths: list[Path] = []
        for number, (name, data) in enumerate(files):
            path = folder / name
            if path.exists():
                path = folder / f"again-{number}" / name
                path.parent.mkdir()
            path.write_bytes(data)
            paths.append(path)
        return paths

    def undo(self, job: int, file: str | None = None) -> None:
        self.run("undo", str(job), *(["--file", file] if file else []))

    def redo(self, job: int, file: str | None = None) -> None:
        self.run("redo", str(job), *(["--file", file] if file else []))

    def profile(self, text: str) -> Profile | None:
        document = self.json("profile", text, expect=(0, 1))
        return None if self.status == 1 else plain_profile(document)

    def receipt(self, job: int) -> dict[str, Any]:
        document = self.json("receipt", str(job))
        assert isinstance(document, dict)
        return document

    def populations(self) -> dict[int, dict[str, int]]:
        """Of the traits that are defined; the platform makes more, of folders and of devices, by itself."""
        kinds = ("RULE_BASED_TRAIT", "ON_BOARDED_TRAIT", "ALGO_TRAIT")
        documents = self.json("traits")
        return {one["sid"]: one["population"] for one in documents if one["traitType"] in kinds}

    def synced(self, dpid: int) -> int:
        for document in self.json("datasources"):
            if document["dataSourceId"] == dpid:
                return int(document["synced_devices"])
        raise AssertionError(f"data source {dpid} is not listed")


@functools.cache
def fresh_home() -> Path:
    """A home as `init` makes it, made once for all tests of this process: they work on copies."""
    folder = Path(tempfile.mkdtemp(prefix="openaudience-home-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    product = Product(folder, None)
    product.home = folder / "home"
    product.run("init")
    return product.home


def set_limits(file: Path, limits: Limits) -> None:
    """Writes ``[limits]`` into the settings that `init` made."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    wanted = [f"{key} = {value}" for key, value in vars(limits).items()]
    lines = [line for line in lines if line.split("=")[0].strip() not in vars(limits)]
    if "[limits]" in lines:
        place = lines.index("[limits]") + 1
        lines[place:place] = wanted
    else:
        lines += ["[limits]", *wanted]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def instant(text: str) -> datetime:
    """UI-02: ``2026-03-02T11:04:09Z``."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def plain_receipt(document: Mapping[str, Any]) -> Receipt:
    """A receipt as the model writes it; times are only looked at for their form."""
    assert instant(document["job_start_time"]) <= instant(document["job_end_time"])
    help_ = document.get("case_help") or {"count": 0, "pairs": []}
    reason = document["reason"]
    return {
        **document,
        "reason": None if reason is None else reason["code"],
        "warnings": {warning["code"] for warning in document["warnings"]},
        "reason_counts": {code: count for code, count in document["reason_counts"].items() if count},
        "case_help": {"count": help_["count"], "pairs": list(help_["pairs"])},
    }


def plain_profile(document: Mapping[str, Any]) -> Profile:
    """A profile as the model writes it."""
    return {
        "device": document["uuid"],
        "ids": {(entry["data_source"], entry["id"]) for entry in document["ids"] if entry["data_source"] not in (0, 4)},
        "traits": {
            trait["sid"]: (
                instant(trait["first_realized"]),
                instant(trait["last_realized"]),
                None if trait["expires"] is None else instant(trait["expires"]),
            )
            for trait in document["traits"]
        },
    }


def receipt_differences(product: Receipt, model: Receipt) -> list[str]:
    """What differs between a receipt and what the model says of the same job."""
    keys = ["environment", "files", "status", "reason"]
    if model["status"] == "processed":
        keys += ["partner", "data_source", "id_data_source", "reason_counts"]
    keys += [figure for figure in FIGURES if figure != "total_devices" or not model["id_sync"]]
    if model["id_sync"] and model["status"] == "processed":
        keys += MAPPING_FIGURES
    found = [f"{key}: {product.get(key)!r}, model {model[key]!r}" for key in keys if product.get(key) != model[key]]
    doubtful = model["perhaps"] - model["warnings"]
    if model["status"] == "processed" and not model["id_sync"]:
        if product["warnings"] - doubtful != model["warnings"]:
            found.append(f"warnings: {product['warnings']}, model {model['warnings']}")
        found += help_differences(product["case_help"], model)
    return found


def help_differences(given: Mapping[str, Any], model: Receipt) -> list[str]:
    """IN-64: the count, and pairs that are right whichever were chosen; ``known_by_sent`` is the model's."""
    known: Mapping[str, set[str]] = model["known_by_sent"]
    pairs = given["pairs"]
    if given["count"] != len(known) or len(pairs) != min(10, len(known)):
        return [f"case help: {given}, model {known}"]
    return [f"case help: {pair} is no pair" for pair in pairs if pair["known"] not in known.get(pair["sent"], ())]


class Names:
    """Which drawn device ID of the product stands for which device of the model: one for one."""

    def __init__(self) -> None:
        self.there: dict[str, str] = {}
        self.back: dict[str, str] = {}

    def same(self, product: str | None, model: str | None) -> bool:
        if product is None or model is None:
            return product == model
        if ":" not in model:
            return product == model
        return self.there.setdefault(model, product) == product and self.back.setdefault(product, model) == model


def profile_differences(product: Profile | None, model: Profile | None, retimed: set[int], names: Names) -> list[str]:
    """What differs between a profile and the model's; first realisations of ``retimed`` traits are left out."""
    if product is None or model is None:
        left, right = product or {"traits": {}, "ids": set()}, model or {"traits": {}, "ids": set()}
        return [] if not left["traits"] and not right["traits"] else [f"profile: {product}, model {model}"]
    found = []
    if not names.same(product["device"], model["device"]):
        found.append(f"device: {product['device']}, model {model['device']}")
    left, right = (
        {sid: times[sid in retimed :] for sid, times in profile["traits"].items()} for profile in (product, model)
    )
    if left != right:
        found.append(f"traits: {left}, model {right}")
    if model["ids"] is not None and product["ids"] != model["ids"]:
        found.append(f"ids: {product['ids']}, model {model['ids']}")
    return found


__all__ = ["CommandFailed", "Names", "Product", "profile_differences", "receipt_differences", "set_limits"]
