"""SFTP: no one in who may not, nobody out of their folder, no client brings it down (OP-62, OP-65, OP-66)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from asyncssh import FXF_READ

from dropoff.accounts import FakeAccounts
from dropoff.ftp_house import PEOPLE, until
from dropoff.hostile import hostile
from dropoff.sftp_house import SftpHouse, private_key, public_line, put
from openaudience.config import SftpSection
from openaudience.dropoff import sftp, sftp_files
from openaudience.dropoff.accounts import Account, Throttle
from openaudience.errors import StoreUnavailable

NAME = "ftp_dpm_7007_1700000000.sync"
SECRET = b"what nobody may see"
Client = asyncssh.SFTPClient


@pytest.fixture
def house(tmp_path: Path) -> Iterator[SftpHouse]:
    keys = {"acme": ("", "no key", "ssh-ed25519 AAAA", public_line("acme")), "bolt": (public_line("bolt"),)}
    house = SftpHouse(tmp_path, accounts=FakeAccounts(PEOPLE, keys))
    yield house
    house.stop()
    assert house.happened("internal_error") == []


def serves(house: SftpHouse) -> None:
    """The server is well: a partner's file gets through."""
    house.put(NAME, b"well")
    until(lambda: house.whole().get(f"acme/{NAME}") == b"well")


def login_error(house: SftpHouse, name: str, **options: Any) -> Exception:
    async def login() -> None:
        async with await house.connect(name, **options):
            pass

    with pytest.raises((asyncssh.Error, OSError)) as caught:
        asyncio.run(login())
    return caught.value


# --- logins


@pytest.mark.rule("OP-66")
@pytest.mark.parametrize(
    ("name", "password"),
    [("acme", "wrong"), ("acme", ""), ("acme", "geheim"), ("nobody", "secret"), ("", "secret"), ("root", "root")],
)
def test_a_wrong_password_opens_nothing_and_tells_nothing(house: SftpHouse, name: str, password: str) -> None:
    error = login_error(house, name, password=password)
    assert isinstance(error, asyncssh.PermissionDenied)
    assert str(error) == f"Permission denied for user {name} on host 127.0.0.1", "the same whoever it is"
    assert [fields["name"] for fields in house.happened("login_failed")] == [name]
    assert house.happened("login") == []
    serves(house)


@pytest.mark.rule("OP-66")
def test_a_login_without_proof_opens_nothing(house: SftpHouse) -> None:
    for name in ("acme", "anonymous", "ftp"):
        assert isinstance(login_error(house, name, password=None), asyncssh.PermissionDenied)
    assert house.happened("login") == []


def test_a_password_of_any_length_and_kind_is_just_wrong(house: SftpHouse) -> None:
    for password in ("x" * 100_000, "secret\0", "\N{SNOWMAN}" * 10):
        login_error(house, "acme", password=password)
    login_error(house, "acme" + "x" * 100, password="x")
    assert {fields["name"] for fields in house.happened("login_failed")} == {"acme", "acme" + "x" * 60}
    serves(house)


def test_a_public_key_opens_its_own_login_only(house: SftpHouse) -> None:
    async def home(name: str, key: str) -> list[str]:
        link = await house.connect(name, client_keys=[private_key(key)])
        client = await link.start_sftp_client()
        await put(client, f"{key}.part", b"")
        found = [str(one) for one in await client.listdir(".")]
        link.close()
        await link.wait_closed()
        return found

    assert asyncio.run(home("acme", "acme")) == ["acme.part"]
    assert asyncio.run(home("bolt", "bolt")) == ["bolt.part"]
    for name, key in (("acme", "bolt"), ("bolt", "acme"), ("acme", "stranger"), ("nobody", "acme")):
        assert isinstance(login_error(house, name, client_keys=[private_key(key)]), asyncssh.PermissionDenied)
    assert [fields["name"] for fields in house.happened("login")] == ["acme", "bolt"]
    until(lambda: len(house.happened("login_failed")) == 4)


