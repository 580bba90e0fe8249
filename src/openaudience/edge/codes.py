"""What can be wrong with a call: codes, messages, and which of them stop it (section 14 of the specification)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from openaudience.identity.formats import mask, pii

SEPARATOR = "%01"
"""Between namespace and user ID, where an ID is shown."""


class Code(NamedTuple):
    """A row of the table. ``message``: a ``str.format`` text. ``stops``: the call ends there (RT-501)."""

    message: str
    stops: bool


TABLE: dict[int, Code] = {
    0: Code("Unspecified error", True),
    1: Code("Could not find config for hostname: {}", True),
    2: Code("Invalid d_orgid value (could not find a config for this org id): {}", True),
    10: Code("Unable to evaluate traits", False),
    100: Code("Could not retrieve host name for the request", True),
    101: Code("Invalid Experience Cloud id passed in {}", True),
    102: Code("Invalid AAM ID passed in request {}", True),
    104: Code("All customer IDs are invalid", True),
    109: Code("Referer {} is not allowed for partner {}", True),
    111: Code("Invalid IMS token received", False),
    171: Code("Encountered opt out tag for id {}", True),
    172: Code("Blocked cookies", True),
    173: Code("Encountered trust relationship via NAI", True),
    198: Code("Requests from this country are blocked by partner", True),
    199: Code("Requests from this country are not allowed", True),
    200: Code("Cannot read traits from profile cache for id: {}", False),
    201: Code("Cannot read device ids from profile cache for customer id: {}", False),
    202: Code("Cannot read related customer for device id: {}", False),
    203: Code("Cannot read device cluster for id: {}", False),
    204: Code("Could not perform migration since profile read failed for primary device", False),
    205: Code("Could not perform migration from {} to {}, because profile read failed for {}", False),
    300: Code("Invalid customer id {}", False),
    301: Code("Maximum number of customer ids exceeded. Maximum allowed is {}. Found is {}.", False),
    302: Code("Unauthorized customer id {}", False),
    303: Code("Blocked customer id {}", False),
    304: Code("Blocked datasource id {}", False),
    306: Code("Blocked declared device id {}", True),
    307: Code("Blocked profile operation for {}", True),
    309: Code(
        "Customer id {} was discarded because it exceeded the limit of declared customer ids per request",
        False,
    ),
    310: Code(
        "Customer id was discarded because it exceeded the limit for a given namespace. "
        "Namespace id is {}, customer id is {}.",
        False,
    ),
    311: Code("Request contains invalid parameters", True),
    312: Code("Request contains an invalid Global Device ID", False),
    313: Code("CMP ID is not present in GCL", False),
    314: Code("CMP ID is marked as deleted in GCL", False),
    315: Code("Consent string indicates no consent", True),
}
"""All codes. Those of what does not exist here have no function below: 111, 172, 173, 198, 199, 201 … 205."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An error or a warning of one call. ``mild``: a code that stops only some calls is no more than a warning here."""

    code: int
    message: str
    mild: bool = False

    @property
    def stops(self) -> bool:
        """Whether the call ends here: nothing stored, an answer of errors only."""
        return TABLE[self.code].stops and not self.mild


def x_error(faults: Iterable[Fault]) -> str:
    """The value of ``X-Error``: codes in order of first occurrence, each once (RT-511); '' without faults."""
    return ",".join(map(str, dict.fromkeys(fault.code for fault in faults)))


def as_json(faults: Iterable[Fault]) -> list[dict[str, int | str]]:
    """The field ``errors`` of JSON answers, repeats kept (RT-1208)."""
    return [{"code": fault.code, "msg": fault.message} for fault in faults]


def safe(text: str) -> str:
    """``text`` as an error text may hold it: masked when it is personal data, also between blanks (RT-1920)."""
    bare = text.strip()
    return mask(bare) if pii(bare) else text


def shown(*fields: str) -> str:
    """An ID as messages show it, from its namespace as sent and its user ID; each masked when it is personal data."""
    return SEPARATOR.join(map(safe, fields))


def _fault(code: int, *values: object, mild: bool = False) -> Fault:
    return Fault(code, TABLE[code].message.format(*values), mild)


def unspecified() -> Fault:
    return _fault(0)


def unknown_host(host: str) -> Fault:
    return _fault(1, host)


def unknown_organisation(org: str) -> Fault:
    return _fault(2, safe(org))


def traits_failed() -> Fault:
    return _fault(10)


def no_host() -> Fault:
    return _fault(100)


def invalid_ecid(ecid: str) -> Fault:
    return _fault(101, safe(ecid))


def invalid_uuid(uuid: str) -> Fault:
    return _fault(102, safe(uuid))


def no_valid_id() -> Fault:
    return _fault(104)


def referer_refused(referer: str, pid: int) -> Fault:
    return _fault(109, referer, pid)


def opted_out(shown_id: str) -> Fault:
    return _fault(171, safe(shown_id))


def profile_unreadable(shown_id: str) -> Fault:
    return _fault(200, safe(shown_id))


def invalid_id(shown_id: str) -> Fault:
    return _fault(300, shown_id)


def too_many_ids(allowed: int, found: int) -> Fault:
    return _fault(301, allowed, found)


def unauthorized_id(shown_id: str) -> Fault:
    return _fault(302, shown_id)


def blocked_id(shown_id: str) -> Fault:
    return _fault(303, shown_id)


def blocked_source(dpid: int) -> Fault:
    return _fault(304, dpid)


def blocked_device(shown_id: str, *, only: bool) -> Fault:
    """``only``: the call has no other ID, so that it stops (RT-1426)."""
    return _fault(306, safe(shown_id), mild=not only)


def blocked_profile(uuid: str, *, only: bool) -> Fault:
    """``only``: the call has no other ID, so that it stops (RT-1427)."""
    return _fault(307, uuid, mild=not only)


def discarded(shown_id: str) -> Fault:
    return _fault(309, shown_id)


def discarded_of_namespace(dpid: int, shown_id: str) -> Fault:
    return _fault(310, dpid, shown_id)


def invalid_parameters() -> Fault:
    return _fault(311)


def invalid_daid() -> Fault:
    return _fault(312)


def cmp_unknown() -> Fault:
    return _fault(313)


def cmp_deleted() -> Fault:
    return _fault(314)


def no_consent() -> Fault:
    return _fault(315)
