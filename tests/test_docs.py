"""Documentation is tested: every command, setting, receipt field, code and column appears where people look for it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from openaudience import config
from openaudience.edge import codes
from openaudience.store.schemas import SCHEMAS
from openaudience.vocabulary import REASONS

ROOT = Path(__file__).parents[1]
FORMATS = (ROOT / "docs" / "file-formats.md").read_text()
GUIDE = (ROOT / "docs" / "operators-guide.md").read_text()
TABLES = (ROOT / "docs" / "tables.md").read_text()

COMMANDS = (
    "init",
    "workspace apply",
    "workspace diff",
    "workspace export",
    "validate",
    "ingest",
    "jobs",
    "receipt",
    "undo",
    "redo",
    "profile",
    "why",
    "traits",
    "segments",
    "destinations",
    "estimate",
    "populations",
    "overlaps",
    "signals",
    "datasources",
    "export",
    "exports",
    "redeliver",
    "test-server",
    "samples",
    "sql",
    "check",
    "clean",
    "denied",
    "allow",
    "privacy",
    "backup",
    "restore",
    "keys create",
    "keys export",
    "config show",
    "mail test",
    "serve",
    "bench",
)

RECEIPT_FIELDS = [
    "job",
    "environment",
    "partner",
    "data_source",
    "id_data_source",
    "files",
    "status",
    "reason",
    "warnings",
    "reason_counts",
    "records_received",
    "records_processed",
    "format_errors",
    "invalid_aam_ids",
    "invalid_device_ids",
    "no_matching_aam_ids",
    "no_trait_realized",
    "stored_records",
    "total_devices",
    "total_signals",
    "total_unused_signals",
    "total_realized_traits",
    "total_removed_traits",
    "total_traits_failed_validation",
    "total_users_with_failed_traits",
    "job_start_time",
    "job_end_time",
    "case_help",
    "new_mappings",
    "renewed_mappings",
    "evicted_mappings",
]

FILE_CODES = [
    "wrong_place",
    "name_syntax",
    "name_milliseconds",
    "name_extension",
    "upload_unfinished",
    "target_missing",
    "unknown_data_source",
    "foreign_data_source",
    "inactive_data_source",
    "dpid_not_allowed",
    "no_access",
    "empty_file",
    "too_large_compressed",
    "too_large",
    "bad_encoding",
    "not_gzip",
    "undeclared_gzip",
    "not_pgp",
    "undeclared_pgp",
    "corrupt_gzip",
    "corrupt_pgp",
    "pgp_cipher",
    "pgp_key",
    "pgp_compressed",
    "duplicate",
]

WARNINGS = [
    "timestamp_9_digits",
    "large_file",
    "same_name_other_content",
    "out_of_order",
    "mixed_id_types",
    "case_differs",
    "not_hashed",
]


def section(text: str, heading: str) -> str:
    """The part of a document under the heading that starts with ``heading``."""
    found = re.search(rf"^(#+) {re.escape(heading)}.*?(?=^\1 |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, f"no heading {heading!r}"
    return found.group()


@pytest.mark.rule("IN-86")
@pytest.mark.parametrize("code", [code for code in REASONS if code])
def test_record_codes_are_explained_in_their_order(code: str) -> None:
    part = section(FORMATS, "5.")
    assert f"`{code}`" in part
    places = [part.index(f"`{known}`") for known in REASONS if known]
    assert places == sorted(places)


@pytest.mark.rule("IN-87")
@pytest.mark.parametrize("code", FILE_CODES)
def test_file_codes_are_explained(code: str) -> None:
    assert f"`{code}`" in section(FORMATS, "6.")


@pytest.mark.rule("IN-88")
@pytest.mark.parametrize("code", WARNINGS)
def test_warning_codes_are_explained(code: str) -> None:
    assert f"`{code}`" in section(FORMATS, "7.")


@pytest.mark.parametrize("field", RECEIPT_FIELDS)
def test_receipt_fields_are_explained(field: str) -> None:
    assert f"`{field}`" in section(FORMATS, "4.")


def test_codes_that_the_program_gives_are_documented() -> None:
    """No code is raised anywhere in the package that a sender cannot look up."""
    raised = set()
    for path in (ROOT / "src" / "openaudience").rglob("*.py"):
        raised |= set(re.findall(r"\b(?:FileRejected|FileWarning)\(\s*\"([a-z0-9_]+)\"", path.read_text()))
    assert raised
    assert raised <= {*FILE_CODES, *WARNINGS}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_explained(command: str) -> None:
    assert f"`openaudience {command}" in section(GUIDE, "Commands")


def test_commands_of_the_program_are_the_documented_ones() -> None:
    cli = importlib.import_module("openaudience.cli")

    def names(group: Any, before: str = "") -> set[str]:
        found = {f"{before}{entry.name or entry.callback.__name__}" for entry in group.registered_commands}
        for inner in group.registered_groups:
            found |= names(inner.typer_instance, f"{before}{inner.name or inner.typer_instance.info.name} ")
        return found

    assert names(cli.app) == set(COMMANDS)


@pytest.mark.rule("OP-40")
@pytest.mark.parametrize(
    ("name", "key"),
    [(name, key) for name in config.SECTIONS for key in config.keys(name)],
    ids=lambda value: str(value),
)
def test_settings_are_explained(name: str, key: str) -> None:
    part = section(GUIDE, "Settings")
    rows = part[part.index(f"| `[{name}]` |") :]
    rest = re.split(r"^\| `\[", rows[1:], maxsplit=1, flags=re.MULTILINE)[0]
    assert f"`{key}`" in rest


@pytest.mark.parametrize(
    ("table", "column"), [(table, column) for table, schema in SCHEMAS.items() for column in schema.names]
)
def test_tables_and_columns_are_explained(table: str, column: str) -> None:
    assert f"`{column}`" in section(TABLES, f"`{table}`")


@pytest.mark.parametrize("path", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")]))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_error_codes_of_calls_are_explained() -> None:
    text = (ROOT / "docs" / "calls.md").read_text()
    table = section(text, "Errors")
    for code in codes.TABLE:
        assert re.search(rf"\b{code}\b", table), code
