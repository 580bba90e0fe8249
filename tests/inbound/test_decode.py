"""Whole-file checks: gzip, PGP, sizes, marks, long lines (IN-15, IN-16, IN-20 … IN-25)."""

from __future__ import annotations

import gzip
import io
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from openaudience.errors import FileRejected, StoreUnavailable, SystemFailure
from openaudience.inbound.decode import GpgHome, SizeLimits, opened, reject_empty
from openaudience.inbound.pgp import looks_like_pgp
from openaudience.inbound.records import split_lines

TEXT = b"".join(b"C-%d\t%d\n" % (number, random.Random(number).randrange(10**9)) for number in range(3_000))
ZIPPED = gzip.compress(TEXT)


def read(
    data: bytes, ext: str = "", size: int = 1 << 20, gpg: GpgHome | None = None, work: Path | None = None, **limits: int
) -> bytes:
    with opened(io.BytesIO(data), ext, SizeLimits(**limits), gpg, work) as stream:
        return b"".join(block.data.tobytes() for block in stream.blocks(size))


def refused(data: bytes, ext: str = "", gpg: GpgHome | None = None, **limits: int) -> str:
    with pytest.raises(FileRejected) as caught:
        read(data, ext, 1 << 20, gpg, None, **limits)
    assert caught.value.text
    assert caught.value.fix
    return caught.value.code


@pytest.mark.rule("IN-15", "IN-16")
def test_gzip() -> None:
    assert read(ZIPPED, ".gz") == TEXT
    assert read(ZIPPED + gzip.compress(b"x\ty\n") + ZIPPED, ".gz", 1_000) == TEXT + b"x\ty\n" + TEXT
    assert read(ZIPPED + b"\0" * 20, ".gz") == TEXT