def test_a_key_that_was_shown_but_not_proved_opens_nothing(house: SftpHouse) -> None:
    """Whoever knows the public half may ask whether it would do; but the signature is somebody else's."""
    pair = asyncssh.load_keypairs([private_key("stranger")])[0]
    pair.public_data = private_key("acme").public_data
    login_error(house, "acme", client_keys=[pair])
    assert house.happened("login") == []


@pytest.mark.rule("OP-66")
def test_a_connection_has_three_tries_and_an_address_ever_longer_waits(tmp_path: Path) -> None:
    now = [1000.0]
    house = SftpHouse(tmp_path, throttle=Throttle(lambda: now[0]))

    class Guesser(asyncssh.SSHClient):
        asked = 0

        def password_auth_requested(self) -> str:
            Guesser.asked += 1
            return f"guess {Guesser.asked}"

    login_error(house, "acme", password=None, client_factory=Guesser)
    assert len(house.happened("login_failed")) == 3
    login_error(house, "acme", password=None, client_factory=Guesser)
    assert len(house.happened("login_failed")) == 5
    # from here on even the right password has to wait
    assert isinstance(login_error(house, "acme"), asyncssh.PermissionDenied)
    assert house.happened("login_throttled")
    assert house.happened("login") == []
    now[0] += 2
    serves(house)
    house.stop()


def test_a_login_whose_accounts_cannot_be_read_fails_and_is_told(tmp_path: Path) -> None:
    class Broken(FakeAccounts):
        def by_password(self, name: str, password: str) -> Account | None:
            raise StoreUnavailable("the catalog is locked")

    house = SftpHouse(tmp_path, accounts=Broken(PEOPLE))
    assert isinstance(login_error(house, "acme"), asyncssh.PermissionDenied)
    assert house.happened("internal_error") == [{"address": "127.0.0.1", "error": "the catalog is locked"}]
    house.stop()


def test_slow_logins_hold_up_no_upload(tmp_path: Path) -> None:
    held = threading.Event()

    class Slow(FakeAccounts):
        def by_password(self, name: str, password: str) -> Account | None:
            if name == "slow":
                assert held.wait(20)
            return super().by_password(name, password)

    house = SftpHouse(tmp_path, accounts=Slow(PEOPLE))

    async def both() -> None:
        async with house.session() as client:
            waiting = [asyncio.create_task(house.connect("slow", password="x")) for _ in range(10)]
            await asyncio.sleep(0)
            await put(client, NAME, b"through")
            await asyncio.to_thread(house.becomes_whole, {f"acme/{NAME}": b"through"})
            held.set()
            for one in waiting:
                with pytest.raises(asyncssh.Error):
                    await one

    asyncio.run(both())
    house.stop()


# --- nothing but files


@pytest.mark.rule("OP-66")
@pytest.mark.parametrize(
    "options",
    [
        {"command": "id"},
        {"command": "scp -t ."},
        {"command": "internal-sftp"},
        {},
        {"term_type": "xterm"},
        {"subsystem": "shell"},
        {"subsystem": "sftp", "x11_forwarding": True},
    ],
    ids=["exec", "scp", "sftp by exec", "shell", "terminal", "subsystem", "x11"],
)
def test_there_is_no_shell_and_no_command(house: SftpHouse, options: dict[str, Any]) -> None:
    async def ask() -> None:
        async with await house.connect() as link:
            with pytest.raises((asyncssh.Error, OSError, ValueError)):
                await link.create_process(**options)

    asyncio.run(ask())
    serves(house)


