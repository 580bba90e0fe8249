"""What is refused of merge rules, destinations, mappings, servers and formats, and when (30 §10, 40 §1-2)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from catalog.desk import KEY, Desk
from openaudience.catalog.audience_checks import COMBINATIONS
from openaudience.catalog.base import open_engine
from openaudience.catalog.migrate import upgrade
from openaudience.config import LimitsSection

SOURCES: list[dict[str, Any]] = [
    {"dataSourceId": 10, "name": "CRM", "outboundS2S": True},
    {"dataSourceId": 20, "name": "Inbound only"},
    *(
        {"dataSourceId": number, "name": f"Club {number}", "idType": "CROSS_DEVICE", "integrationCode": f"c{number}"}
        for number in (31, 32, 33, 34)
    ),
    {
        "dataSourceId": 40,
        "name": "Plain",
        "idType": "CROSS_DEVICE",
        "integrationCode": "plain",
        "supportsAuthenticatedProfile": False,
    },
]
BASE: dict[str, list[dict[str, Any]]] = {
    "dataSources": SOURCES,
    "traits": [{"sid": 1, "name": "T", "traitType": "ON_BOARDED_TRAIT", "dataSourceId": 10, "folderId": "/F"}],
    "segments": [{"sid": 2, "name": "S", "dataSourceId": 10, "segmentRule": "1T"}],
    "destinationServers": [
        {"serverId": 1, "name": "Folder", "type": "LOCAL", "directory": "/out"},
        {"serverId": 2, "name": "Store", "type": "S3", "bucket": "out"},
        {"serverId": 3, "name": "Web", "type": "HTTP", "host": "in.example"},
    ],
    "destinationFormats": [
        {"formatId": 1, "name": "File", "fileName": "a<SYNC_MODE>", "row": "<DP_UUID>"},
        {"formatId": 2, "name": "Zip", "fileName": "a<SYNC_MODE>", "row": "<DP_UUID>", "compression": "zip"},
        {"formatId": 3, "name": "Message", "type": "HTTP", "template": "x"},
    ],
}


def workspace(**lists: Any) -> str:
    """The base with lists in the place of its own, as JSON on many lines."""
    partner = {"pid": 1, "name": "acme", "folders": {"traits": [{"name": "F"}]}, **BASE, **lists}
    return json.dumps({"partners": [partner]}, indent=1)


def only(**lists: Any) -> str:
    """A file that names nothing but these."""
    return json.dumps({"partners": [{"pid": 1, "name": "acme", **lists}]}, indent=1)


def destination(**fields: Any) -> dict[str, Any]:
    """A destination that may be saved, with fields in the place of its own; None leaves one out."""
    sound = {
        "destinationId": 5,
        "name": "D",
        "destinationType": "S2S",
        "dataSourceId": 10,
        "userIdKey": 10,
        "serverId": 1,
    }
    return {name: value for name, value in (sound | fields).items() if value is not None}


def rule(number: int, authenticated: str, device: str | None = None, *sources: int, **fields: Any) -> dict[str, Any]:
    chosen = {"dataSourceIds": list(sources)} if sources else {}
    option = {"deviceOption": device} if device else {}
    name = {"mergeRuleDataSourceId": number, "name": f"M{number}", "authenticatedOption": authenticated}
    return {**name, **option, **chosen, **fields}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    opened = open_engine(f"sqlite:///{tmp_path_factory.mktemp('catalog') / 'catalog.db'}")
    upgrade(opened)
    yield opened
    opened.dispose()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """With a database of its own."""
    opened = open_engine(f"sqlite:///{tmp_path / 'catalog.db'}")
    upgrade(opened)
    yield Desk(opened, tmp_path)
    opened.dispose()


def texts(desk: Desk, text: str, **options: Any) -> list[str]:
    """The mistakes without their places."""
    return [mistake.split(": ", 1)[1] for mistake in desk.mistakes(text, **options)]


# ---- merge rules -------------------------------------------------------------------------------------------------

AUTHENTICATED = ("NO_CROSS_DEVICE", "CURRENT_AUTHENTICATED", "LAST_AUTHENTICATED", "ALL_CROSS_DEVICE")
DEVICE = ("NO_DEVICE", "DEVICE", "PROFILE_LINK", "EXTERNAL_GRAPH")
ALLOWED = {
    "NO_CROSS_DEVICE DEVICE": (0,),
    "NO_CROSS_DEVICE EXTERNAL_GRAPH": (0,),
    "CURRENT_AUTHENTICATED NO_DEVICE": (1, 2, 3),
    "LAST_AUTHENTICATED DEVICE": (1, 2, 3),
    "LAST_AUTHENTICATED PROFILE_LINK": (1,),
    "LAST_AUTHENTICATED EXTERNAL_GRAPH": (1, 2, 3),
    "ALL_CROSS_DEVICE NO_DEVICE": (1, 2, 3),
}
"""Numbers of data sources by combination, as QL-1002 … QL-1008 list them."""


@pytest.mark.rule("QL-1002", "QL-1003", "QL-1004", "QL-1005", "QL-1006", "QL-1007", "QL-1008", "QL-1009", "API-272")
@pytest.mark.parametrize("authenticated", AUTHENTICATED)
@pytest.mark.parametrize("device", DEVICE)
def test_combinations_of_merge_rules(engine: Engine, tmp_path: Path, authenticated: str, device: str) -> None:
    desk = Desk(engine, tmp_path)
    allowed = ALLOWED.get(f"{authenticated} {device}", ())
    for count in range(5):
        text = workspace(mergeRules=[rule(800, authenticated, device, *(31, 32, 33, 34)[:count])])
        if count in allowed:
            desk.apply(text, diff=True)
            continue
        (found,) = texts(desk, text, diff=True)
        assert found.startswith("dataSourceIds: " if allowed else "deviceOption: ")
    assert len(COMBINATIONS) == len(ALLOWED)


@pytest.mark.rule("API-271")
def test_the_device_option_of_all_cross_device_may_be_left_out(desk: Desk) -> None:
    desk.apply(workspace(mergeRules=[rule(800, "ALL_CROSS_DEVICE", None, 31)]))
    assert desk.audiences().merge_rules[800].device == "NO_DEVICE"


@pytest.mark.rule("QL-1010", "API-272")
def test_sources_of_merge_rules_have_authenticated_profiles(desk: Desk) -> None:
    found = texts(desk, workspace(mergeRules=[rule(800, "LAST_AUTHENTICATED", "DEVICE", 31, 20, 40)]))
    assert found == [
        "dataSourceIds: 20 is no CROSS_DEVICE data source",
        "dataSourceIds: 40 must set supportsAuthenticatedProfile to be used in a merge rule",
    ]


@pytest.mark.rule("QL-1010", "QL-1908", "QL-1912", "API-272")
def test_three_merge_rules_and_one_of_all_profiles(desk: Desk) -> None:
    first = [rule(n, "LAST_AUTHENTICATED", "DEVICE", 31) for n in (801, 802, 803)]
    wide = rule(804, "ALL_CROSS_DEVICE", None, 31)
    desk.apply(workspace(mergeRules=[*first, wide]))
    fourth = texts(desk, only(mergeRules=[rule(805, "NO_CROSS_DEVICE", "DEVICE")]))
    assert "E_LIMIT: merge rules other than ALL_CROSS_DEVICE: 4 of 3" in fourth
    second = texts(desk, only(mergeRules=[rule(806, "ALL_CROSS_DEVICE", None, 31)]))
    assert "E_LIMIT: merge rules of ALL_CROSS_DEVICE: 2 of 1" in second
    # a rule that becomes one of the other sort counts as new there
    turned = texts(
        desk, only(mergeRules=[{"mergeRuleDataSourceId": 804, "authenticatedOption": "CURRENT_AUTHENTICATED"}])
    )
    assert turned == ["E_LIMIT: merge rules other than ALL_CROSS_DEVICE: 4 of 3"]
    # what is there keeps working under a lower limit
    desk.limits = LimitsSection(merge_rules=2)
    renamed = [{**one, "description": "x"} for one in first]
    assert len(desk.apply(only(mergeRules=renamed))) == 3


def defaults(desk: Desk) -> list[int]:
    partner = desk.exported()["partners"][0]
    return [one["mergeRuleDataSourceId"] for one in partner["mergeRules"] if one["isDefault"]]


@pytest.mark.rule("QL-1020", "API-272")
def test_one_merge_rule_is_the_default(desk: Desk) -> None:
    first, second = rule(801, "NO_CROSS_DEVICE", "DEVICE"), rule(802, "LAST_AUTHENTICATED", "DEVICE", 31)
    desk.apply(workspace(mergeRules=[first]))
    assert defaults(desk) == [801]
    assert desk.audiences().segments[2].merge_rule == 801
    desk.apply(only(mergeRules=[second]))
    assert defaults(desk) == [801]
    # the flag moves, also away from a rule that the file does not name
    changed = desk.apply(only(mergeRules=[{**second, "isDefault": True}]))
    assert changed == [("update", "mergeRule", 801, "M801"), ("update", "mergeRule", 802, "M802")]
    assert defaults(desk) == [802]
    assert desk.apply(only(mergeRules=[{**second, "isDefault": True}])) == []
    assert desk.apply(only(mergeRules=[first, second])) == []
    refused = texts(desk, only(mergeRules=[{**second, "isDefault": False}]))
    assert refused == ["isDefault: one rule is the default; set another to true instead"]
    desk.apply(only(mergeRules=[{**second, "isDefault": False}, {**first, "isDefault": True}]))
    assert defaults(desk) == [801]
    both = texts(desk, only(mergeRules=[{**second, "isDefault": True}, {**first, "isDefault": True}]))
    assert both == ["isDefault: merge rule 802 of this file is the default already; keep one"]
    assert desk.apply(json.dumps(desk.exported()), environments=("production",), prune=True) == []


@pytest.mark.rule("QL-1020")
def test_without_a_merge_rule_the_device_rule_is_in_force(desk: Desk) -> None:
    desk.apply(workspace())
    audiences = desk.audiences()
    built_in = audiences.merge_rules[audiences.segments[2].merge_rule]
    assert (built_in.number, built_in.authenticated, built_in.device) == (0, "NO_CROSS_DEVICE", "DEVICE")


@pytest.mark.rule("QL-1020", "API-272")
def test_a_default_or_used_merge_rule_is_not_deleted(desk: Desk) -> None:
    first, second = rule(801, "NO_CROSS_DEVICE", "DEVICE"), rule(802, "LAST_AUTHENTICATED", "DEVICE", 31)
    used = [{**BASE["segments"][0], "mergeRuleDataSourceId": 802}]
    desk.apply(workspace(mergeRules=[first, second], segments=used))
    assert texts(desk, workspace(mergeRules=[first], segments=used), prune=True) == [
        "mergeRuleDataSourceId: this partner has no mergeRule 802; define it or correct the number"
    ]
    assert texts(desk, workspace(mergeRules=[second], segments=used), prune=True) == [
        "E_IN_USE: mergeRules: 'M801' (801) is the default; make another one the default first"
    ]
    desk.apply(workspace(mergeRules=[{**second, "isDefault": True}], segments=used), prune=True)
    assert defaults(desk) == [802]
    unused = [{**BASE["segments"][0], "mergeRuleDataSourceId": 0}]
    desk.apply(workspace(segments=unused), prune=True)
    assert desk.audiences().segments[2].merge_rule == 0


# ---- destinations ------------------------------------------------------------------------------------------------

DESTINATIONS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("OB-01", {"batch": False}, "batch: realTime or batch must be on"),
    ("OB-02", {"destinationType": "BULK_SEGMENT", "batch": False}, "batch: BULK_SEGMENT goes out in files only"),
    (
        "OB-03",
        {"destinationType": "BULK_TRAIT", "realTime": True, "realTimeServerId": 3},
        "realTime: BULK_TRAIT goes out in files only",
    ),
    ("OB-04", {"destinationType": "BULK_ID", "userIdKey": 0}, "userIdKey: 0 cannot be the key of BULK_ID"),
    ("OB-04", {"destinationType": "BULK_ID", "userIdKey": 4}, "userIdKey: 4 cannot be the key of BULK_ID"),
    ("OB-08", {"name": None}, "name is missing; it is required"),
    ("OB-11", {"userIdKey": None}, "userIdKey is missing"),
    ("OB-11", {"userIdKey": 20}, "userIdKey: data source 20 is not outbound; set outboundS2S there"),
    ("OB-11", {"userIdKey": 99}, "userIdKey: there is no data source 99"),
    ("OB-12", {"dataSourceId": None}, "dataSourceId is missing"),
    ("OB-14", {"mappingAutoFiller": "NAME"}, "mappingAutoFiller: 'NAME' is not known"),
    ("OB-15", {"inFileDataSources": [10, 99]}, "inFileDataSources: there is no data source 99"),
    ("OB-16", {"dataExportLabels": ["PII", "ADS"]}, "dataExportLabels: 'ADS' is not known"),
    ("OB-19", {"syncType": "none"}, "syncType: 'none' is not known"),
    ("OB-20", {"syncLookback": "7d"}, "syncLookback: goes with syncType customer or platform only"),
    ("OB-20", {"syncType": "customer"}, "syncLookback: must be one of 24h, 7d, 30d with customer"),
    ("OB-20", {"syncType": "platform", "syncLookback": "14d"}, "syncLookback: must be one of 24h, 7d, 30d"),
    ("OB-21", {"incrementalSchedule": "12h"}, "incrementalSchedule: '12h' is not known"),
    ("OB-21", {"fullSchedule": "weekly"}, "fullSchedule: 'weekly' is not known"),
    ("OB-22", {"iterContent": "all"}, "iterContent: 'all' is not known"),
    ("OB-23", {"sampleRateDenominator": 0}, "sampleRateDenominator: 0 is outside"),
    ("OB-24", {"serverId": None}, "serverId is missing"),
    ("OB-24", {"realTime": True}, "realTimeServerId is missing"),
    ("OB-24", {"realTime": True, "realTimeServerId": 1}, "realTimeServerId: 1 is no HTTP server"),
    ("OB-24", {"formatId": 3}, "formatId: 3 is no format of type FILE"),
    ("OB-24", {"serverId": 3, "formatId": 1}, "formatId: 1 is no format of type HTTP"),
    ("OB-24", {"formatId": 9}, "formatId: this partner has no destinationFormat 9"),
    ("OB-182", {"serverId": 2, "formatId": 2}, "formatId: S3 takes no zip files"),
    (
        "OB-31",
        {"mappings": [{"sid": 2, "startDate": "2026-05-01", "endDate": "2026-05-01"}]},
        "endDate: 2026-05-01 is not",
    ),
    # without a start it is today
    (
        "OB-31",
        {"mappings": [{"sid": 2, "endDate": "2026-03-02"}]},
        "endDate: 2026-03-02 is not after startDate 2026-03-02",
    ),
    ("OB-28", {"mappings": [{"sid": 2}, {"sid": 2}]}, "mappings: 2 is mapped twice to this destination; keep one"),
    ("OB-36", {"destinationType": "BULK_SEGMENT", "mappings": [{"sid": 2}]}, "mappings: BULK_SEGMENT takes none"),
    (
        "OB-36",
        {"destinationType": "BULK_ID", "mappings": [{"sid": 1, "traitType": "TRAIT"}]},
        "mappings: BULK_ID takes none",
    ),
    ("OB-36", {"destinationType": "BULK_TRAIT", "mappings": [{"sid": 2}]}, "traitType: BULK_TRAIT takes traits only"),
    ("OB-36", {"mappings": [{"sid": 1}]}, "sid: this partner has no segment 1"),
    ("OB-36", {"mappings": [{"sid": 2, "traitType": "TRAIT"}]}, "sid: this partner has no trait 2"),
    ("OB-36", {"mappings": [{"sid": 2, "traitType": "FOLDER"}]}, "traitType: 'FOLDER' is not known"),
)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param(fields, expected, id=f"{name} {number}", marks=pytest.mark.rule(name, "API-199"))
        for number, (name, fields, expected) in enumerate(DESTINATIONS)
    ],
)
def test_refused_destinations(engine: Engine, tmp_path: Path, fields: dict[str, Any], expected: str) -> None:
    found = texts(Desk(engine, tmp_path), workspace(destinations=[destination(**fields)]))
    assert len(found) == 1
    assert found[0].startswith(expected)


ACCEPTED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("OB-01", {"batch": False, "serverId": None, "realTime": True, "realTimeServerId": 3, "realTimeFormatId": 3}),
    ("OB-02", {"destinationType": "BULK_SEGMENT", "inFileDataSources": "all_first_party"}),
    ("OB-04", {"destinationType": "BULK_ID", "userIdKey": 20914}),
    ("OB-11", {"userIdKey": 0}),
    ("OB-11", {"userIdKey": 4}),
    ("OB-11", {"userIdKey": 1171489}),
    ("OB-16", {"dataExportLabels": ["PII", "OFFSITE_ADS"]}),
    ("OB-20", {"syncType": "platform", "syncLookback": "30d"}),
    ("OB-21", {"incrementalSchedule": "never", "fullSchedule": "30d"}),
    ("OB-24", {"serverId": 3, "formatId": 3}),
    ("OB-24", {"formatId": 1}),
    ("OB-182", {"serverId": 1, "formatId": 2}),
    ("OB-31", {"mappings": [{"sid": 2, "endDate": "2026-03-03"}]}),
    ("OB-36", {"destinationType": "BULK_TRAIT", "mappings": [{"sid": 1, "traitType": "TRAIT"}]}),
    ("OB-36", {"mappings": [{"sid": 2}, {"sid": 1, "traitType": "TRAIT"}]}),
)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(fields, id=f"{name} {number}", marks=pytest.mark.rule(name))
        for number, (name, fields) in enumerate(ACCEPTED)
    ],
)
def test_accepted_destinations(desk: Desk, fields: dict[str, Any]) -> None:
    text = workspace(destinations=[destination(**fields)])
    assert ("create", "destination", 5, "D") in desk.apply(text)
    assert desk.apply(text) == []
    assert desk.apply(json.dumps(desk.exported()), environments=("production",), prune=True) == []


@pytest.mark.rule("OB-36")
def test_only_plain_traits_are_mapped_singly(desk: Desk) -> None:
    desk.apply(workspace())
    found = []
    for automatic in [t.sid for t in desk.catalog().traits(automatic=True) if t.sid != 1]:
        mapped = [{"sid": automatic, "traitType": "TRAIT"}]
        found += texts(desk, only(destinations=[destination(mappings=mapped)]))
    told = {text.partition(" cannot")[0] for text in found}
    assert told == {"sid: a FOLDER_TRAIT", "sid: a ACTIVE_AUDIENCE_TRAIT", "sid: a DATA_SOURCE_SYNCED_TRAIT"}


@pytest.mark.rule("OB-11")
def test_the_key_is_of_the_same_partner(desk: Desk) -> None:
    other = {"pid": 2, "name": "other", "dataSources": [{"dataSourceId": 90, "name": "Theirs", "outboundS2S": True}]}
    document = json.loads(workspace(destinations=[destination(userIdKey=90)]))
    document["partners"].append(other)
    assert texts(desk, json.dumps(document)) == ["userIdKey: 90 is a data source of another partner"]


@pytest.mark.rule("OB-182")
@pytest.mark.parametrize("changed", ["destination", "format"])
def test_zip_and_object_storage_never_meet(desk: Desk, changed: str) -> None:
    """Whichever of them is saved last."""
    if changed == "format":
        desk.apply(workspace(destinations=[destination(serverId=2, formatId=1)]))
        told = texts(desk, only(destinationFormats=[{"formatId": 1, "compression": "zip"}]))
        assert told == ["compression: S3 takes no zip files: destination 5 has server 2 and format 1; use gz"]
        desk.apply(only(destinationFormats=[{"formatId": 1, "compression": "gz"}]))
    else:
        desk.apply(workspace(destinations=[destination(serverId=2, formatId=1)]))
        told = texts(desk, only(destinations=[destination(serverId=2, formatId=2)]))
        assert told == ["formatId: S3 takes no zip files: destination 5 has server 2 and format 2; use gz"]


@pytest.mark.rule("OB-25", "QL-1912")
def test_numbers_of_destinations(desk: Desk) -> None:
    many = [destination(destinationId=100 + n, name=f"D{n}", destinationType="BULK_SEGMENT") for n in range(60)]
    more = [destination(destinationId=200 + n, name=f"E{n}") for n in range(40)]
    desk.apply(workspace(destinations=[*many, *more]))
    told = texts(desk, only(destinations=[destination()]))
    assert told == ["E_LIMIT: server-to-server destinations: 101 of 100"]
    # others have room of their own, and one less makes room
    desk.apply(only(destinations=[{"destinationId": 6, "name": "Pixel", "destinationType": "PUSH"}]))
    desk.apply(workspace(destinations=[*many, *more[:39]]), prune=True)
    assert ("create", "destination", 5, "D") in desk.apply(only(destinations=[destination()]))


@pytest.mark.rule("OB-26", "QL-716", "OP-31")
def test_a_mapped_segment_is_not_deleted_before_its_mapping(desk: Desk) -> None:
    mapped = workspace(destinations=[destination(mappings=[{"sid": 2}])])
    desk.apply(mapped)
    told = texts(desk, workspace(segments=[], destinations=[destination(mappings=[{"sid": 2}])]), prune=True)
    assert told == ["sid: this partner has no segment 2; define it or correct the number"]
    desk.apply(workspace(segments=[], destinations=[destination()]), prune=True)
    assert desk.audiences().segments == {}


@pytest.mark.rule("OP-35")
def test_what_is_stored_is_not_judged_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file written before a check existed is applied again; only what it changes is judged."""
    text = workspace(destinations=[destination(serverId=None, dataSourceId=None, syncType="odd")])
    with monkeypatch.context() as patch:
        patch.setattr("openaudience.catalog.checks.check_audiences", lambda *_: None)
        desk.apply(text)
    assert desk.apply(text) == []
    assert desk.apply(only(destinations=[{"destinationId": 5, "description": "x"}])) != []
    assert texts(desk, only(destinations=[{"destinationId": 5, "formatId": 1}])) == [
        "serverId is missing; name the server to deliver to"
    ]