@pytest.mark.rule("IN-23")
@pytest.mark.parametrize(
    "damaged",
    [
        ZIPPED[:-1],
        ZIPPED[:-9],
        ZIPPED[: len(ZIPPED) // 2],
        ZIPPED[:2],
        ZIPPED[:-6] + bytes([ZIPPED[-6] ^ 1]) + ZIPPED[-5:],
        ZIPPED[:-1] + bytes([ZIPPED[-1] ^ 1]),
        ZIPPED + b"garbage",
        ZIPPED + ZIPPED[:50],
    ],
    ids=["cut", "no-trailer", "half", "mark-only", "crc", "length", "garbage", "half-member"],
)
def test_damaged_gzip(damaged: bytes) -> None:
    assert refused(damaged, ".gz") == "corrupt_gzip"


@pytest.mark.rule("IN-16")
def test_extension_and_content_must_agree() -> None:
    assert refused(TEXT, ".gz") == "not_gzip"
    assert refused(b"\x1f", ".gz") == "not_gzip"
    assert refused(ZIPPED) == "undeclared_gzip"
    assert refused(TEXT, ".gpg") == "not_pgp"
    assert refused(ZIPPED, ".pgp") == "not_pgp"
    armored = b"-----BEGIN PGP MESSAGE-----\n\nhQGMA\n-----END PGP MESSAGE-----\n"
    assert refused(armored) == "undeclared_pgp"
    assert refused(armored, ".gz") == "not_gzip"
    assert refused(gzip.compress(ZIPPED), ".gz") == "undeclared_gzip"
    assert refused(gzip.compress(armored), ".gz") == "undeclared_pgp"


@pytest.mark.rule("IN-16")
def test_text_is_no_pgp() -> None:
    for text in ("élan\t1", "Ünal\t1", "Ánna\t1", "ñ\t1", "ÿ", "漢字\t1", "", "a", "Ҕ\t1", "ɐ\x01\t1", "҄\x01\x01"):
        assert not looks_like_pgp(text.encode()), text
    assert not looks_like_pgp("§ 12\t1".encode("latin-1"))


@pytest.mark.rule("IN-22")
def test_marks() -> None:
    assert read(b"\xef\xbb\xbfa\t1\n") == b"a\t1\n"
    assert read(gzip.compress(b"\xef\xbb\xbfa\t1\n"), ".gz") == b"a\t1\n"
    assert read(b"a\xef\xbb\xbf\t1\n") == b"a\xef\xbb\xbf\t1\n"
    for name in ("utf-16", "utf-32"):
        assert refused("a\t1\n".encode(name)) == "bad_encoding"
    for mark in (b"\xfe\xff\0a", b"\x00\x00\xfe\xff\0\0\0a", b"\xff\xfe"):
        assert refused(mark) == "bad_encoding"
    assert refused(gzip.compress("a\t1".encode("utf-16")), ".gz") == "bad_encoding"


@pytest.mark.rule("IN-20")
def test_sizes() -> None:
    assert read(TEXT, plain=len(TEXT)) == TEXT
    assert refused(TEXT, plain=len(TEXT) - 1) == "too_large"
    assert read(ZIPPED, ".gz", plain=len(TEXT), compressed=len(ZIPPED)) == TEXT
    assert refused(ZIPPED, ".gz", compressed=len(ZIPPED) - 1) == "too_large_compressed"
    assert refused(ZIPPED, ".gz", plain=len(TEXT) - 1) == "too_large"
    limits = SizeLimits()
    assert (limits.compressed, limits.plain) == (3 * 2**30, 5 * 2**30)


@pytest.mark.rule("IN-20", "OP-64")
def test_a_bomb_stops_at_the_limit() -> None:
    bomb = gzip.compress(b"a" * 50_000_000)
    read_so_far: list[int] = []
    with opened(io.BytesIO(bomb), ".gz", SizeLimits(plain=1_000_000)) as stream, pytest.raises(FileRejected) as caught:
        read_so_far.extend(len(block.data) for block in stream.blocks(100_000))
    assert caught.value.code == "too_large"
    assert sum(read_so_far) <= 1_000_000
    assert stream.plain_size <= 1_100_000


@pytest.mark.rule("IN-20")
def test_a_stream_without_a_size_is_counted() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    with opened(Pipe(ZIPPED), ".gz", SizeLimits(compressed=100)) as stream, pytest.raises(FileRejected) as caught:
        list(stream.blocks())
    assert caught.value.code == "too_large_compressed"


@pytest.mark.rule("IN-20", "IN-88")
def test_large_files_warn() -> None:
    for data, ext, limits, warned in (
        (TEXT, "", SizeLimits(warn_plain=len(TEXT)), False),
        (TEXT, "", SizeLimits(warn_plain=len(TEXT) - 1), True),
        (ZIPPED, ".gz", SizeLimits(warn_compressed=len(ZIPPED)), False),
        (ZIPPED, ".gz", SizeLimits(warn_compressed=len(ZIPPED) - 1), True),
        (ZIPPED, ".gz", SizeLimits(warn_plain=len(TEXT) - 1), True),
    ):
        with opened(io.BytesIO(data), ext, limits) as stream:
            list(stream.blocks())
        assert [warning.code for warning in stream.warnings] == ["large_file"] * warned
    assert (SizeLimits().warn_compressed, SizeLimits().warn_plain) == (300 * 2**20, 2**30)


@pytest.mark.rule("IN-21")
def test_nothing_to_read() -> None:
    for ext in ("", ".gz", ".gpg"):
        assert read(b"", ext) == b""
    assert read(gzip.compress(b""), ".gz") == b""
    assert reject_empty().code == "empty_file"


@pytest.mark.rule("IN-25")
@pytest.mark.parametrize("size", [1_000, 50_000, 102_402, 200_000, 1 << 20])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("tail", [b"", b"t" * 400_000, b"t"], ids=["ended", "long", "short"])
def test_long_lines_are_cut(size: int, end: bytes, tail: bytes) -> None:
    lengths = (5, 102_400, 0, 102_401, 300_000, 102_402, 204_805, 3)
    data = end.join(bytes([97 + place]) * length for place, length in enumerate(lengths)) + end + tail
    got = []
    with opened(io.BytesIO(data), "") as stream:
        blocks = list(stream.blocks(size))
    for block in blocks:
        assert len(block.data) <= size + 102_402 + 1
        got += [(block.first_line + number - 1, line) for number, line in split_lines(block.data.tobytes())]
    wanted = list(split_lines(data))
    assert [(number, line[:102_401]) for number, line in got] == [(number, line[:102_401]) for number, line in wanted]
    assert all(block.data[-1] == 10 for block in blocks[:-1])


@pytest.mark.rule("IN-25")
def test_blocks_cut_nothing_else() -> None:
    chance = random.Random(7)
    data = b"".join(bytes([chance.choice(b"ab\r\n\n")]) * chance.choice([1, 1, 2, 70]) for _ in range(3_000))
    for size in (1, 2, 7, 64, 1_000):
        assert read(data, size=size) == data
        with opened(io.BytesIO(data), "") as stream:
            lines = [
                (block.first_line + number - 1, line)
                for block in stream.blocks(size)
                for number, line in split_lines(block.data.tobytes())
            ]
        assert lines == list(split_lines(data))


# OpenPGP, with the real program


class Keys:
    """A home with a key, and messages made with it."""

    def __init__(self, folder: Path) -> None:
        self.home = GpgHome(folder)
        self.fingerprint = self.home.generate(algorithm="future-default")

    def gpg(self, *arguments: str, data: bytes = TEXT) -> bytes:
        command = ["gpg", "--homedir", str(self.home.path), "--batch", "--quiet", "--no-tty", "--trust-model", "always"]
        command += ["--pinentry-mode", "loopback", "--passphrase", "x" if "--symmetric" in arguments else ""]
        return subprocess.run([*command, *arguments], input=data, capture_output=True, check=True).stdout

    def encrypted(self, *arguments: str, data: bytes = TEXT) -> bytes:
        return self.gpg(*arguments, "--encrypt", "--recipient", self.fingerprint, data=data)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    made = Keys(tmp_path_factory.mktemp("gpg"))
    yield made
    made.home.close()


@pytest.mark.rule("IN-15")
def test_pgp(keys: Keys, tmp_path: Path) -> None:
    for message in (
        keys.encrypted(),
        keys.encrypted("--armor"),
        keys.encrypted("--compress-algo", "none"),
        keys.encrypted("--cipher-algo", "AES"),
        keys.encrypted("--cipher-algo", "AES192"),
        keys.encrypted("--sign"),
    ):
        assert looks_like_pgp(message[:64])
        assert refused(message) == "undeclared_pgp"
        for ext in (".pgp", ".gpg"):
            assert read(message, ext, gpg=keys.home, work=tmp_path) == TEXT
    assert list(tmp_path.iterdir()) == []
    assert read(keys.encrypted(data=b""), ".gpg", gpg=keys.home) == b""


@pytest.mark.rule("IN-15")
def test_pgp_that_is_refused(keys: Keys, tmp_path: Path) -> None:
    for cipher in ("3DES", "CAST5", "BLOWFISH", "TWOFISH", "CAMELLIA256"):
        assert refused(keys.encrypted("--cipher-algo", cipher), ".gpg", keys.home) == "pgp_cipher"
    assert refused(keys.gpg("--sign"), ".gpg", keys.home) == "pgp_cipher"
    assert refused(keys.gpg("--store"), ".gpg", keys.home) == "pgp_cipher"
    assert refused(keys.encrypted(data=ZIPPED), ".gpg", keys.home) == "pgp_compressed"
    assert refused(keys.gpg("--symmetric"), ".gpg", keys.home) == "pgp_key"
    assert refused(keys.encrypted(), ".gpg", None) == "pgp_key"
    with GpgHome(tmp_path / "other") as other:
        other.generate(algorithm="future-default")
        assert refused(keys.encrypted(), ".gpg", other) == "pgp_key"


@pytest.mark.rule("IN-23", "OP-64")
def test_damaged_pgp(keys: Keys) -> None:
    message = keys.encrypted("--compress-algo", "none")
    for place in (len(message) // 2, len(message) - 1):
        tampered = bytearray(message)
        tampered[place] ^= 1
        assert refused(bytes(tampered), ".gpg", keys.home) == "corrupt_pgp"
    assert refused(message[:-500], ".gpg", keys.home) == "corrupt_pgp"
    assert refused(message[:20], ".gpg", keys.home) == "corrupt_pgp"
    assert refused(message + message, ".gpg", keys.home) == "corrupt_pgp"
    in_session_key = bytearray(message)
    in_session_key[40] ^= 1
    assert refused(bytes(in_session_key), ".gpg", keys.home) == "corrupt_pgp"
    armored = keys.encrypted("--armor")
    assert refused(armored[:-300], ".gpg", keys.home) == "corrupt_pgp"


@pytest.mark.rule("IN-20", "OP-64")
def test_pgp_sizes(keys: Keys) -> None:
    message = keys.encrypted()
    assert read(message, ".gpg", gpg=keys.home, plain=len(TEXT), compressed=len(message)) == TEXT
    assert refused(message, ".gpg", keys.home, plain=len(TEXT) - 1) == "too_large"
    assert refused(message, ".gpg", keys.home, compressed=len(message) - 1) == "too_large_compressed"
    bomb = keys.encrypted(data=b"a\t1\n" * 5_000_000)
    assert len(bomb) < 100_000
    assert refused(bomb, ".gpg", keys.home, plain=1_000_000) == "too_large"


@pytest.mark.rule("OP-44")
def test_a_missing_agent_rejects_no_file(keys: Keys) -> None:
    message = keys.encrypted()
    keys.home.stop()
    settings = keys.home.path / "gpg.conf"
    settings.write_text("agent-program /bin/false\n")
    try:
        with pytest.raises(StoreUnavailable, match="key agent"):
            read(message, ".gpg", gpg=keys.home)
    finally:
        settings.unlink()
    assert read(message, ".gpg", gpg=keys.home) == TEXT


def test_a_home_with_a_long_path(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    home = GpgHome(deep)
    fingerprint = home.generate(algorithm="future-default")
    assert deep.stat().st_mode & 0o777 == 0o700
    assert home.fingerprints() == [fingerprint]
    assert home.public_key().startswith("-----BEGIN PGP PUBLIC KEY BLOCK-----")
    home.close()


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemFailure, match="install GnuPG"):
        GpgHome(tmp_path / "keys")
