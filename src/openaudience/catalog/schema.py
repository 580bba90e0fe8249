"""The fields of every object of a workspace file, as data (OP-33, OP-34).

Names, types and defaults are those of the management API (spec 50). One table drives the checks, the export and the
JSON Schema that editors use, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

NUMBER_MAX = 2**31 - 1

FieldType = Literal["str", "int", "bool", "number", "enum", "strs", "enums", "ref", "refs", "date", "any", "list"]

SERVER_FIELDS = frozenset({"pid", "crUID", "upUID", "createTime", "updateTime", "permissions"})
"""Fields that only the server writes; every object may bear them and they are ignored."""

EXPORT_CONTROLS = ("PII", "ONSITE_ADS", "OFFSITE_ADS", "ONSITE_PERSONALIZATION")
STATUS = ("ACTIVE", "INACTIVE")
AUTOMATIC_TYPES = frozenset({"FOLDER_TRAIT", "ACTIVE_AUDIENCE_TRAIT", "DATA_SOURCE_SYNCED_TRAIT"})
"""Traits that the platform makes itself; no file defines them."""
TRAIT_TYPES = ("RULE_BASED_TRAIT", "ON_BOARDED_TRAIT", "ALGO_TRAIT")
BUILT_IN_TRAIT_TYPES = {
    "User Trait": 1,
    "Site Visitor": 2,
    "Conversion": 3,
    "Delivery Event": 4,
    "Page View": 5,
    "Partner": 6,
}


@dataclass(frozen=True, slots=True)
class Field:
    """One field: ``default`` holds for a new object; ``fixed`` fields never change after creation (access C)."""

    type: FieldType
    default: Any = None
    required: bool = False
    nullable: bool = False
    fixed: bool = False
    choices: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    low: int | None = None
    high: int | None = None
    target: str = ""
    fields: Mapping[str, Field] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object: its key under a partner, its identifier, and how an entry without it is found (OP-35).

    ``other_names``: names that a field may be given under, with its own (API-199).
    ``login``: its secrets prove who somebody is, so they are kept hashed; other secrets are sealed (OP-36).
    """

    name: str
    key: str
    identifier: str
    find: tuple[str, ...]
    fields: Mapping[str, Field]
    sequence: str = ""
    first: int = 1
    ignored: frozenset[str] = frozenset()
    secrets: tuple[str, ...] = ()
    login: bool = False
    fold: bool = False
    label: str = "name"
    other_names: tuple[tuple[str, str], ...] = ()


def _text(required: bool = False, high: int | None = None, default: str | None = None, nullable: bool = False) -> Field:
    return Field("str", default=default, required=required, high=high, nullable=nullable, low=1 if required else None)


NAME = _text(required=True, high=255)
MEMO = _text(nullable=True)
CODE = _text(nullable=True, high=255)
OFF = Field("bool", default=False)
ON = Field("bool", default=True)
EMPTY = _text(default="")
STATE = Field("enum", default="ACTIVE", choices=STATUS, aliases=(("1", "ACTIVE"), ("0", "INACTIVE")))
STRINGS = Field("strs", default=())
CONTROLS = Field("enums", default=(), choices=EXPORT_CONTROLS)

PARTNER_FIELDS: dict[str, Field] = {
    "name": NAME,
    "companyName": _text(nullable=True, high=255),
    "roleBasedAccess": OFF,
    "segmentsInAnswers": OFF,
    "orgId": _text(nullable=True),
    "aliases": STRINGS,
    "dataSourceAccess": Field("refs", default=(), target="foreignSource"),
    "redirectHosts": STRINGS,
    "refererHosts": STRINGS,
}