def test_the_old_scp_is_refused(house: SftpHouse, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")

    async def send() -> None:
        async with await house.connect() as link:
            with pytest.raises((asyncssh.Error, OSError)):
                await asyncssh.scp(tmp_path / "x", (link, NAME))

    asyncio.run(send())
    assert list(house.tree.files()) == []


async def by_tcp(link: asyncssh.SSHClientConnection, port: int, path: str) -> object:
    return await link.open_connection("127.0.0.1", port)


async def by_socket(link: asyncssh.SSHClientConnection, port: int, path: str) -> object:
    return await link.open_unix_connection(path)


async def listening(link: asyncssh.SSHClientConnection, port: int, path: str) -> object:
    return await link.forward_remote_port("127.0.0.1", 0, "127.0.0.1", port)


async def listening_at_a_path(link: asyncssh.SSHClientConnection, port: int, path: str) -> object:
    return await link.forward_remote_path(path, path)


async def by_tunnel(link: asyncssh.SSHClientConnection, port: int, path: str) -> object:
    return await link.create_tun(asyncssh.SSHTunTapSession)


@pytest.mark.rule("OP-66")
@pytest.mark.parametrize("way", [by_tcp, by_socket, listening, listening_at_a_path, by_tunnel])
def test_nothing_is_forwarded(
    house: SftpHouse,
    tmp_path: Path,
    way: Callable[[asyncssh.SSHClientConnection, int, str], Awaitable[object]],
) -> None:
    async def ask() -> None:
        async with await house.connect(agent_forwarding=True) as link:
            with pytest.raises((asyncssh.ChannelOpenError, asyncssh.ChannelListenError)):
                await way(link, house.server.address[1], str(tmp_path / "socket"))

    asyncio.run(ask())
    assert not (tmp_path / "socket").exists()
    serves(house)


@pytest.mark.rule("OP-66")
@pytest.mark.parametrize(
    "weak",
    [
        {"kex_algs": "diffie-hellman-group1-sha1"},
        {"encryption_algs": "3des-cbc"},
        {"encryption_algs": "arcfour"},
        {"mac_algs": "hmac-md5", "encryption_algs": "aes128-ctr"},
        {"compression_algs": ["zlib@openssh.com"]},
    ],
    ids=lambda weak: next(iter(weak.values())),
)
def test_weak_algorithms_and_compression_are_not_spoken(house: SftpHouse, weak: dict[str, Any]) -> None:
    assert not isinstance(login_error(house, "acme", **weak), asyncssh.PermissionDenied)
    assert house.happened("login") == []


# --- paths


def everything(folder: Path, but: tuple[Path, ...] = ()) -> dict[str, bytes | None]:
    """Files with their content, and folders, except below ``but``."""
    found: dict[str, bytes | None] = {}
    for path in folder.iterdir():
        if path not in but:
            inside = path.is_dir() and not path.is_symlink()
            found[str(path)] = None if inside else path.read_bytes()
            found |= everything(path, but) if inside else {}
    return found


async def tried(work: Awaitable[Any]) -> object:
    try:
        return await work
    except (asyncssh.SFTPError, UnicodeError) as error:
        return str(error)


async def every_operation(client: Client, path: Any, own: Any) -> list[object]:
    """All that a client can ask for with this path, ``own`` a file of its own; gives the answers."""

    async def opened(mode: int | str) -> object:
        async with client.open(path, mode, encoding=None) as file:
            if mode != FXF_READ:
                await file.write(b"intruder")
                return None
            return await file.read()

    found = [
        await tried(opened(FXF_READ)),
        await tried(client.stat(path)),
        await tried(client.lstat(path)),
        await tried(client.listdir(path)),
        await tried(client.readlink(path)),
        await tried(client.symlink(path, own + own)),
        await tried(client.symlink(own, path)),
        await tried(client.link(path, own)),
        await tried(client.link(own, path)),
        await tried(client.statvfs(path)),
        await tried(client.utime(path, (1, 1))),
        await tried(client.truncate(path, 0)),
        await tried(client.mkdir(path)),
        await tried(client.rename(path, own)),
        await tried(client.posix_rename(path, own)),
        await tried(client.rename(own, path)),
        await tried(client.posix_rename(own, path)),
        await tried(opened("wb")),
        await tried(opened("ab")),
        await tried(client.remove(path)),
        await tried(client.rmdir(path)),
    ]
    return found


@pytest.mark.rule("OP-62", "OP-65")
def test_no_hostile_path_leads_out_of_the_folder(house: SftpHouse, tmp_path: Path) -> None:
    house.put("private", SECRET, "bolt")
    house.becomes_whole({"bolt/private": SECRET})
    (tmp_path / "outside").write_bytes(SECRET)
    mine = house.tree.home(1001)
    # what the partner itself delivers under such a name, and deletes, is kept there
    (house.tree.root / ".replaced/1001").mkdir(parents=True)
    own = (mine, house.tree.root / ".replaced/1001")
    before = everything(tmp_path, own)
    paths = hostile()
    assert len(set(paths)) >= 200
    targets = (b"1002/private", b"uploads/1002/private", b"outside", b"host-key", b".replaced/1001")
    paths += [up + target for up in (b"../", b"../../", b"/../", b"a/../../", b"/", b"..\\") for target in targets]

    async def attack(client: Client) -> None:
        for path in paths:
            (mine / "own.part").write_bytes(b"mine")
            for answer in await every_operation(client, path, b"own.part"):
                told = str(answer)
                assert SECRET.decode() not in told, path
                assert str(tmp_path) not in told, path
            assert everything(tmp_path, own) == before, path

    house.with_client(attack)
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]
    # whatever is delivered now is its own, and has a name that can be shown and stored
    assert all(name.startswith("acme/") and name.isprintable() for name in house.whole() if name != "bolt/private")
    assert house.whole()["bolt/private"] == SECRET


