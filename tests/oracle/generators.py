"""Seeded random workspaces, files and histories with small pools of IDs, so that matches and mistakes happen.

What the specification leaves open is not generated: a difference found is a difference in meaning.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any

from oracle.lines import GLOBAL, Refused, read_name
from oracle.model import File, Limits, Model, expiry
from oracle.rules import Rule
from oracle.walkthroughs import onboarded

PARTNER = "acme"
COOKIE, SECOND_COOKIE, OWN_DAID, UUIDS, ECIDS, INACTIVE = 101, 102, 103, 104, 105, 106
PEOPLE, HOMES = 201, 202
FOREIGN, SHARED = 301, 302
GAID, IDFA, MAID = 20914, 20915, 389146
UNKNOWN_DPID, MISSING_SID, ONLINE_SID = 999, 99_999, 500
DATA_FORMS: tuple[tuple[str, int, int | None], ...] = (
    *[("data", COOKIE, None)] * 6,
    *[("data", PEOPLE, None)] * 4,
    ("data", COOKIE, PEOPLE),
    ("data", COOKIE, SHARED),
    ("data", SECOND_COOKIE, None),
    ("data", OWN_DAID, COOKIE),
    ("data", HOMES, COOKIE),
    ("data", HOMES, None),
    ("data", 0, COOKIE),
    ("data", UUIDS, COOKIE),
    ("data", ECIDS, COOKIE),
    ("data", GAID, COOKIE),
    ("data", GAID, PEOPLE),
    ("data", IDFA, COOKIE),
    ("data", MAID, COOKIE),
    ("odc", COOKIE, None),
    ("odc", IDFA, COOKIE),
)
SYNC_FORMS: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("adobe_id", (0, COOKIE)),
    ("adobe_id", (0, COOKIE)),
    ("adobe_id", (0, PEOPLE)),
    ("adobe_id", (0, COOKIE, PEOPLE)),
    ("adobe_id", (0, OWN_DAID, HOMES)),
    ("adobe_id", (0, SECOND_COOKIE)),
    ("adobe_id", (0, GAID)),
    ("adobe_id", (GAID, COOKIE)),
    ("adobe_id", (IDFA, PEOPLE)),
    ("adobe_id", (COOKIE, PEOPLE)),
    ("adobe_id", (PEOPLE, HOMES)),
    ("c2c_id", (HOMES, PEOPLE)),
)
COOKIE_SOURCES = {COOKIE, SECOND_COOKIE, OWN_DAID}
KEYS = ("color", "size", "plan", "sku", "note", "123price", "Größe")
VALUES = (
    "red",
    "RED",
    "blue",
    "40",
    "41.5",
    "-3",
    "premium",
    "Pre-paid",
    "ab77",
    "AB12",
    "used red car",
    "",
    "É",
    "x=y",
)
WORDS = ("10", "20", "30", "'word'")
NUMBERS = ("40", "-3", "41.5", '"0"')
FORMS = ("{k}={v}", '"{k}"="{v}"', '"{k}"={v}', '{k}="{v}"', " {k} = {v} ", "“{k}”=“{v}”", '" {k} "=" {v} "')
ODD = ("d_sid=abc", "d_unsid=", "=lost", '"note"="big, red"', "a\\b=c", "x:0")
NAMED = (
    'contains "re"',
    'startswith "pre"',
    'endswith "car"',
    'matcheswords "red car"',
    r'matchesregex "ab\d+"',
    r'matchesregex "(?i)[a-c]+[0-9]{1,2}"',
    'matchesregex "re|blue"',
)


@dataclass
class World:
    """A random workspace with its limits."""

    workspace: dict[str, Any]
    limits: Limits
    tight: bool
    """Cookie limits are tight: then one cookie source only is used, as all of them share the limit of a device."""

    @property
    def sids(self) -> list[int]:
        return [trait["sid"] for partner in self.workspace["partners"] for trait in partner["traits"]]

    def sids_of(self, dpid: int) -> list[int]:
        """The onboarded traits of one data source."""
        traits = [trait for partner in self.workspace["partners"] for trait in partner["traits"]]
        return [trait["sid"] for trait in traits if trait["dataSourceId"] == dpid and trait["sid"] != ONLINE_SID]


def random_world(rng: Random) -> World:
    tight = rng.random() < 0.4
    small = rng.random() < 0.7
    limits = Limits(
        devices_per_customer=rng.randint(1, 3) if small else 100,
        customers_per_device=rng.randint(1, 3) if small else 10,
        cookies=rng.randint(1, 3) if tight else 1000,
        emails_per_customer=rng.randint(1, 2) if small else 10,
    )
    guard = rng.choice(["off", "ids", "ids_and_values"])
    sources: list[dict[str, Any]] = [
        {"dataSourceId": COOKIE, "name": "Site", "idType": "COOKIE", "piiGuard": guard},
        {"dataSourceId": SECOND_COOKIE, "name": "Shop", "idType": "COOKIE"},
        {"dataSourceId": OWN_DAID, "name": "App", "idType": "DEVICE_ADVERTISING_ID"},
        {"dataSourceId": UUIDS, "name": "Our devices", "useAudienceManagerVisitorID": True},
        {"dataSourceId": ECIDS, "name": "Our visitors", "marketingCloudVisitorIdVersion": 1},
        {"dataSourceId": INACTIVE, "name": "Old", "idType": "COOKIE", "status": "INACTIVE"},
        {"dataSourceId": PEOPLE, "name": "People", "idType": "CROSS_DEVICE", "integrationCode": "people"},
        {"dataSourceId": HOMES, "name": "Homes", "idType": "CROSS_DEVICE", "integrationCode": "homes"},
    ]
    others: list[dict[str, Any]] = [
        {"dataSourceId": FOREIGN, "name": "Private", "idType": "COOKIE"},
        {"dataSourceId": SHARED, "name": "Shared", "idType": "COOKIE"},
    ]
    traits = [onboarded(ONLINE_SID, COOKIE, 'color == "red"', traitType="RULE_BASED_TRAIT")]
    shared: list[dict[str, Any]] = []
    sid = ONLINE_SID
    for dpid in (COOKIE, SECOND_COOKIE, PEOPLE, HOMES, SHARED):
        for _ in range(rng.randint(2, 5)):
            sid += 1
            simple = f'ic == "{rng.choice(WORDS[:3])}"'
            rule = rng.choice([simple, random_rule(rng), random_rule(rng), None])
            status = "INACTIVE" if rng.random() < 0.12 else "ACTIVE"
            trait = onboarded(sid, dpid, rule, ttl=rng.choice([0, 1, 2, 5, 120]), status=status)
            (shared if dpid == SHARED else traits).append(trait)
    partners = [
        {"pid": 1, "name": PARTNER, "dataSourceAccess": [SHARED], "dataSources": sources, "traits": traits},
        {"pid": 2, "name": "rival", "dataSources": others, "traits": shared},
    ]
    return World({"partners": partners}, limits, tight)


def random_rule(rng: Random) -> str:
    """A rule of random form that an empty record does not satisfy (QL-411)."""
    while True:
        text = _either(rng, 2)
        if not Rule(text).holds([]):
            return text


def _either(rng: Random, depth: int) -> str:
    return f" {rng.choice(['OR', 'or'])} ".join(_both(rng, depth) for _ in range(rng.choice([1, 1, 2])))


def _both(rng: Random, depth: int) -> str:
    parts = [_unary(rng, depth) for _ in range(rng.choice([1, 1, 2]))]
    text = parts[0]
    for part in parts[1:]:
        text += (" " if part.startswith("NOT ") and rng.random() < 0.4 else " AND ") + part
    return text


def _unary(rng: Random, depth: int) -> str:
    draw = rng.random()
    if depth and draw < 0.15:
        return f"NOT {_unary(rng, depth - 1)}"
    if depth and draw < 0.4:
        return f"({_either(rng, depth - 1)})"
    if draw < 0.65:
        return f"ic {rng.choice(['==', '=', '!='])} {rng.choice(WORDS)}"
    key = rng.choice(["color", "size", "plan", "sku", "note", "123price", '"Größe"', "'COLOR'"])
    if draw < 0.75:
        return f"{key} {rng.choice(['>', '<', '>=', '=>', '<='])} {rng.choice(NUMBERS)}"
    if draw < 0.85:
        return f"{key} {rng.choice(NAMED)}"
    return f'{key} {rng.choice(["==", "=", "!="])} "{rng.choice(["red", "blue", "Premium", "é", "", "40", "x=y"])}"'


# --- lines ---------------------------------------------------------------------------------------------------------

UUID_POOL = [str(n) * 38 for n in range(1, 7)] + ["0" * 37 + "7"]
HEX_POOL = [f"{n}aaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeee{n}" for n in range(1, 6)]
EMAIL_POOL = [f"{n:x}" * 64 for n in range(10, 14)]
POOLS: dict[int, list[str]] = {
    0: UUID_POOL,
    UUIDS: UUID_POOL,
    ECIDS: UUID_POOL,
    GAID: HEX_POOL,
    IDFA: [text.upper() for text in HEX_POOL],
    MAID: ["ABCdef123", "Z9", "a-b-c", "01234567890ab"],
    COOKIE: ["K1", "K2", "K3", "Köln", "007", "k 5", "K1/x", "k3"],
    SECOND_COOKIE: ["S1", "S2", "S3", "S1~"],
    OWN_DAID: ["D1", "D2", HEX_POOL[0]],
    PEOPLE: ["P1", "P2", "P3", "p1", "Ünal"],
    HOMES: ["H1", "H2", "H3"],
}
STRANGERS = ["k1", "K3 x", "7", "KÖLN", "s2", "stranger", "00K2", "d1"]


def random_id(rng: Random, dpid: int) -> str:
    if dpid in COOKIE_SOURCES and rng.random() < 0.15:
        return rng.choice(STRANGERS)
    if rng.random() < 0.6:
        return rng.choice(POOLS[dpid][:3])
    if dpid == 0 and rng.random() < 0.1:
        return "".join(rng.choice("0123456789") for _ in range(38))
    return rng.choice(POOLS[dpid])


def bad_id(rng: Random, dpid: int, *, personal: bool = True) -> str:
    """An ID with a mistake of its own; with ``personal`` it may be personal data."""
    good = random_id(rng, dpid)
    common = ["", f" {good}", f"{good} ", f"\u00a0{good}", f"{good}\u3000", f"{good[:1]}\x01{good[1:]}", f"a\x7f{good}"]
    common += ["x" * 1025, "ü" * 513, "q" * 1024]
    if personal:
        common += ["ana@example.com", "+49 170 1234567", "+1 (202) 555-0143"]
    if dpid in (0, UUIDS, ECIDS):
        common += [good[:-1], good + "1", "x" + good[1:], "abc", "1.5", "٣" * 38] * 2
    elif dpid in GLOBAL:
        common += ["0" * 8 + "-0000-0000-0000-" + "0" * 12, "000", good.swapcase(), good[:-1], good + "é", "a_b"] * 2
    else:
        common += ["a:b", "a%3Ab", "a%3ab", ":", "K1@", "+1234567", "+1234567890123456"] * 2
    return rng.choice(common)


def random_signal(rng: Random, world: World, target: int) -> str:
    draw = rng.random()
    own = world.sids_of(target)
    sid = rng.choice(own) if own and rng.random() < 0.75 else rng.choice([*world.sids, MISSING_SID])
    if draw < 0.25:
        return rng.choice(["10", "20", "30", '"10"', " 20 ", "word", '"WORD"', "“20”", "40", "-10", "it's"])
    if draw < 0.4:
        return rng.choice([f"d_sid={sid}", f"D_SID={sid}", f'"d_sid"="{sid}"', f" d_sid = {sid} "])
    if draw < 0.5:
        return rng.choice([f"d_unsid={sid}", f"{sid}:0", f"{sid}:-1", f'd_unsid="{sid}"'])
    if draw < 0.54:
        return rng.choice(
            [f'"{sid}:0"', f"{sid}:1", "d_sid=abc", "d_unsid=", "=lost", '"note"="big, red"', "a\\b=c", "x:0"]
        )
    key, value = rng.choice(KEYS), rng.choice(VALUES)
    if rng.random() < 0.2:
        key = key.swapcase()
    if rng.random() < 0.1:
        key = "-" * rng.randint(1, 2) + key
    form = rng.choice(
        ["{k}={v}", '"{k}"="{v}"', '"{k}"={v}', '{k}="{v}"', " {k} = {v} ", "“{k}”=“{v}”", '" {k} "=" {v} "']
    )
    return form.format(k=key, v=value)


def random_body(rng: Random, world: World, target: int) -> str:
    signals = [random_signal(rng, world, target) for _ in range(rng.choice([1, 1, 2, 2, 3, 5]))]
    if rng.random() < 0.1:
        signals.insert(rng.randrange(len(signals) + 1), rng.choice(["", " "]))
    return ",".join(signals)


def bad_body(rng: Random) -> str:
    return rng.choice(["", " ", ",", " , ,", 'color="red', "color=“red", '"', '10,"20,30'])


def random_line(rng: Random, world: World, form: str, dpid: int, target: int | None) -> bytes:
    """One line of a data file, good or not; IDs of a kind, mistakes of every code."""
    prefix = ""
    owner = target or dpid
    if form == "odc":
        own = dpid == COOKIE
        dpid = GAID if rng.random() < (0.4 if own else 0.15) else IDFA
        prefix = rng.choice(["idfa", "IDFA"] if dpid == IDFA else ["gaid", "android", "Android"]) + "\t"
        if dpid == GAID and not own:
            return f"{prefix}{random_id(rng, dpid)}\t{random_body(rng, world, owner)}".encode()
    user, body = random_id(rng, dpid), random_body(rng, world, owner)
    draw = rng.random()
    if draw < 0.8:
        pass
    elif draw < 0.86:
        user = bad_id(rng, dpid, personal=form != "odc")
    elif draw < 0.88:
        body = bad_body(rng)
    elif draw < 0.89:
        user, body = bad_id(rng, dpid, personal=form != "odc"), bad_body(rng)
    elif draw < 0.91 and target is None:
        body += rng.choice([",mail=ana@example.com", ',"tel"="+49 170 1234567"'])
    elif draw < 0.94:
        return rng.choice(
            [
                f"{prefix}{user}{body}".replace("\t", " ").encode(),
                f"{prefix}{user}\t{body}\t".encode(),
                f"{prefix}\t{user}\t{body}\t{body}".encode(),
                f"{prefix}{user}\t{body}\t10\t20".encode(),
                b"   ",
                b"\t",
                b"\t\t\t",
            ]
        )
    elif draw < 0.96:
        return f"{prefix}{user}\t{body}".encode() + rng.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf"])
    elif draw < 0.98:
        return f"{prefix}{user}\t{body}\0".encode()
    elif draw < 0.985:
        return f"{prefix}{user}\t".encode() + b"y" * 102_401
    elif draw < 0.99:
        start = f"{prefix}{user}\t".encode()
        return start + b"y" * (102_400 - len(start))
    elif form == "odc":
        prefix = rng.choice(["roku\t", "\t", "idfa \t"])
    return f"{prefix}{user}\t{body}".encode()


def random_row(rng: Random, form: str, dpids: tuple[int, ...]) -> bytes:
    """One row of an ID-sync file, good or not."""
    cells = [random_id(rng, dpid) for dpid in dpids]
    if form == "c2c_id":
        cells[1] = rng.choice(EMAIL_POOL)
    draw = rng.random()
    if draw < 0.1:
        place = rng.randrange(len(cells))
        bad = bad_id(rng, dpids[place])
        cells[place] = rng.choice(["A" * 64, "ab", "g" * 64]) if form == "c2c_id" and place == 1 else bad
    elif draw < 0.13:
        cells.append("more")
    elif draw < 0.15:
        cells.pop()
    elif draw < 0.18:
        cells[-1] += rng.choice([" ", "\t"])
    row = "\t".join(cells).encode()
    if 0.18 <= draw < 0.2:
        row += rng.choice([b"\xff", b"\0"])
    return row or b" "


def encoded(rng: Random, lines: list[bytes], gz: bool) -> bytes:
    """Lines as a file: line ends of both kinds, blank lines, a byte-order mark, gzip in several members."""
    end = rng.choice([b"\n", b"\n", b"\r\n"])
    data = b"\xef\xbb\xbf" if rng.random() < 0.1 else b""
    for number, line in enumerate(lines):
        if rng.random() < 0.05:
            data += rng.choice([b"\n", b"\r\n"])
        data += line
        if number < len(lines) - 1 or rng.random() < 0.7:
            data += end
    if not gz:
        return data
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randint(0, 2)))
    parts = [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return b"".join(gzip.compress(part, mtime=0) for part in parts)


# --- files ---------------------------------------------------------------------------------------------------------


def random_lines(rng: Random, world: World, form: str, dpids: tuple[int, ...], target: int | None) -> list[bytes]:
    if form in ("adobe_id", "c2c_id"):
        return [random_row(rng, form, dpids) for _ in range(rng.randint(1, 8))]
    lines = [random_line(rng, world, form, dpids[0], target) for _ in range(rng.randint(1, 12))]
    if rng.random() < 0.04 and form == "data":
        user = random_id(rng, dpids[0])
        many = [
            f"{user}\t{random_signal(rng, world, target or dpids[0]).replace(chr(34), '')}x".encode() for _ in range(5)
        ]
        lines += [rng.choice(many) for _ in range(rng.randint(198, 206))]
    return lines


@dataclass
class FileMaker:
    """Makes files with names that follow each other in time."""

    rng: Random
    world: World
    timestamp: int = 1_770_000_000
    batches: list[tuple[str, str, int, int | None, int]] = field(default_factory=list)

    def stamp(self) -> int:
        self.timestamp += self.rng.randint(1, 5000)
        if self.rng.random() < 0.08:
            return self.timestamp - self.rng.randint(1, 20_000)
        return self.timestamp

    def usable(self, *dpids: int) -> bool:
        return not self.world.tight or not {SECOND_COOKIE, OWN_DAID} & set(dpids)

    def sync(self) -> tuple[str, bytes]:
        rng = self.rng
        form, dpids = rng.choice([entry for entry in SYNC_FORMS if self.usable(*entry[1])])
        name = f"{form}_{'_'.join(map(str, dpids))}_{self.stamp()}.sync" + rng.choice(["", "", ".1", ".02"])
        return self._finish(name, random_lines(rng, self.world, form, dpids, None))

    def data(self) -> tuple[str, bytes]:
        rng = self.rng
        if self.batches and rng.random() < 0.3:
            whole, form, dpid, target, split = rng.choice(self.batches[-3:])
            self.batches = [entry for entry in self.batches if entry[0] != whole]
        else:
            form, dpid, target = rng.choice(DATA_FORMS)
            ids = ("odc_" if form == "odc" else "") + str(dpid) + (f"_{target}" if target else "")
            stamp = self.stamp() if rng.random() < 0.97 else 999_000_000 - rng.randint(0, 9_999)
            whole, split = f"ftp_dpm_{ids}_{stamp}" + rng.choice([".sync", ".overwrite", ".overwrite"]), 0
        if split == 0 and rng.random() < 0.5:
            name = whole
        else:
            split += 1
            name = f"{whole}.{split}"
        if ".overwrite" in whole or rng.random() < 0.3:
            self.batches.append((whole, form, dpid, target, split + (split == 0)))
        return self._finish(name, random_lines(rng, self.world, form, (dpid,), target))

    def first(self) -> list[tuple[str, bytes]]:
        """ID-sync files of good rows, for a start."""
        rows = [f"{device}\t{user}" for device in POOLS[0][:4] for user in self.rng.sample(POOLS[COOKIE][:4], 2)]
        people = [f"{device}\t{user}" for device in POOLS[0][:4] for user in self.rng.sample(POOLS[PEOPLE][:4], 1)]
        return [
            (f"adobe_id_0_{COOKIE}_{self.stamp()}.sync", "\n".join(rows).encode()),
            (f"adobe_id_0_{PEOPLE}_{self.stamp()}.sync", "\n".join(people).encode()),
        ]

    def again(self, name: str) -> tuple[str, bytes]:
        """Other content under the same name."""
        read = read_name(name)
        lines = random_lines(self.rng, self.world, read.form, read.dpids, read.target)
        return name, encoded(self.rng, lines, read.gz)

    def _finish(self, name: str, lines: list[bytes]) -> tuple[str, bytes]:
        gz = self.rng.random() < 0.25
        return name + (".gz" if gz else ""), encoded(self.rng, lines, gz)

    def refused(self) -> tuple[str, bytes]:
        """A file that is refused as a whole, for one of the reasons of IN-87."""
        rng, stamp = self.rng, self.stamp()
        good = b"K1\t10\n"
        packed = gzip.compress(good * 50, mtime=0)
        choices: list[Callable[[], tuple[str, bytes]]] = [
            lambda: (f"ftp_dpm_{COOKIE}_{stamp}", good),
            lambda: (f"FTP_dpm_{COOKIE}_{stamp}.sync", good),
            lambda: (f"ftp_dpm_{COOKIE}_{stamp}.sync.gz.1", packed),
            lambda: (f"ftp_dpm_{COOKIE}_{stamp}.sync.0", good),
            lambda: (f"ftp_dpm_-{COOKIE}_{stamp}.sync", good),
            lambda: (f"ftp_dpm_{COOKIE}_{stamp}1.sync", good),
            lambda: (f"ftp_dpm_{COOKIE}_{stamp}000.sync", good),
            lambda: (f"ftp_dpm_{COOKIE}_{stamp}.sync.zip", good),
            lambda: (f"ftp_dpm_{COOKIE}_{stamp}.sync.bz2", good),
            lambda: (f"adobe_id_{COOKIE}_{stamp}.sync", good),
            lambda: (f"adobe_id_0_{COOKIE}_{stamp}.overwrite", good),
            lambda: (f"c2c_id_{PEOPLE}_{HOMES}_{COOKIE}_{stamp}.sync", good),
            lambda: (f"ftp_dpm_{GAID}_{stamp}.sync", good),
            lambda: (f"ftp_dpm_0_{stamp}.sync", good),
            lambda: (f"ftp_dpm_odc_{IDFA}_{stamp}.sync", good),
            lambda: (f"ftp_dpm_{UNKNOWN_DPID}_{stamp}.sync", good),
            lambda: (f"ftp_dpm_{COOKIE}_{UNKNOWN_DPID}_{stamp}.sync", good),
            lambda: (f"ftp_dpm_{FOREIGN}_{stamp}.sync", good),
            lambda: (f"ftp_dpm_{COOKIE}_{FOREIGN}_{stamp}.sync", good),
            lambda: (f"ftp_dpm_{INACTIVE}_{stamp}.sync", good),
            lambda: (f"ftp_dpm_{COOKIE}_{INACTIVE}_{stamp}.overwrite", good),
            lambda: (f"ftp_dpm_{COOKIE}_0_{stamp}.sync", good),
            lambda: (f"ftp_dpm_{COOKIE}_{GAID}_{stamp}.sync", good),
            lambda: (f"adobe_id_{COOKIE}_0_{stamp}.sync", good),
            lambda: (f"adobe_id_0_{FOREIGN}_{stamp}.sync", good),
            lambda: (f"adobe_id_0_{COOKIE}_{INACTIVE}_{stamp}.sync", good),
            lambda: (f"c2c_id_{PEOPLE}_{COOKIE}_{stamp}.sync", good),
            lambda: (f"ftp_dpm_{COOKIE}_{stamp}.sync", b""),
            lambda: (f"ftp_dpm_{COOKIE}_{stamp}.sync", b"\n\r\n\n"),
            lambda: (f"ftp_dpm_{COOKIE}_{stamp}.sync.gz", gzip.compress(b"\n", mtime=0)),
            lambda: (f"ftp_dpm_{COOKIE}_{stamp}.sync", "K1\t10\n".encode("utf-16")),
            lambda: (f"ftp_dpm_{COOKIE}_{stamp}.sync.gz", good),
            lambda: (f"ftp_dpm_{COOKIE}_{stamp}.sync", packed),
            lambda: (f"ftp_dpm_{COOKIE}_{stamp}.sync.gz", packed[: rng.randint(12, len(packed) - 1)]),
            lambda: (f"ftp_dpm_{COOKIE}_{stamp}.sync.gz", packed[:-8] + b"\0\0\0\0" + packed[-4:]),
            lambda: (f"ftp_dpm_{COOKIE}_{stamp}.sync.gpg", good),
        ]
        return rng.choice(choices)()

    def mixture(self, size: int) -> list[tuple[str, bytes]]:
        """Files for one drop: names differ, files of one job have one form, a refused one has a name that is none."""
        files: dict[str, bytes] = {}
        forms: dict[tuple[Any, ...], str] = {}
        while len(files) < size:
            draw = self.rng.random()
            name, data = self.sync() if draw < 0.35 else self.data() if draw < 0.97 else self.refused()
            try:
                read = read_name(name)
            except Refused:
                files[name] = data
                continue
            key = (read.is_data, read.dpids, read.target)
            if draw >= 0.97 or forms.setdefault(key, read.form) != read.form or name in files:
                continue
            if any(other.startswith(read.batch + ".") and read_split(other) == read.split for other in files):
                continue
            files[name] = data
        return list(files.items())


def read_split(name: str) -> int | None:
    try:
        return read_name(name).split
    except Refused:
        return None


# --- histories -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One step of a history: ``drop`` files, ``undo`` or ``redo`` a job (or one file of it), ``apply`` a workspace."""

    action: str
    files: tuple[tuple[str, bytes], ...] = ()
    job: int = 0
    file: str | None = None
    workspace: dict[str, Any] | None = None