DATA_SOURCE_FIELDS: dict[str, Field] = {
    "name": NAME,
    "description": MEMO,
    "status": STATE,
    "integrationCode": CODE,
    "type": Field("str", default="GENERAL", fixed=True),
    "idType": Field("enum", default="COOKIE", fixed=True, choices=("COOKIE", "CROSS_DEVICE", "DEVICE_ADVERTISING_ID")),
    "subIdType": Field("enum", nullable=True, fixed=True, choices=("CROSS_DEVICE_PERSON", "CROSS_DEVICE_HOUSEHOLD")),
    "inboundS2S": ON,
    "outboundS2S": OFF,
    "useAudienceManagerVisitorID": OFF,
    "marketingCloudVisitorIdVersion": Field("int", default=0, low=0),
    "masterDataSourceIdProvider": Field("bool"),
    "uniqueTraitIntegrationCodes": OFF,
    "uniqueSegmentIntegrationCodes": OFF,
    "allowDataSharing": OFF,
    "allowDeviceGraphSharing": OFF,
    "linkNamespace": OFF,
    "dataExportRestrictions": CONTROLS,
    "supportsAuthenticatedProfile": Field("bool"),
    "authenticatedProfileName": Field("str", high=255),
    "customerProfileDataRetention": Field("int", nullable=True, low=2592000, high=155520000),
    "samplingEnabled": OFF,
    "redirectHosts": STRINGS,
    "defaultAuthState": Field("int", default=0, low=0, high=2),
    "hashedEmails": OFF,
    "piiGuard": Field("enum", default="ids", choices=("off", "ids", "ids_and_values")),
    "inboundMailingList": STRINGS,
    "expectedArrival": Field("any", nullable=True),
}

FOLDER_FIELDS: dict[str, Field] = {"name": NAME}

TRAIT_FIELDS: dict[str, Field] = {
    "traitType": Field(
        "enum", required=True, fixed=True, choices=TRAIT_TYPES, aliases=(("ON_BOARD_TRAIT", "ON_BOARDED_TRAIT"),)
    ),
    "name": NAME,
    "dataSourceId": Field("ref", required=True, target="dataSource"),
    "description": MEMO,
    "comments": MEMO,
    "integrationCode": CODE,
    "folderId": Field("ref", default=0, target="traitFolder"),
    "traitRule": MEMO,
    "ttl": Field("int", default=120, low=0, high=3650),
    "status": STATE,
    "type": Field("ref", default=0, target="customerTraitType"),
    "categoryId": Field("int", default=0, low=0),
    "algoModelId": Field("int", nullable=True),
    "thresholdType": Field("enum", nullable=True, choices=("REACH", "ACCURACY")),
    "thresholdValue": Field("number", nullable=True),
    "accuracy": Field("number", nullable=True),
    "backfillStatus": Field("str", default="NONE"),
}

SEGMENT_FIELDS: dict[str, Field] = {
    "name": NAME,
    "dataSourceId": Field("ref", required=True, target="dataSource"),
    "segmentRule": Field("str", required=True, low=1),
    "folderId": Field("ref", default=0, target="segmentFolder"),
    "mergeRuleDataSourceId": Field("ref", default=0, target="mergeRule"),
    "description": MEMO,
    "integrationCode": CODE,
    "status": Field("enum", default="ACTIVE", choices=STATUS, aliases=(("PAUSED", "INACTIVE"),)),
    "startTime": Field("int", nullable=True),
    "legacyId": Field("int", nullable=True),
}

MERGE_RULE_FIELDS: dict[str, Field] = {
    "name": NAME,
    "description": MEMO,
    "isDefault": OFF,
    "authenticatedOption": Field(
        "enum",
        required=True,
        choices=("NO_CROSS_DEVICE", "CURRENT_AUTHENTICATED", "LAST_AUTHENTICATED", "ALL_CROSS_DEVICE"),
    ),
    "dataSourceIds": Field("refs", default=(), target="dataSource"),
    "deviceOption": Field(
        "enum", default="NO_DEVICE", choices=("NO_DEVICE", "DEVICE", "PROFILE_LINK", "EXTERNAL_GRAPH")
    ),
    "dataExportRestrictions": CONTROLS,
}