@pytest.mark.rule("OP-65")
def test_partners_do_not_reach_each_other(house: SftpHouse) -> None:
    house.put("in.part", b"theirs", "bolt")
    house.put("private", SECRET, "bolt")
    house.becomes_whole({"bolt/private": SECRET})
    before = everything(house.tree.home(1002))

    async def attack(client: Client) -> None:
        assert await client.listdir("/") == []
        for path in ("../1002/private", "/1002/private", "../../uploads/1002/in.part", "/../1002", "../bolt/private"):
            await put(client, "own.part", b"mine")
            for answer in await every_operation(client, path, "own.part"):
                assert SECRET.decode() not in str(answer)

    house.with_client(attack)
    assert everything(house.tree.home(1002)) == before
    assert house.names(user="bolt") == ["in.part", "private"]


@pytest.mark.rule("OP-62")
def test_links_are_neither_made_nor_shown_nor_followed(house: SftpHouse, tmp_path: Path) -> None:
    """Also the escape that works on plain asyncssh: a link to a place that exists only after it was renamed."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_bytes(SECRET)
    home = house.tree.home(1001)
    (home / "to-folder").symlink_to(tmp_path / "outside")
    (home / "to-file").symlink_to(tmp_path / "outside/secret")
    (home / "up").symlink_to("..")
    os.mkfifo(home / "pipe")

    async def attack(client: Client) -> None:
        await client.makedirs("in/d/e")
        with pytest.raises(asyncssh.SFTPPermissionDenied):
            await client.symlink("../../..", "in/d/e/q")
        with pytest.raises(asyncssh.SFTPPermissionDenied):
            await client.link("to-file", "hard")
        assert await client.listdir(".") == ["in"]
        for path in ("to-folder/secret", "to-file", "up/1002/x", "to-folder", "up", "up/.", "pipe", "pipe/x"):
            await put(client, "own.part", b"mine")
            for answer in await every_operation(client, path, "own.part"):
                assert SECRET.decode() not in str(answer)
                assert not isinstance(answer, asyncssh.SFTPAttrs), path

    house.with_client(attack)
    assert (tmp_path / "outside/secret").read_bytes() == SECRET
    assert list(everything(tmp_path / "outside").values()) == [SECRET]
    assert SECRET not in house.whole().values()


# --- floods


async def lost(link: asyncssh.SSHClientConnection) -> None:
    async with asyncio.timeout(10):
        await link.wait_closed()


@pytest.mark.parametrize("limits", [SftpSection(connections=3), SftpSection(connections_per_address=3)])
def test_there_are_only_so_many_connections(tmp_path: Path, limits: SftpSection) -> None:
    house = SftpHouse(tmp_path, limits)

    async def crowd() -> None:
        held = [await house.connect() for _ in range(3)]
        with pytest.raises((asyncssh.Error, OSError)):
            await house.connect()
        assert house.happened("connection_refused")
        held.pop().abort()
        await asyncio.to_thread(until, lambda: len(house.server.connections) == 2)
        held.append(await house.connect())
        for one in held:
            one.abort()

    asyncio.run(crowd())
    house.stop()


def test_who_says_nothing_or_nonsense_is_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp, "LOGIN_SECONDS", 0.3)
    house = SftpHouse(tmp_path)
    pieces = [b"", b"SSH-2.0-x\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100_000, b"SSH-1.5-old\r\n", b"SSH-2.0-" * 9999]
    pieces += [b"SSH-2.0-x\r\n" + struct.pack(">I", size) + b"\xff" * 2000 for size in (0, 1, 35_000, 0xFFFFFFFF)]
    for piece in pieces:
        with house.socket() as connection, contextlib.suppress(ConnectionError):
            connection.sendall(piece)
            while connection.recv(65536):
                pass
    until(lambda: not house.server.connections)
    serves(house)
    assert house.happened("internal_error") == []
    house.stop()


def test_who_only_holds_a_connection_is_sent_away(tmp_path: Path) -> None:
    house = SftpHouse(tmp_path, SftpSection(idle_seconds=1))

    async def idle() -> None:
        link = await house.connect()
        client = await link.start_sftp_client()
        file = await client.open(NAME, "wb")
        await file.write(b"half")
        await lost(link)

    asyncio.run(idle())
    until(lambda: house.happened("upload_cut"))
    assert house.whole() == {}
    house.stop()


def test_a_connection_has_only_so_many_handles_and_sessions(house: SftpHouse) -> None:
    async def hoard() -> None:
        async with await house.connect() as link:
            clients = [await link.start_sftp_client() for _ in range(sftp.MOST_CHANNELS)]
            with pytest.raises(asyncssh.ChannelOpenError):
                await link.start_sftp_client()
            await put(clients[0], NAME, b"content")
            for _ in range(sftp_files.MOST_HANDLES + 1):
                assert await clients[0].listdir(".") == [NAME]
            files = [await clients[number % 10].open(NAME, "rb") for number in range(sftp_files.MOST_HANDLES)]
            for path, mode in ((NAME, "rb"), ("other", "wb")):
                with pytest.raises(asyncssh.SFTPFailure, match="close some"):
                    await clients[1].open(path, mode)
            with pytest.raises(asyncssh.SFTPFailure, match="close some"):
                await clients[1].listdir(".")
            await files.pop().close()
            await put(clients[1], "other", b"content")
            for one in clients:
                one.exit()
            (connection,) = house.server.connections
            await asyncio.to_thread(until, lambda: (connection.peer.handles, connection.peer.channels) == (0, 0))
            async with link.start_sftp_client() as client:
                await put(client, "third", b"content")

    asyncio.run(hoard())
    serves(house)


class Raw:
    """SFTP packets by hand."""

    def __init__(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self._process = process

    def send(self, kind: int, *fields: int | bytes) -> None:
        packet = bytes([kind]) + b"".join(
            struct.pack(">I", len(one)) + one if isinstance(one, bytes) else struct.pack(">I", one) for one in fields
        )
        self.write(struct.pack(">I", len(packet)) + packet)

    def write(self, content: bytes) -> None:
        self._process.stdin.write(content)

    async def answer(self) -> tuple[int, bytes]:
        size = struct.unpack(">I", await self._process.stdout.readexactly(4))[0]
        packet = await self._process.stdout.readexactly(size)
        return packet[0], packet[1:]


INIT, OPEN, READ, REALPATH = 1, 3, 5, 16


@contextlib.asynccontextmanager
async def raw(house: SftpHouse, **options: Any) -> AsyncIterator[Raw]:
    async with await house.connect() as link:
        session = Raw(await link.create_process(subsystem="sftp", encoding=None, **options))
        session.send(INIT, 3)
        await session.answer()
        yield session


@pytest.mark.parametrize(
    "nonsense",
    [
        struct.pack(">I", 0xFFFFFFFF) + b"x" * 1000,
        struct.pack(">I", 5 << 20) + b"x" * 1000,
        struct.pack(">I", 0),
        struct.pack(">I", 3) + b"abc",
        struct.pack(">IBII", 9, OPEN, 1, 0xFFFFFFFF),
        struct.pack(">IBI", 5, 250, 1),
        struct.pack(">IBII", 9, 200, 1, 99),
        os.urandom(100_000),
    ],
    ids=["too long", "longer", "empty", "no number", "field too long", "no such request", "no extension", "noise"],
)
def test_nonsense_in_a_session_ends_at_most_this_session(house: SftpHouse, nonsense: bytes) -> None:
    async def talk() -> None:
        async with house.session() as other, raw(house) as session:
            file = await other.open(NAME, "wb")
            session.write(nonsense)
            session.send(REALPATH, 7, b".")
            with contextlib.suppress(asyncio.IncompleteReadError, TimeoutError):
                async with asyncio.timeout(0.2):
                    await session.answer()
            await file.write(b"untouched")
            await file.close()

    asyncio.run(talk())
    house.becomes_whole({f"acme/{NAME}": b"untouched"})
    serves(house)


def test_a_client_that_reads_no_answers_does_not_fill_the_memory(
    house: SftpHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp_files, "MOST_UNREAD", 1 << 20)
    house.put(NAME, b"x" * (1 << 18))

    async def greedy() -> None:
        # nothing of the answers is taken from the connection beyond this window
        async with raw(house, window=1 << 16) as session:
            session.send(OPEN, 1, NAME.encode(), FXF_READ, 0)
            kind, handle = await session.answer()
            assert kind == 102
            size = struct.unpack(">I", handle[4:8])[0]
            for number in range(200):
                session.send(READ, number, handle[8 : 8 + size], 0, 0, 1 << 18)
            (connection,) = house.server.connections
            await asyncio.to_thread(until, lambda: connection._unread() > 1 << 20)
            # it would be 50 MB; the other partner is served, so the server had time to read it all
            await asyncio.to_thread(house.put, "other", b"x", "bolt")
            assert connection._unread() < 3 << 20
            for _ in range(200):
                kind, data = await session.answer()
                assert kind == 103
                assert len(data) == 8 + (1 << 18)

    asyncio.run(greedy())
    serves(house)


def test_a_folder_of_thousands_is_listed(house: SftpHouse) -> None:
    home = house.tree.home(1001)
    names = [f"file-{number:04}.part" for number in range(3000)]
    for name in names:
        (home / name).write_bytes(b"")
    assert house.names() == names


def test_many_small_files_over_several_connections(house: SftpHouse) -> None:
    async def one(number: int) -> None:
        async with house.session() as client:
            for file in range(20):
                await put(client, f"{number}-{file}", b"%d" % file)

    async def all_of_them() -> None:
        await asyncio.gather(*(one(number) for number in range(8)))

    asyncio.run(all_of_them())
    house.becomes_whole({f"acme/{number}-{file}": b"%d" % file for number in range(8) for file in range(20)})


def test_a_client_that_lies_about_offsets_fills_no_disk(house: SftpHouse) -> None:
    async def lie(client: Client) -> None:
        for offset in (1 << 40, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
            file = await client.open("x", "wb")
            with pytest.raises(asyncssh.SFTPError):
                await file.write(b"x", offset)
            with pytest.raises(asyncssh.SFTPError):
                await file.truncate(offset)
            with pytest.raises(asyncssh.SFTPError):
                await file.close()
        async with client.open("x", "rb") as found:
            with pytest.raises(asyncssh.SFTPError):
                await found.read(10, 1 << 62)

    house.with_client(lie)
    assert house.whole() == {}
    assert house.size("x") == 0


def test_what_clients_do_wrong_is_not_printed(
    house: SftpHouse, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    login_error(house, "acme", password="wrong")
    with house.socket() as connection:
        connection.sendall(b"nonsense\r\n\r\n")
    serves(house)
    house.stop()
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.name.startswith("asyncssh")] == []