def random_steps(
    rng: Random, world: World, model: Model, jobs: list[list[File]], length: int
) -> Iterator[tuple[timedelta, Step]]:
    """Steps that make sense for what happened before; ``jobs`` and ``model`` are brought up to date between them.

    Histories stay within the undo retention.
    """
    maker = FileMaker(rng, world)
    changed: dict[int, int] = {}
    clock = timedelta()
    last_drop = timedelta()
    sent: dict[str, bytes] = {}
    yield timedelta(), Step("drop", files=tuple(maker.first()))
    for _ in range(length - 1):
        step = rng.choice(
            [timedelta(minutes=10), timedelta(hours=3), timedelta(hours=12), timedelta(days=1), timedelta(days=2)]
        )
        if clock + step > timedelta(days=26):
            step = timedelta(minutes=10)
        clock += step
        draw = rng.random()
        if draw < 0.12 and any(any(file.in_force for file in job) for job in jobs):
            yield step, _undo(rng, jobs)
        elif draw < 0.2 and (back := _flippable(jobs, model)):
            number, file = rng.choice(back)
            whole = len(jobs[number]) == 1 or all((number, other) in back for other in jobs[number])
            name = None if whole and rng.random() < 0.5 else file.name.text
            yield step, Step("redo", job=number + 1, file=name)
        elif draw < 0.26:
            workspace = _other_ttl(rng, world, model, changed, clock, last_drop)
            yield step, Step("apply", workspace=workspace)
        elif draw < 0.32 and sent:
            name = rng.choice(list(sent))
            namesakes = [file for file in model.files if file.name.text == name]
            if all(file.in_force for file in namesakes) and rng.random() < 0.5:
                yield step, Step("drop", files=(maker.again(name),))
            elif all(file.in_force for file in namesakes) or len({file.digest for file in namesakes}) == 1:
                yield step, Step("drop", files=((name, sent[name]),))
        elif draw < 0.4:
            yield step, Step("drop", files=(maker.refused(),))
        else:
            files = maker.mixture(rng.choice([1, 1, 2, 3]))
            sent.update((name, data) for name, data in files if _is_name(name))
            last_drop = clock
            yield step, Step("drop", files=tuple(files))