DERIVED_SIGNAL_FIELDS: dict[str, Field] = {
    name: _text(required=True, high=228) for name in ("sourceKey", "sourceValue", "targetKey", "targetValue")
} | {"integrationCode": CODE}

SERVER_FIELDS_ALL: dict[str, Field] = {
    "name": NAME,
    "type": Field("enum", required=True, fixed=True, choices=("S3", "SFTP", "FTPS", "FTP", "LOCAL", "HTTP")),
    "syncTypeText": MEMO,
    "bucket": MEMO,
    "directory": EMPTY,
    "region": MEMO,
    "endpoint": MEMO,
    "accessKeyId": MEMO,
    "roleArn": MEMO,
    "serverSideEncryption": ON,
    "host": MEMO,
    "port": Field("int", nullable=True, low=1, high=65535),
    "remotePath": EMPTY,
    "user": MEMO,
    "hostKey": MEMO,
    "tmpRename": ON,
    "filenameSuffix": EMPTY,
    "moveToWhenFinished": EMPTY,
    "allowInsecure": OFF,
    "scheme": Field("enum", default="https", choices=("https", "http")),
    "urlPrefix": EMPTY,
    "maxUsersPerRequest": Field("int", default=10, low=1),
    "signatures": Field("list", default=(), high=2, fields={"header": NAME, "algorithm": NAME}, secrets=("key",)),
    "tokenUrl": MEMO,
}

FORMAT_FIELDS: dict[str, Field] = {
    "name": NAME,
    "type": Field("enum", default="FILE", fixed=True, choices=("FILE", "HTTP")),
    "fileName": MEMO,
    "header": EMPTY,
    "row": MEMO,
    "compression": Field("str", default="none"),
    "maxFileSize": Field("int", nullable=True, low=1, high=10**12),
    "timestampDigits": Field("int", default=13, low=10, high=13),
    "skipEmpty": OFF,
    "infoReceipt": ON,
    "md5Receipt": OFF,
    "method": Field("enum", default="POST", choices=("POST", "GET")),
    "contentType": MEMO,
    "template": MEMO,
}

MAPPING_FIELDS: dict[str, Field] = {
    "sid": Field("ref", required=True, fixed=True, target="element"),
    "traitType": Field("enum", default="SEGMENT", fixed=True, choices=("SEGMENT", "TRAIT")),
    "startDate": Field("date", nullable=True),
    "endDate": Field("date", nullable=True),
    "url": MEMO,
    "secureUrl": MEMO,
    "traitAlias": MEMO,
    "valueAlias": MEMO,
    "priority": Field("int", nullable=True, low=1),
}