# ---- servers and formats -----------------------------------------------------------------------------------------

SERVERS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("OB-196", {"type": "S3", "bucket": "s3://out"}, "bucket: must be the bare name"),
    ("OB-196", {"type": "S3", "bucket": "out", "directory": "/daily"}, "directory: must be a bare prefix"),
    ("OB-197", {"type": "S3", "bucket": "out", "accessKeyId": "K"}, "secretAccessKey is missing"),
    ("OB-199", {"type": "FTP", "host": "h", "user": "u", "password_env": "ANA_PASSWORD"}, "allowInsecure: plain FTP"),
    (
        "OB-200",
        {"type": "SFTP", "host": "sftp://h", "user": "u", "password_env": "ANA_PASSWORD"},
        "host: must be a bare",
    ),
    ("OB-202", {"type": "SFTP", "host": "h", "user": "u"}, "password is missing"),
    ("OB-202", {"type": "SFTP", "host": "h", "user": "u", "privateKey_file": "keys/old"}, "privateKey: "),
    ("OB-205", {"type": "LOCAL"}, "directory is missing"),
)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param(fields, expected, id=f"{name} {number}", marks=pytest.mark.rule(name, "API-203"))
        for number, (name, fields, expected) in enumerate(SERVERS)
    ],
)
def test_refused_servers(engine: Engine, tmp_path: Path, fields: dict[str, Any], expected: str) -> None:
    desk = Desk(engine, tmp_path)
    (tmp_path / "keys" / "old").write_text("-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n")
    (found,) = texts(desk, workspace(destinationServers=[{"serverId": 1, "name": "N", **fields}]))
    assert found.startswith(expected)
    assert "AAAA" not in found


