"""What workspace files do to the catalog (OP-30 … OP-36), on every database."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest
import yaml
from sqlalchemy import Engine

from catalog.desk import DAY, EXAMPLE, KEY, NOW, SECRETS, VAULT, Desk, acme
from openaudience.catalog import workspace
from openaudience.catalog.migrate import ENVIRONMENTS
from openaudience.catalog.schema import json_schema
from openaudience.config import LimitsSection
from openaudience.errors import InputError, WorkspaceError
from openaudience.vocabulary import GLOBAL_SOURCES, IdKind

SCHEMA = Path(workspace.__file__).parent / "workspace.schema.json"


@pytest.fixture
def desk(engine: Engine, tmp_path: Path) -> Desk:
    return Desk(engine, tmp_path)


def trait(fields: str) -> str:
    return acme(traits=f"[{{sid: 901, name: Buyers, traitType: ON_BOARDED_TRAIT, dataSourceId: 10, {fields}}}]")


@pytest.mark.rule("OP-30", "OP-33", "OP-34", "OP-11")
def test_the_example_of_the_specification(desk: Desk) -> None:
    created = desk.apply(EXAMPLE.read_text())
    assert {action for action, _, _, _ in created} == {"create"}
    assert ("create", "dataSource", 7007, "Loyalty") in created
    assert ("create", "destination", 7301, "Ad partner, daily") in created
    assert ("create", "apiClient", "shop-etl", "shop-etl") in created
    for environment in ENVIRONMENTS:
        catalog = desk.catalog(environment)
        assert [(p.pid, p.name) for p in catalog.partners()] == [(1001, "acme")]
        sources = catalog.data_sources()
        assert sources[5001].kind is IdKind.COOKIE
        assert sources[7007].kind is IdKind.CROSS_DEVICE
        assert [t.sid for t in catalog.traits()] == [901, 902, 903, 950]
        assert [t.sid for t in catalog.traits(7007)] == [950]
        assert catalog.traits(7007)[0].rule == 'tier == "gold"'
        assert catalog.traits(7007)[0].ttl == 120


@pytest.mark.rule("OP-11", "OP-35")
def test_a_second_apply_changes_nothing(desk: Desk) -> None:
    desk.apply(EXAMPLE.read_text())
    desk.now += DAY
    assert desk.apply(EXAMPLE.read_text()) == []
    assert desk.apply(EXAMPLE.read_text(), prune=True) == []


@pytest.mark.rule("OP-33", "OP-36")
def test_applying_the_export_changes_nothing_and_holds_no_secret(desk: Desk) -> None:
    desk.apply(EXAMPLE.read_text())
    text = workspace.as_yaml(dict(desk.exported()))
    for secret in (*SECRETS.values(), *KEY.splitlines()[1:-1]):
        assert secret not in text
    assert "password_env: ANA_PASSWORD" in text
    assert "privateKey_file:" in text
    assert desk.apply(text, environments=("production",), prune=True) == []
    assert desk.apply(json.dumps(desk.exported()), environments=("production",)) == []


@pytest.mark.rule("OP-33")
def test_an_export_makes_the_same_catalog_elsewhere(desk: Desk) -> None:
    desk.apply(EXAMPLE.read_text(), environments=("production",))
    assert desk.exported("beta") == {"partners": []}
    desk.apply(workspace.as_yaml(dict(desk.exported())), environments=("beta",))
    assert desk.exported("beta") == desk.exported()


@pytest.mark.rule("OP-11", "IN-01")
def test_an_environment_alone(desk: Desk) -> None:
    desk.apply(acme(), environments=("beta",))
    assert desk.catalog("production").partners() == []
    assert [p.name for p in desk.catalog("beta").partners()] == ["acme"]
    assert ("create", "partner", 1, "acme") in desk.apply(acme())
    assert desk.apply(acme()) == []


@pytest.mark.rule("OP-11")
def test_diff_shows_it_without_doing_it(desk: Desk) -> None:
    shown = desk.apply(acme(), diff=True)
    assert shown == [("create", "partner", 1, "acme"), ("create", "dataSource", 10, "CRM")]
    assert desk.catalog().partners() == []
    assert desk.apply(acme()) == shown


@pytest.mark.rule("OP-31")
def test_all_or_nothing(desk: Desk) -> None:
    desk.apply(acme())
    changed = acme(
        dataSources="[{dataSourceId: 10, name: New name}, {dataSourceId: 11, name: More, idType: WHAT}]",
        traits="[{sid: 1, name: T, traitType: ON_BOARDED_TRAIT, dataSourceId: 10}]",
    )
    assert len(desk.mistakes(changed)) == 1
    for environment in ENVIRONMENTS:
        assert desk.catalog(environment).data_sources()[10].name == "CRM"
        assert desk.catalog(environment).traits() == []


@pytest.mark.rule("OP-31")
def test_only_prune_deletes_what_is_not_named(desk: Desk) -> None:
    desk.apply(EXAMPLE.read_text())
    small = acme().replace("name: acme", "name: small")
    assert desk.apply(small) == [("create", "partner", 1, "small"), ("create", "dataSource", 10, "CRM")]
    shown = desk.apply(small, prune=True, diff=True)
    assert len(shown) == 27
    assert {action for action, _, _, _ in shown} == {"delete"}
    assert desk.apply(small, prune=True) == shown
    assert [p.name for p in desk.catalog().partners()] == ["small"]
    assert desk.catalog().traits() == []
    assert desk.catalog().data_sources().keys() == {10} | GLOBAL_SOURCES.keys()


@pytest.mark.rule("QL-312", "OP-31")
def test_prune_never_leaves_a_reference_without_its_object(desk: Desk) -> None:
    full = acme(
        traits="[{sid: 901, name: T, traitType: ON_BOARDED_TRAIT, dataSourceId: 10}]",
        segments="[{sid: 2, name: S, dataSourceId: 10, segmentRule: 901T}]",
    )
    desk.apply(full)
    without = acme(segments="[{sid: 2, name: S}]")
    assert desk.mistakes(without, prune=True) == [
        "4:16: E_UNKNOWN_TRAIT: segmentRule: there is no trait 901; name an existing one"
    ]
    assert [t.sid for t in desk.catalog().traits()] == [901]


@pytest.mark.rule("OP-35")
def test_a_field_left_out_keeps_its_value(desk: Desk) -> None:
    desk.apply(trait("ttl: 30, description: who bought, integrationCode: b"))
    assert desk.apply(trait("comments: seen")) == [("update", "trait", 901, "Buyers")]
    document = desk.catalog().trait_documents()[0]
    assert (document["ttl"], document["description"], document["comments"]) == (30, "who bought", "seen")
    desk.apply(trait("description: null, ttl: null, integrationCode: ''"))
    document = desk.catalog().trait_documents()[0]
    assert (document["ttl"], document["description"], document["integrationCode"]) == (30, None, None)


@pytest.mark.rule("OP-35", "OP-33")
def test_entries_without_identifier_are_found_by_name(desk: Desk) -> None:
    text = """