DESTINATION_FIELDS: dict[str, Field] = {
    "destinationType": Field(
        "enum",
        required=True,
        fixed=True,
        choices=(
            "PUSH",
            "ADS",
            "S2S",
            "ANALYTICS",
            "BULK_TRAIT",
            "BULK_SEGMENT",
            "BULK_ID",
        ),
    ),
    "name": NAME,
    "description": EMPTY,
    "dataSourceId": Field("ref", nullable=True, target="dataSource"),
    "startDate": Field("date", nullable=True),
    "endDate": Field("date", nullable=True),
    "status": STATE,
    "domainRestrictions": Field("enum", default="ALL_DOMAINS", choices=("ALL_DOMAINS", "INCLUSION", "EXCLUSION")),
    "siteIDs": Field("refs", default=(), target="partnerSite"),
    "devicePlatform": Field("str", default=None, nullable=True),
    "mappingAutoFiller": Field(
        "enum",
        default="NONE",
        choices=("NONE", "SID", "IC"),
        aliases=(("SEGMENT_ID", "SID"), ("INTEGRATION_CODE", "IC")),
    ),
    "mapAllSegments": OFF,
    "dataExportLabels": Field("strs", default=()),
    "serializationEnabled": OFF,
    "urlFormatString": MEMO,
    "secureUrlFormatString": MEMO,
    "delimiter": MEMO,
    "adServerTypeID": Field("int", default=1, fixed=True),
    "cookieName": MEMO,
    "cnameDomain": EMPTY,
    "maxSize": Field("int", default=2048, low=0),
    "ttl": Field("int", default=0, low=0),
    "formatType": Field("enum", nullable=True, choices=("SINGLE_KEY", "KEY_VALUE")),
    "singleKey": MEMO,
    "keySeparator": MEMO,
    "valueSeparator": MEMO,
    "serializationSeparator": MEMO,
    "userIdKey": Field("ref", nullable=True, fixed=True, target="anySource"),
    "foreignAccountId": EMPTY,
    "realTime": OFF,
    "batch": ON,
    "serverId": Field("ref", nullable=True, target="destinationServer"),
    "formatId": Field("ref", nullable=True, target="destinationFormat"),
    "realTimeServerId": Field("ref", nullable=True, target="destinationServer"),
    "realTimeFormatId": Field("ref", nullable=True, target="destinationFormat"),
    "inFileDataSources": Field("refs", default=(), target="anySource", choices=("all_first_party",)),
    "unsegment": ON,
    "acceptsDeviceIds": ON,
    "syncType": Field("str", default="lifetime"),
    "syncLookback": Field("any", nullable=True),
    "incrementalSchedule": Field("str", default="24h"),
    "fullSchedule": Field("str", default="never"),
    "iterContent": Field("str", default="changes"),
    "sampleRateDenominator": Field("int", default=1, low=1),
    "mappings": Field("list", default=(), fields=MAPPING_FIELDS),
}

USER_FIELDS: dict[str, Field] = {
    "username": NAME,
    "status": Field("enum", default="ACTIVE", choices=("ACTIVE", "INACTIVE", "LOCKED")),
    "firstName": NAME,
    "lastName": NAME,
    "email": NAME,
    "title": MEMO,
    "phoneNumber": MEMO,
    "groups": Field("refs", default=(), target="group"),
    "isAdmin": OFF,
}

PERMISSION_FIELDS: dict[str, Field] = {
    "objectType": Field(
        "enum", required=True, choices=("SEGMENT", "TRAIT", "DESTINATION", "DERIVED_SIGNALS", "TAGS", "GENERAL")
    ),
    "objectId": Field("int", required=True, low=0),
    "permissions": STRINGS,
}

GROUP_FIELDS: dict[str, Field] = {
    "name": NAME,
    "description": MEMO,
    "wildcards": STRINGS,
    "permissions": Field("list", default=(), fields=PERMISSION_FIELDS),
}

CLIENT_FIELDS: dict[str, Field] = {
    "clientId": NAME,
    "grants": STRINGS,
    "refreshTokens": OFF,
    "accessTokenLife": Field("int", default=3600, low=1, high=86400),
    "redirectUris": STRINGS,
}

DROPOFF_USER_FIELDS: dict[str, Field] = {"name": NAME, "publicKeys": STRINGS}