@pytest.mark.rule("OB-202", "OB-212")
def test_a_key_that_is_no_longer_fit_is_refused(desk: Desk) -> None:
    """The file that the workspace refers to changed, the workspace did not."""
    server = {"serverId": 1, "name": "N", "type": "SFTP", "host": "h", "user": "u", "privateKey_file": "keys/adpartner"}
    text = workspace(destinationServers=[server])
    desk.apply(text)
    assert desk.apply(text) == []
    (desk.folder / "keys" / "adpartner").write_text(KEY.replace("OPENSSH", "RSA"))
    (found,) = texts(desk, text)
    assert found.startswith("privateKey: ")


@pytest.mark.rule("OB-88", "API-204")
def test_faults_of_formats_have_their_place(desk: Desk) -> None:
    text = """
partners:
  - pid: 1
    name: acme
    destinationFormats:
      - {formatId: 1, name: A, fileName: 'x<SYNC_MODE>', row: '<DP_UUID>,<NOBODY>'}
      - formatId: 2
        name: B
        fileName: x
        row: |
          <DP_UUID>
          <SEGMENT_LIST
      - {formatId: 3, name: C, header: h, compression: rar, timestampDigits: 12}
      - {formatId: 4, name: D, type: HTTP}
"""
    found = desk.mistakes(text)
    # at the tag, in the quotes and in the block
    column = text.splitlines()[5].index("NOBODY") + 1
    assert found[0].startswith(f"6:{column}: E_TEMPLATE: row: ")
    assert any(mistake.startswith("12:") and "E_TEMPLATE: row: " in mistake for mistake in found)
    assert {mistake.split(": ", 1)[1] for mistake in found if mistake.startswith("13:")} == {
        "E_TEMPLATE: fileName: the template is empty; every file format needs one",
        "E_TEMPLATE: row: the template is empty; every file format needs one",
        "compression: 'rar' is not known; choose none, gz, zip",
        "timestampDigits: must be 10 or 13",
    }
    assert [mistake for mistake in found if mistake.startswith("14:")] == ["14:9: template is missing; it is required"]
    assert desk.exported() == {"partners": []}


@pytest.mark.rule("OB-89")
def test_doubtful_formats_are_saved_with_a_warning(desk: Desk) -> None:
    formats = [{"formatId": 1, "name": "A", "fileName": "x<SYNC_MODE>", "row": "<DP_UUID> <SEGMENT_LIST>"}]
    text = workspace(destinationFormats=formats)
    warnings = desk.warnings(text)
    assert len(warnings) == 1
    assert warnings[0].startswith("row: ")
    desk.apply(text)
    # once said is enough
    assert desk.warnings(text) == []