partners:
  - name: acme
    dataSources: [{name: CRM}]
    folders: {traits: [{name: Loyalty, parentFolderId: CRM}, {name: CRM}]}
    traits:
      - {name: Buyers, traitType: ON_BOARD_TRAIT, dataSourceId: CRM, folderId: /CRM/Loyalty, traitRule: 'a == "1"'}
    segments: [{name: S, dataSourceId: CRM, segmentRule: 1T}]
"""
    desk.apply(text)
    assert desk.apply(text) == []
    found = desk.catalog().traits()
    assert [(t.sid, t.type, t.dpid) for t in found] == [(1, "ON_BOARDED_TRAIT", 1)]
    assert desk.catalog().trait_documents()[0]["folderId"] == 2
    assert desk.exported()["partners"][0]["segments"][0]["sid"] == 2


@pytest.mark.rule("OP-35")
def test_a_name_that_two_bear_asks_for_the_identifier(desk: Desk) -> None:
    desk.apply(acme(dataSources="[{dataSourceId: 10, name: CRM}, {dataSourceId: 11, name: CRM}]"))
    assert desk.mistakes(acme(dataSources="[{name: CRM}]")) == [
        "4:19: 2 stored objects are named 'CRM'; give dataSourceId: 10, 11"
    ]


@pytest.mark.rule("QL-005", "OP-33")
def test_traits_and_segments_share_numbers_that_are_never_given_twice(desk: Desk) -> None:
    some = "{name: %s, traitType: ON_BOARDED_TRAIT, dataSourceId: 10}"
    desk.apply(
        acme(traits=f"[{some % 'A'}]", segments="[{sid: 1, name: S, dataSourceId: 10, segmentRule: 2T}]"),
        environments=("production",),
    )
    assert [t.sid for t in desk.catalog().traits()] == [2]
    desk.apply(acme(), environments=("production",), prune=True)
    desk.apply(acme(traits=f"[{some % 'B'}]"), environments=("production",))
    assert [t.sid for t in desk.catalog().traits()] == [3]


@pytest.mark.rule("QL-513")
def test_a_changed_ttl_leaves_what_had_expired_dead(desk: Desk) -> None:
    desk.apply(trait("ttl: 30"))
    assert desk.catalog().dead_before() == {}
    desk.now += DAY
    desk.apply(trait("ttl: 60"))
    catalog = desk.catalog()
    assert catalog.dead_before() == {901: desk.now - 30 * DAY}
    assert catalog.refolds() == {901}
    with catalog.writing() as session:
        catalog.settle_refolds([901], session)
    assert catalog.refolds() == frozenset()
    # Going back applies 60 days to what is there and never lowers the instant.
    desk.apply(trait("ttl: 1"))
    assert catalog.dead_before() == {901: desk.now - 30 * DAY}
    desk.now += DAY
    desk.apply(trait("ttl: 0"))
    assert catalog.dead_before() == {901: datetime(2026, 3, 2, 23, 59, 59, tzinfo=UTC)}
    desk.now += 400 * DAY
    desk.apply(trait("ttl: 5"))
    assert catalog.dead_before() == {901: datetime(2026, 3, 2, 23, 59, 59, tzinfo=UTC)}
    assert catalog.refolds() == {901}


@pytest.mark.rule("QL-312")
def test_a_deleted_trait_never_comes_back_with_its_number(desk: Desk) -> None:
    desk.apply(trait("ttl: 0"))
    desk.apply(acme(), prune=True)
    catalog = desk.catalog()
    assert catalog.refolds() == {901}
    assert catalog.retired("trait") == {901: NOW}
    desk.now += DAY
    desk.apply(trait("ttl: 0"))
    assert catalog.dead_before() == {901: NOW}


@pytest.mark.rule("QL-313", "QL-003")
def test_changes_of_a_rule_are_logged(desk: Desk) -> None:
    desk.apply(trait("""traitRule: ' a == "1" '"""))
    desk.now += DAY
    desk.apply(trait("""traitRule: 'a == "2"'"""))
    desk.apply(trait("ttl: 7"))
    log = desk.catalog().rule_versions(901)
    assert [(v["traitRuleVersion"], v["oldTraitRule"], v["traitRule"]) for v in log] == [
        (1, 'a == "1"', 'a == "2"'),
        (0, None, 'a == "1"'),
    ]
    assert [v["createTime"] for v in log] == [1772535849000, 1772449449000]
    assert desk.catalog().trait_documents()[0]["traitRuleVersion"] == 1


@pytest.mark.rule("API-80", "RT-202", "RT-205", "RT-206", "RT-207", "RT-211", "RT-213", "RT-215", "RT-216", "RT-217")
def test_defaults_of_data_sources(desk: Desk) -> None:
    desk.apply(
        acme(
            dataSources="[{dataSourceId: 10, name: CRM, outboundS2S: true},"
            " {dataSourceId: 11, name: Club, idType: cross_device, integrationCode: club,"
            " useAudienceManagerVisitorID: true, status: inactive},"
            " {dataSourceId: 12, name: ECID, marketingCloudVisitorIdVersion: 1, piiGuard: off, hashedEmails: true}]"
        )
    )
    cookie, cross, ecid = desk.catalog().data_source_documents()
    assert list(cookie)[:2] == ["dataSourceId", "pid"]
    assert (cookie["idType"], cookie["status"], cookie["type"]) == ("COOKIE", "ACTIVE", "GENERAL")
    assert (cookie["inboundS2S"], cookie["outboundS2S"], cookie["masterDataSourceIdProvider"]) == (True, True, True)
    assert (cookie["subIdType"], cookie["customerProfileDataRetention"]) == (None, None)
    assert (cookie["supportsAuthenticatedProfile"], cookie["authenticatedProfileName"]) == (False, "")
    assert (cookie["customNamespaceId"], cookie["containerIds"], cookie["dataExportRestrictions"]) == (10, [], [])
    assert (cross["subIdType"], cross["customerProfileDataRetention"]) == ("CROSS_DEVICE_PERSON", 62208000)
    assert (cross["supportsAuthenticatedProfile"], cross["authenticatedProfileName"]) == (True, "Club")
    assert cross["useAudienceManagerVisitorID"] is False
    sources = desk.catalog().data_sources()
    assert sources[11].active is False
    assert sources[12].kind is IdKind.ECID
    assert sources[12].pii_guard == "off"
    assert sources[12].hashed_emails is True
    assert ecid["createTime"] == ecid["updateTime"] == 1772449449000


@pytest.mark.rule("API-80", "API-96")
def test_what_is_fixed_at_creation_cannot_change(desk: Desk) -> None:
    desk.apply(trait("ttl: 30"))
    changed = acme(
        dataSources="[{dataSourceId: 10, name: CRM, idType: CROSS_DEVICE, integrationCode: c}]",
        traits="[{sid: 901, name: Buyers, traitType: RULE_BASED_TRAIT, traitRule: 'a == \"1\"'}]",
    )
    found = desk.mistakes(changed)
    assert len(found) == 2
    assert "idType: COOKIE cannot be changed to CROSS_DEVICE" in found[0]
    assert "traitType: ON_BOARDED_TRAIT cannot be changed to RULE_BASED_TRAIT" in found[1]


@pytest.mark.rule("RT-208", "OP-33")
def test_sampling_is_switched_on_once(desk: Desk) -> None:
    on = acme(dataSources="[{dataSourceId: 10, name: CRM, samplingEnabled: true}]")
    desk.apply(on)
    end = NOW + 14 * DAY
    assert desk.catalog().data_sources()[10].sampling_until == end
    assert desk.catalog().data_source_documents()[0]["samplingEnabled"] is True
    desk.now += DAY
    assert desk.apply(on) == []
    desk.now = end
    assert desk.catalog().data_source_documents()[0]["samplingEnabled"] is False
    assert desk.apply(on) == [("update", "dataSource", 10, "CRM")]
    assert desk.catalog().data_sources()[10].sampling_until == end + 14 * DAY
    desk.now += DAY
    desk.apply(acme(dataSources="[{dataSourceId: 10, name: CRM, samplingEnabled: false}]"))
    assert desk.catalog().data_sources()[10].sampling_until == desk.now


@pytest.mark.rule("QL-1901", "QL-1905", "QL-1912")
def test_limits_refuse_only_what_is_new(desk: Desk) -> None:
    some = "{sid: %d, name: T%d, traitType: ON_BOARDED_TRAIT, dataSourceId: 10}"
    desk.apply(acme(traits=f"[{some % (1, 1)}, {some % (2, 2)}]"))
    desk.limits = LimitsSection(traits=2, trait_folders=1)
    text = f"[{some % (1, 1)}, {some % (3, 3)}]"
    assert desk.mistakes(acme(traits=text)) == ["4:81: E_LIMIT: traits: 3 of 2"]
    desk.limits = LimitsSection(traits=1, trait_folders=1)
    assert desk.apply(acme(traits=f"[{some % (1, 7)}]".replace("T7", "New name"))) != []
    folders = "{traits: [{folderId: 1, name: A}, {folderId: 2, name: B}]}"
    assert desk.mistakes(acme(folders=folders)) == ["4:48: E_LIMIT: trait folders: 2 of 1"]


@pytest.mark.rule("QL-601")
def test_moving_a_subtree_too_deep_is_refused(desk: Desk) -> None:
    chain = ", ".join(f"{{folderId: {n}, name: F{n}, parentFolderId: {n - 1}}}" for n in range(1, 6))
    desk.apply(acme(folders=f"{{traits: [{chain}, {{folderId: 9, name: Top}}]}}"))
    found = desk.mistakes(acme(folders="{traits: [{folderId: 1, name: F1, parentFolderId: 9}]}"))
    assert found == ["4:64: E_LIMIT: folder depth: 6 of 5 for 'F5' below"]


@pytest.mark.rule("RT-214")
def test_switching_on_unique_codes_while_there_are_doubles_is_refused(desk: Desk) -> None:
    some = "{sid: %d, name: T, traitType: ON_BOARDED_TRAIT, dataSourceId: 10, integrationCode: x}"
    desk.apply(acme(traits=f"[{some % 1}, {some % 2}]"))
    found = desk.mistakes(acme(dataSources="[{dataSourceId: 10, name: CRM, uniqueTraitIntegrationCodes: true}]"))
    assert found == ["4:78: E_DUPLICATE_CODE: uniqueTraitIntegrationCodes: two traits have the code 'x'"]


@pytest.mark.rule("RT-107", "RT-203")
def test_the_code_of_an_inactive_data_source_is_free(desk: Desk) -> None:
    def sources(*fields: str) -> str:
        return acme(dataSources=f"[{', '.join(fields)}]")

    old = "{dataSourceId: 30, name: Old, integrationCode: crm}"
    new = "{dataSourceId: 31, name: New, integrationCode: crm}"
    taken = "E_DUPLICATE_CODE: integrationCode: another active data source has 'crm'"
    desk.apply(sources(old))
    assert [line.split(": ", 1)[1] for line in desk.mistakes(sources(new))] == [taken]
    desk.apply(sources("{dataSourceId: 30, name: Old, status: INACTIVE}"))
    desk.apply(sources(new))
    assert [line.split(": ", 1)[1] for line in desk.mistakes(sources("{dataSourceId: 30, status: ACTIVE}"))] == [taken]
    desk.apply(sources("{dataSourceId: 30, status: ACTIVE, integrationCode: crm-old}"))
    # a change of both at once is judged by what comes of it
    desk.apply(sources("{dataSourceId: 31, status: INACTIVE}", "{dataSourceId: 30, integrationCode: crm}"))


@pytest.mark.rule("RT-209")
def test_a_key_of_a_destination_stays_outbound(desk: Desk) -> None:
    source = "[{dataSourceId: 10, name: CRM, outboundS2S: %s}]"
    key = "[{destinationId: 5, name: D, destinationType: S2S, dataSourceId: 10, userIdKey: 10, serverId: 1}]"
    servers = "[{serverId: 1, name: S, type: LOCAL, directory: /out}]"
    desk.apply(acme(dataSources=source % "true", destinations=key, destinationServers=servers))
    found = desk.mistakes(acme(dataSources=source % "false"))
    assert found == ["4:62: E_IN_USE: outboundS2S: destination 5 has this data source as its key"]


@pytest.mark.rule("RT-219")
def test_a_data_source_in_use_is_not_deleted(desk: Desk) -> None:
    desk.apply(trait("ttl: 30"))
    found = desk.mistakes(acme(dataSources="[]", traits="[{sid: 901, name: Buyers}]"), prune=True)
    assert found == ["5:14: dataSourceId: this partner has no dataSource 10; define it or correct the number"]
    assert 10 in desk.catalog().data_sources()


@pytest.mark.rule("QL-301", "QL-114")
def test_unwise_names_and_keys_are_warned_of(desk: Desk) -> None:
    fields = """sid: 1, name: "a, b - c", traitType: ON_BOARDED_TRAIT, dataSourceId: 10, traitRule: 'd_mid == "1"'"""
    files = desk.files(acme(traits=f"[{{{fields}}}]"))
    outcome = workspace.diff(desk.engine, workspace.load(files), NOW, desk.limits, VAULT, environ={})
    about = {warning.text.partition(":")[0]: warning.text for warning in outcome.warnings}
    assert about.keys() == {"name", "traitRule"}
    assert "comma and a hyphen" in about["name"]
    assert "d_mid" in about["traitRule"]


@pytest.mark.rule("OP-34", "IN-09")
def test_partner_fields(desk: Desk) -> None:
    text = """