KINDS: tuple[Kind, ...] = (
    Kind(
        "dataSource",
        "dataSources",
        "dataSourceId",
        ("name",),
        DATA_SOURCE_FIELDS,
        sequence="dpid",
        ignored=frozenset(
            {
                "synced_devices",
                "evicted_mappings",
                "deviceGraph",
                "deviceGraphName",
                "samplingStartTime",
                "samplingEndTime",
                "customNamespaceId",
                "customNamespaceCode",
                "containerIds",
            }
        ),
    ),
    Kind("traitFolder", "folders.traits", "folderId", ("path",), FOLDER_FIELDS, sequence="folder"),
    Kind("segmentFolder", "folders.segments", "folderId", ("path",), FOLDER_FIELDS, sequence="segment_folder"),
    Kind(
        "customerTraitType",
        "customerTraitTypes",
        "pixelType",
        ("name",),
        {"name": NAME, "description": MEMO},
        sequence="trait_type",
        first=200,
    ),
    Kind(
        "trait",
        "traits",
        "sid",
        ("name",),
        TRAIT_FIELDS,
        sequence="sid",
        ignored=frozenset(
            {"population", "traitRuleVersion", "url", "traits", "mappableTraits", "codeViewOnly", "expressionTree"}
        ),
    ),
    Kind(
        "mergeRule",
        "mergeRules",
        "mergeRuleDataSourceId",
        ("name",),
        MERGE_RULE_FIELDS,
        sequence="dpid",
    ),
    Kind(
        "segment",
        "segments",
        "sid",
        ("name",),
        SEGMENT_FIELDS,
        sequence="sid",
        ignored=frozenset(
            {
                "population",
                "codeViewOnly",
                "traitDataSourceIds",
                "inUse",
                "traits",
                "mappableTraits",
                "hiddenTraits",
                "expressionTree",
            }
        ),
    ),
    Kind(
        "derivedSignal",
        "derivedSignals",
        "derivedSignalId",
        ("sourceKey", "sourceValue", "targetKey", "targetValue"),
        DERIVED_SIGNAL_FIELDS,
        sequence="derived_signal",
        label="sourceKey",
    ),
    Kind(
        "partnerSite",
        "partnerSites",
        "siteId",
        ("url",),
        {"url": NAME},
        sequence="site",
        label="url",
    ),
    Kind(
        "destinationServer",
        "destinationServers",
        "serverId",
        ("name",),
        SERVER_FIELDS_ALL,
        sequence="server",
        secrets=("secretAccessKey", "password", "privateKey", "credentials"),
    ),
    Kind("destinationFormat", "destinationFormats", "formatId", ("name",), FORMAT_FIELDS, sequence="format"),
    Kind(
        "destination",
        "destinations",
        "destinationId",
        ("name",),
        DESTINATION_FIELDS,
        sequence="destination",
        other_names=(("targetDataSource", "dataSourceId"),),
        ignored=frozenset({"tagType", "transferMethod", "uparamEnabled", "masterDataSourceIdType"}),
    ),
    Kind(
        "group",
        "groups",
        "groupId",
        ("name",),
        GROUP_FIELDS,
        sequence="group",
        ignored=frozenset({"id", "membershipCount", "wildcardPermissions", "users"}),
    ),
    Kind(
        "user",
        "users",
        "userId",
        ("username",),
        USER_FIELDS,
        sequence="user",
        secrets=("password",),
        login=True,
        ignored=frozenset({"uid", "admin", "companyName"}),
        label="username",
    ),
    Kind(
        "apiClient",
        "apiClients",
        "",
        ("clientId",),
        CLIENT_FIELDS,
        sequence="api_client",
        secrets=("clientSecret",),
        login=True,
        label="clientId",
    ),
    Kind(
        "dropoffUser",
        "dropoff.users",
        "",
        ("name",),
        DROPOFF_USER_FIELDS,
        sequence="dropoff_user",
        secrets=("password",),
        login=True,
    ),
)
"""Every kind under a partner, in the order in which references can be resolved and objects are shown."""

PARTNER = Kind("partner", "partners", "pid", ("name",), PARTNER_FIELDS, sequence="pid")

BY_NAME: dict[str, Kind] = {kind.name: kind for kind in (PARTNER, *KINDS)}

BY_KEY: dict[str, Kind] = {kind.key: kind for kind in (PARTNER, *KINDS)}