def _is_name(name: str) -> bool:
    try:
        read_name(name)
    except Refused:
        return False
    return True


def _undo(rng: Random, jobs: list[list[File]]) -> Step:
    number = rng.choice([number for number, job in enumerate(jobs) if any(file.in_force for file in job)])
    file = rng.choice([file for file in jobs[number] if file.in_force])
    whole = all(file.in_force for file in jobs[number]) and rng.random() < 0.6
    return Step("undo", job=number + 1, file=None if whole else file.name.text)


def _flippable(jobs: list[list[File]], model: Model) -> list[tuple[int, File]]:
    """Undone files whose like is not in force again."""
    present = {(file.name.text, file.digest) for file in model.files if file.in_force}
    return [
        (number, file)
        for number, job in enumerate(jobs)
        for file in job
        if not file.in_force and (file.name.text, file.digest) not in present
    ]


def _other_ttl(
    rng: Random, world: World, model: Model, changed: dict[int, int], clock: timedelta, last_drop: timedelta
) -> dict[str, Any]:
    """The workspace with the TTL of one trait changed, where what is expired was surely evaluated before (QL-513)."""
    partners = world.workspace["partners"]
    trait = rng.choice([entry for entry in partners[0]["traits"] if entry["traitType"] == "ON_BOARDED_TRAIT"])
    sid, old = trait["sid"], trait["ttl"]
    new = rng.choice([0, 1, 2, 5, 120])
    now = max((file.at for file in model.files), default=None)
    if now is None or clock.days - changed.get(sid, -9) < 3:
        return world.workspace
    now += clock - last_drop
    doubtful = now - (clock - last_drop) - timedelta(days=1)
    if any(doubtful < expiry(file.at, old) <= now for file in model.files):
        return world.workspace
    changed[sid] = clock.days
    trait["ttl"] = new
    return world.workspace