partners:
  - {pid: 1, name: acme, orgId: "0123456789ABCDEF@ExampleOrg", dataSourceAccess: [20]}
  - {pid: 2, name: other, dataSources: [{dataSourceId: 20, name: Shared}]}
"""
    desk.apply(text)
    first, second = desk.catalog().partners()
    assert (first.org_id, first.access) == ("0123456789ABCDEF@ExampleOrg", frozenset({20}))
    assert (second.org_id, second.access) == (None, frozenset())


@pytest.mark.rule("OP-11")
def test_several_files_are_applied_as_one(desk: Desk) -> None:
    first = acme()
    second = "partners: [{pid: 1, name: acme, traits: [{name: T, traitType: ON_BOARDED_TRAIT, dataSourceId: CRM}]}]"
    assert len(desk.apply(second, first)) == 3
    assert [t.dpid for t in desk.catalog().traits()] == [10]
    with pytest.raises(WorkspaceError) as caught:
        desk.apply("partners: [{pid: x}]", "partners: 7")
    assert [Path(mistake.file).name for mistake in caught.value.mistakes] == ["w0.yaml", "w1.yaml"]


@pytest.mark.rule("OP-35")
def test_mappings_are_found_by_sid(desk: Desk) -> None:
    base = acme(
        traits="[{sid: 1, name: T, traitType: ON_BOARDED_TRAIT, dataSourceId: 10}]",
        segments="[{sid: 2, name: S, dataSourceId: 10, segmentRule: 1T}, {sid: 3, name: R, dataSourceId: 10, "
        "segmentRule: 1T}]",
        destinations="[{destinationId: 5, name: D, destinationType: push, mappings: [%s]}]",
    )
    desk.apply(base % "{sid: S, traitAlias: s}")
    assert desk.apply(base % "{sid: 2}") == []
    assert desk.apply(base % "{sid: 3, startDate: 'Tue, 14 May 2024 00:00:00 GMT'}") == [
        ("update", "destination", 5, "D")
    ]
    mappings = desk.exported()["partners"][0]["destinations"][0]["mappings"]
    assert [(m["sid"], m.get("traitAlias"), m.get("startDate")) for m in mappings] == [
        (2, "s", "2026-03-02"),
        (3, None, "2024-05-14"),
    ]
    assert desk.apply(base % "{sid: 3}", prune=True) == [("update", "destination", 5, "D")]


@pytest.mark.rule("OP-33")
def test_json_of_the_api_can_be_pasted(desk: Desk) -> None:
    desk.apply(EXAMPLE.read_text())
    catalog = desk.catalog()
    document = {
        "partners": [
            {
                "pid": 1001,
                "name": "acme",
                "dataSources": catalog.data_source_documents(),
                "traits": [{**d, "permissions": ["READ"], "uniques30Day": 4} for d in catalog.trait_documents()],
                "companyName": "Acme \U0001f600",
            }
        ]
    }
    jsonschema.validate(document, json_schema())
    assert desk.apply(json.dumps(document, indent="\t")) == [("update", "partner", 1001, "acme")]
    assert desk.exported()["partners"][0]["companyName"] == "Acme \U0001f600"
    assert desk.apply(json.dumps(document, ensure_ascii=False)) == []


@pytest.mark.rule("OP-32")
def test_the_shipped_schema() -> None:
    shipped = json.loads(SCHEMA.read_text())
    assert shipped == json.loads(json.dumps(json_schema()))
    jsonschema.Draft202012Validator.check_schema(shipped)
    jsonschema.validate(yaml.safe_load(EXAMPLE.read_text()), shipped)
    examples = Path(__file__).parents[2] / "examples"
    for example in sorted(examples.rglob("workspace*.y*ml")):
        jsonschema.validate(yaml.safe_load(example.read_text()), shipped)
    bad = {"partners": [{"name": "acme", "dataSources": [{"name": "CRM", "nam": 1}]}]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, shipped)


@pytest.mark.rule("OP-12")
def test_a_view_without_an_installation() -> None:
    view = workspace.load_view(EXAMPLE, NOW)
    assert view.sources[20914].pid == 0
    assert view.sources[7007].kind is IdKind.CROSS_DEVICE
    assert [trait.sid for trait in view.traits] == [901, 902, 903, 950]
    assert view.segments == {2001: 1001, 2002: 1001}
    assert [partner.name for partner in view.partners] == ["acme"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        workspace.load([tmp_path / "none.yaml"])
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"partners:\n  - name: caf\xe9\n")
    with pytest.raises(WorkspaceError, match=":2:1: not UTF-8"):
        workspace.load([latin])


@pytest.mark.rule("RT-219", "API-53")
def test_a_deleted_data_source_never_comes_back_with_its_number(desk: Desk) -> None:
    desk.apply(acme(dataSources="[{dataSourceId: 10, name: CRM}, {dataSourceId: 11, name: Shop}]"))
    desk.apply(acme(dataSources="[{dataSourceId: 10, name: CRM}]"), prune=True)
    assert 11 not in desk.catalog().data_sources()
    found = desk.mistakes(acme(dataSources="[{dataSourceId: 11, name: Again}]"))
    assert len(found) == 1
    assert "11 was deleted" in found[0]