FOLDER_TREES = {"traitFolder": "traits", "segmentFolder": "segments"}


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a workspace file (OP-32)."""
    partner = _object(PARTNER)
    groups: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        entries = {"type": "array", "items": _object(kind)}
        head, _, tail = kind.key.partition(".")
        if tail:
            groups.setdefault(head, {})[tail] = entries
        else:
            partner["properties"][kind.key] = entries
    for head, lists in groups.items():
        partner["properties"][head] = {"type": "object", "properties": lists, "additionalProperties": False}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "OpenAudience workspace",
        "type": "object",
        "properties": {"partners": {"type": "array", "items": partner}},
        "required": ["partners"],
        "additionalProperties": False,
    }


def _object(kind: Kind) -> dict[str, Any]:
    properties: dict[str, Any] = {name: _property(field) for name, field in kind.fields.items()}
    properties |= {other: properties[name] for other, name in kind.other_names}
    if kind.identifier:
        properties[kind.identifier] = {"type": "integer", "minimum": 1, "maximum": NUMBER_MAX}
    if kind.name in FOLDER_TREES:
        properties["parentFolderId"] = {"type": ["integer", "string"]}
        properties["path"] = {"type": "string"}
        properties["subFolders"] = {"type": "array"}
    for name in _ignored(kind):
        properties.setdefault(name, {})
    schema = _closed(properties, kind.secrets)
    if kind.name in ("trait", "segment"):
        # Counts that the API adds to its answers (uniques30Day, instantUniques7Day …).
        schema["patternProperties"] = {METRICS: {}}
    return schema


METRICS = r"^(uniques|count|populationUniques|instantUniques|totalUniques)(1Day|7Day|14Day|30Day|60Day|90Day|Lifetime)$"


def _ignored(kind: Kind) -> list[str]:
    return sorted(kind.ignored | SERVER_FIELDS)


def _closed(properties: dict[str, Any], secrets: tuple[str, ...]) -> dict[str, Any]:
    for secret in secrets:
        for way in ("env", "file"):
            # Empty text takes the secret away; null, as anywhere, keeps it (API-414).
            properties[f"{secret}_{way}"] = {"type": ["string", "null"]}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _property(field: Field) -> dict[str, Any]:
    schema: dict[str, Any]
    match field.type:
        case "str":
            schema = {"type": "string"}
            if field.low is not None:
                schema["minLength"] = field.low
            if field.high is not None:
                schema["maxLength"] = field.high
        case "int" | "number":
            schema = {"type": "integer" if field.type == "int" else "number"}
            if field.low is not None:
                schema["minimum"] = field.low
            if field.high is not None:
                schema["maximum"] = field.high
        case "bool":
            schema = {"type": "boolean"}
        case "enum":
            # Any case is read; completion offers the API's spelling.
            schema = {"anyOf": [{"enum": list(field.choices)}, {"type": ["string", "integer", "boolean"]}]}
        case "enums":
            schema = {"type": "array", "items": {"anyOf": [{"enum": list(field.choices)}, {"type": "string"}]}}
        case "strs":
            schema = {"type": "array", "items": {"type": "string"}}
        case "ref":
            schema = {"type": ["integer", "string"]}
        case "refs":
            schema = {"type": "array", "items": {"type": ["integer", "string"]}}
            if field.choices:
                schema = {"anyOf": [{"enum": list(field.choices)}, schema]}
        case "date":
            schema = {"type": ["string", "integer"]}
        case "list":
            item = _closed(
                {name: _property(inner) for name, inner in field.fields.items()}
                | {name: {} for name in sorted(LIST_IGNORED)},
                field.secrets,
            )
            schema = {"type": "array", "items": item}
            if field.high is not None:
                schema["maxItems"] = field.high
        case _:
            schema = {}
    # JSON of the API may hold null where a value is not known; it means: keep (API-45).
    return {"anyOf": [schema, {"type": "null"}]} if schema else schema


LIST_IGNORED = frozenset(
    {
        "mappingId",
        "destinationMappingId",
        "destinationId",
        "elementStatus",
        "elementName",
        "elementDescription",
        "traitValue",
        "tagCode",
        "secureTagCode",
        "activeSince",
    }
)
"""Server-written keys of entries nested in an object (mappings)."""
