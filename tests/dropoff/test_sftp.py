"""SFTP: a file is taken once it is whole, and never half (IN-05); what clients are used to works."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh
import pytest
from asyncssh import FXF_APPEND, FXF_CREAT, FXF_EXCL, FXF_TRUNC, FXF_WRITE, SFTPAttrs

from dropoff.accounts import FakeAccounts
from dropoff.ftp_house import PARTNERS, until
from dropoff.sftp_house import SftpHouse, private_key, put
from openaudience.config import SftpSection
from openaudience.dropoff.accounts import Throttle
from openaudience.dropoff.sftp import SftpServer
from openaudience.dropoff.uploads import State
from openaudience.errors import SystemFailure

NAME = "ftp_dpm_7007_1700000000.sync"
CONTENT = bytes(range(256)) * 2000
HALF = CONTENT[: len(CONTENT) // 2]
PLACE = f"acme/{NAME}"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[SftpHouse]:
    house = SftpHouse(tmp_path)
    yield house
    house.stop()
    assert house.happened("internal_error") == []


@asynccontextmanager
async def cutting(house: SftpHouse, name: str = NAME, content: bytes = HALF) -> AsyncIterator[asyncssh.SFTPClient]:
    """An upload that goes on, until its connection is lost at the end."""
    link = await house.connect()
    client = await link.start_sftp_client()
    file = await client.open(name, "wb")
    await file.write(content)
    yield client
    link.abort()
    await link.wait_closed()


def cut(house: SftpHouse, name: str = NAME, content: bytes = HALF) -> None:
    """Sends a part of a file and loses the connection."""

    async def send() -> None:
        async with cutting(house, name, content):
            pass

    asyncio.run(send())
    until(lambda: house.happened("upload_cut"))


def is_cut(house: SftpHouse, name: str = NAME) -> None:
    until(lambda: house.happened("upload_cut"))
    assert house.whole() == {}
    assert house.mode(name) == State.OPEN


# --- whole or not


@pytest.mark.rule("IN-05")
@pytest.mark.parametrize("content", [b"", CONTENT])
def test_a_file_is_whole_once_its_sender_closed_it(house: SftpHouse, content: bytes) -> None:
    async def send() -> None:
        async with house.session() as client:
            async with client.open(NAME, "wb") as file:
                await file.write(content)
                assert house.content(NAME) == content
                assert house.whole() == {}, "while it grows"
            # no other command is needed, nor that the sender leaves
            await asyncio.to_thread(house.becomes_whole, {PLACE: content})

    asyncio.run(send())
    assert [fields["path"] for fields in house.happened("upload_whole")] == [f"/{NAME}"]
    assert house.happened("upload_cut") == []


def test_it_is_durable_before_its_sender_hears_that_it_was_received(
    house: SftpHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, int]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        status = os.fstat(descriptor)
        synced.append((status.st_ino, status.st_size))
        fsync(descriptor)

    async def send() -> None:
        async with house.session() as client:
            monkeypatch.setattr(os, "fsync", watched)
            await put(client, NAME, CONTENT)
            seen = list(synced)
            assert (house.place(NAME).stat().st_ino, len(CONTENT)) in seen
            assert house.place("").stat().st_ino in [inode for inode, _ in seen]

    asyncio.run(send())


@pytest.mark.rule("IN-05")
@pytest.mark.parametrize("content", [b"", HALF])
@pytest.mark.parametrize("way", ["abort", "disconnect", "exit", "close channel", "end of input"])
def test_a_session_that_ends_finishes_no_file(house: SftpHouse, way: str, content: bytes) -> None:
    async def send() -> None:
        link = await house.connect()
        client = await link.start_sftp_client()
        file = await client.open(NAME, "wb")
        await file.write(content)
        # its connection stays, so that only the session tells
        writer = client._handler._writer
        assert writer is not None
        if way == "abort":
            link.abort()
        elif way == "disconnect":
            link.disconnect(asyncssh.DISC_BY_APPLICATION, "bye")
        elif way == "exit":
            client.exit()
        elif way == "close channel":
            writer.channel.close()
        else:
            writer.channel.write_eof()
        await asyncio.to_thread(is_cut, house)
        link.abort()
        await link.wait_closed()

    asyncio.run(send())
    house.stop()
    assert house.whole() == {}
    assert house.happened("upload_whole") == []


@pytest.mark.rule("IN-05")
@pytest.mark.parametrize("request_", ["fsync", "close"])
def test_a_connection_lost_while_the_disk_is_slow_finishes_no_file(
    house: SftpHouse, monkeypatch: pytest.MonkeyPatch, request_: str
) -> None:
    """Whether its sender was done, or would have gone on, nobody can tell then."""
    begun, held, fsync = threading.Event(), threading.Event(), os.fsync

    def slow(descriptor: int) -> None:
        begun.set()
        assert held.wait(10)
        fsync(descriptor)

    async def send() -> None:
        link = await house.connect()
        client = await link.start_sftp_client()
        file = await client.open(NAME, "wb")
        await file.write(HALF)
        monkeypatch.setattr(os, "fsync", slow)
        asking = asyncio.create_task(getattr(file, request_)())
        await asyncio.to_thread(begun.wait, 10)
        (connection,) = house.server.connections
        link.abort()
        await asyncio.to_thread(until, lambda: not house.server.connections)
        held.set()
        await asyncio.to_thread(until, lambda: house.happened("upload_cut"))
        assert connection.peer.handles == 0
        await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(send())
    house.stop()
    is_cut(house)


@pytest.mark.rule("IN-05")
@pytest.mark.parametrize("broken", [0, 1, 2])
@pytest.mark.parametrize("abruptly", [False, True])
def test_a_session_that_ends_finishes_none_of_several_files(house: SftpHouse, broken: int, abruptly: bool) -> None:
    """Also where closing one of them fails, because a write was refused."""

    async def send() -> None:
        link = await house.connect()
        client = await link.start_sftp_client()
        for number in range(3):
            file = await client.open(f"file-{number}", "wb")
            await file.write(HALF)
            if number == broken:
                with pytest.raises(asyncssh.SFTPPermissionDenied, match="hole"):
                    await file.write(b"x", 1 << 40)
        writer = client._handler._writer
        assert writer is not None
        if abruptly:
            writer.channel.abort()
        else:
            client.exit()
        await asyncio.to_thread(until, lambda: len(house.happened("upload_cut")) == 3)
        # another session of the connection goes on
        other = await link.start_sftp_client()
        await put(other, NAME, CONTENT)
        await asyncio.to_thread(house.becomes_whole, {PLACE: CONTENT})
        assert [house.mode(f"file-{number}") for number in range(3)] == [State.OPEN] * 3
        link.close()
        await link.wait_closed()

    asyncio.run(send())


@pytest.mark.rule("IN-05")
def test_what_was_closed_stays_received_where_closing_the_next_file_fails(house: SftpHouse) -> None:
    async def send() -> None:
        async with house.session() as client:
            good, bad = await client.open(NAME, "wb"), await client.open("bad", "wb")
            await good.write(CONTENT)
            with pytest.raises(asyncssh.SFTPPermissionDenied):
                await bad.write(b"x", 1 << 40)
            # both on their way at once, so that no step of the server's loop lies between them
            answers = await asyncio.gather(good.close(), bad.close(), return_exceptions=True)
            assert answers[0] is None
            assert isinstance(answers[1], asyncssh.SFTPPermissionDenied)
            await asyncio.to_thread(house.becomes_whole, {PLACE: CONTENT})

    asyncio.run(send())
    assert house.mode("bad") == State.OPEN


def test_many_files_closed_at_once_are_all_whole(house: SftpHouse) -> None:
    async def send(client: asyncssh.SFTPClient) -> None:
        files = [await client.open(f"file-{number}", "wb") for number in range(20)]
        for number, file in enumerate(files):
            await file.write(b"%d" % number)
        await asyncio.gather(*(file.close() for file in files))

    house.with_client(send)
    house.becomes_whole({f"acme/file-{number}": b"%d" % number for number in range(20)})


@pytest.mark.rule("IN-05")
def test_a_file_open_twice_is_whole_with_its_last_writer(house: SftpHouse) -> None:
    async def send(client: asyncssh.SFTPClient) -> None:
        first = await client.open(NAME, FXF_WRITE | FXF_CREAT | FXF_TRUNC, encoding=None)
        second = await client.open(NAME, FXF_WRITE, encoding=None)
        await second.write(CONTENT[len(HALF) :], len(HALF))
        await first.write(HALF, 0)
        await second.close()
        assert house.mode(NAME) == State.OPEN
        await first.close()

    house.with_client(send)
    house.becomes_whole({PLACE: CONTENT})


@pytest.mark.rule("IN-05")
@pytest.mark.parametrize("first", ["x.part", ".x", "x.tmp", "x.filepart", "x~"])
@pytest.mark.parametrize("renaming", ["rename", "posix_rename"])
def test_an_unfinished_name_is_left_alone_until_it_is_renamed(house: SftpHouse, first: str, renaming: str) -> None:
    house.put(first, CONTENT)

    async def rename(client: asyncssh.SFTPClient) -> None:
        await getattr(client, renaming)(first, "again.part")
        assert house.whole() == {}
        await getattr(client, renaming)("again.part", NAME)
        assert house.whole() == {PLACE: CONTENT}, "before its sender hears that it was renamed"

    assert house.whole() == {}
    house.with_client(rename)


@pytest.mark.rule("IN-05")
def test_renaming_finishes_no_half_file(house: SftpHouse) -> None:
    cut(house, "x.part")

    async def rename(client: asyncssh.SFTPClient) -> None:
        await client.posix_rename("x.part", NAME)

    house.with_client(rename)
    is_cut(house)


@pytest.mark.rule("IN-05")
def test_a_file_renamed_while_it_grows_is_whole_once_it_is_closed(house: SftpHouse) -> None:
    async def send() -> None:
        async with house.session() as client, house.session() as other:
            file = await client.open("x.part", "wb")
            await file.write(HALF)
            await other.rename("x.part", NAME)
            assert house.whole() == {}
            await file.write(CONTENT[len(HALF) :])
            await file.close()

    asyncio.run(send())
    house.becomes_whole({PLACE: CONTENT})


@pytest.mark.rule("IN-05")
def test_bytes_that_were_refused_are_missing(house: SftpHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that goes on after a failed write, and closes, has not sent the file."""

    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def send(client: asyncssh.SFTPClient) -> None:
        file = await client.open(NAME, "wb")
        await file.write(HALF)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(asyncssh.SFTPFailure, match="disk is full"):
                await file.write(b"lost")
        await file.write(CONTENT[len(HALF) + 4 :], len(HALF) + 4)
        with pytest.raises(asyncssh.SFTPPermissionDenied, match="send it again"):
            await file.close()

    house.with_client(send)
    assert house.whole() == {}
    assert house.mode(NAME) == State.OPEN
    assert house.happened("disk_full")
    house.put(NAME, CONTENT)
    house.becomes_whole({PLACE: CONTENT})


def test_a_file_that_cannot_be_made_durable_was_not_received(house: SftpHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def send(client: asyncssh.SFTPClient) -> None:
        file = await client.open(NAME, "wb")
        await file.write(CONTENT)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(asyncssh.SFTPFailure, match="disk is full"):
                await file.close()

    house.with_client(send)
    house.stop()
    assert house.whole() == {}


# --- again


@pytest.mark.rule("IN-05")
@pytest.mark.parametrize("way", ["offset", "append", "anew", "truncate"])
def test_a_cut_upload_is_resumed(house: SftpHouse, way: str) -> None:
    cut(house)

    async def resume(client: asyncssh.SFTPClient) -> None:
        got = (await client.stat(NAME)).size
        assert got == len(HALF)
        flags = {
            "offset": FXF_WRITE | FXF_CREAT,
            "append": FXF_WRITE | FXF_APPEND,
            "anew": FXF_WRITE | FXF_CREAT,
            "truncate": FXF_WRITE | FXF_CREAT | FXF_TRUNC,
        }[way]
        file = await client.open(NAME, flags, encoding=None)
        if way == "append":
            await file.write(CONTENT[got:])
        elif way == "offset":
            await file.write(CONTENT[got:], got)
        else:
            await file.write(CONTENT[:100], 0)
        await file.close()

    house.with_client(resume)
    house.becomes_whole({PLACE: CONTENT if way in ("offset", "append") else CONTENT[:100]})


def test_what_is_resumed_and_cut_again_waits_on(house: SftpHouse) -> None:
    cut(house)

    async def resume() -> None:
        link = await house.connect()
        client = await link.start_sftp_client()
        file = await client.open(NAME, FXF_WRITE, encoding=None)
        await file.write(b"more", len(HALF))
        link.abort()
        await link.wait_closed()

    asyncio.run(resume())
    until(lambda: len(house.happened("upload_cut")) == 2)
    is_cut(house)


def test_what_was_received_under_an_unfinished_name_may_go_on(house: SftpHouse) -> None:
    house.put("x.part", HALF)

    async def append(client: asyncssh.SFTPClient) -> None:
        async with client.open("x.part", "ab") as file:
            await file.write(CONTENT[len(HALF) :])
        await client.rename("x.part", NAME)

    house.with_client(append)
    house.becomes_whole({PLACE: CONTENT})


@pytest.mark.rule("IN-05")
def test_what_was_answered_as_received_is_delivered_although_the_next_upload_begins_at_once(
    house: SftpHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, whole = threading.Event(), house.tree.whole

    def slow(place: Path, upload: int | None = None) -> None:
        assert held.wait(10)
        whole(place, upload)

    monkeypatch.setattr(house.tree, "whole", slow)

    async def again(client: asyncssh.SFTPClient) -> None:
        # as scp opens it: without saying that it starts anew
        async with client.open(NAME, FXF_WRITE | FXF_CREAT, encoding=None) as file:
            await file.write(b"second", 0)

    async def send() -> None:
        async with house.session() as client, house.session() as other:
            await put(client, NAME, CONTENT)
            second = asyncio.create_task(again(other))
            done, _ = await asyncio.wait([second], timeout=0.1)
            assert not done
            held.set()
            await second

    asyncio.run(send())
    until(lambda: sorted(delivery.size for delivery in house.door.look(PARTNERS)) == [6, len(CONTENT)])


@pytest.mark.rule("IN-05")
def test_a_whole_file_is_not_resumed(house: SftpHouse) -> None:
    house.put(NAME, CONTENT)
    house.becomes_whole({PLACE: CONTENT})

    async def resume(client: asyncssh.SFTPClient) -> None:
        with pytest.raises(asyncssh.SFTPPermissionDenied, match="anew"):
            await client.open(NAME, FXF_WRITE | FXF_APPEND)
        file = await client.open(NAME, FXF_WRITE, encoding=None)
        with pytest.raises(asyncssh.SFTPPermissionDenied, match="anew"):
            await file.write(b"more", len(CONTENT))
        with pytest.raises(asyncssh.SFTPPermissionDenied):
            await file.close()

    house.with_client(resume)
    assert house.whole() == {PLACE: CONTENT}


def test_exclusive_opening_and_opening_what_is_not_there(house: SftpHouse) -> None:
    house.put(NAME, CONTENT)

    async def openings(client: asyncssh.SFTPClient) -> None:
        with pytest.raises(asyncssh.SFTPError, match="of that name"):
            await client.open(NAME, FXF_WRITE | FXF_CREAT | FXF_EXCL)
        with pytest.raises(asyncssh.SFTPNoSuchFile):
            await client.open("none", FXF_WRITE)
        with pytest.raises(asyncssh.SFTPNoSuchFile):
            await client.open("none", "rb")
        with pytest.raises(asyncssh.SFTPNoSuchFile):
            await client.open("none/x", "wb")
        with pytest.raises(asyncssh.SFTPFailure, match="folder"):
            await client.open(".", "wb")

    house.with_client(openings)
    house.becomes_whole({PLACE: CONTENT})


@pytest.mark.rule("IN-05")
def test_what_was_whole_is_delivered_although_overwritten_or_deleted(house: SftpHouse) -> None:
    house.put(NAME, b"first")
    house.put(NAME, b"second")
    house.put("x.part", b"the third")

    async def replace(client: asyncssh.SFTPClient) -> None:
        with pytest.raises(asyncssh.SFTPError, match="of that name"):
            await client.rename("x.part", NAME)
        await client.posix_rename("x.part", NAME)
        await client.remove(NAME)
        assert await client.listdir(".") == []

    house.with_client(replace)
    assert sorted(delivery.size for delivery in house.door.look(PARTNERS)) == [5, 6, 9]


@pytest.mark.rule("IN-05")
@pytest.mark.parametrize("taking", ["before", "while"])
def test_an_overwrite_changes_no_byte_of_what_is_taken(house: SftpHouse, tmp_path: Path, taking: str) -> None:
    house.put(NAME, CONTENT)
    house.becomes_whole({PLACE: CONTENT})
    (delivery,) = house.door.look(PARTNERS)
    taken = tmp_path / "taken"

    async def overwrite() -> None:
        async with house.session() as client:
            if taking == "before":
                house.door.fetch(delivery, taken)
            async with client.open(NAME, "wb") as file:
                await file.write(b"second")
                if taking == "while":
                    (older,) = house.door.look(PARTNERS)
                    house.door.fetch(older, taken)

    asyncio.run(overwrite())
    assert taken.read_bytes() == CONTENT
    until(lambda: b"second" in house.whole().values())


def test_a_file_that_was_taken_keeps_its_name(house: SftpHouse, tmp_path: Path) -> None:
    house.put(NAME, CONTENT)
    house.becomes_whole({PLACE: CONTENT})
    (delivery,) = house.door.look(PARTNERS)
    house.door.fetch(delivery, tmp_path / "taken")

    async def rename(client: asyncssh.SFTPClient) -> None:
        for renaming in (client.rename, client.posix_rename):
            with pytest.raises(asyncssh.SFTPPermissionDenied, match="taken already"):
                await renaming(NAME, "other")

    house.with_client(rename)
    assert house.whole() == {PLACE: CONTENT}


# --- two sessions and one file


async def overwrite(client: asyncssh.SFTPClient) -> None:
    await put(client, NAME, b"second")


async def rename_over(client: asyncssh.SFTPClient) -> None:
    await put(client, "y.part", b"y")
    await client.posix_rename("y.part", NAME)


@pytest.mark.rule("IN-05")
@pytest.mark.parametrize("same_connection", [True, False])
@pytest.mark.parametrize(
    ("other", "after"),
    [(overwrite, {PLACE: b"second"}), (lambda client: client.remove(NAME), {}), (rename_over, {PLACE: b"y"})],
    ids=["overwritten", "deleted", "renamed over"],
)
def test_what_another_session_does_to_a_growing_file_makes_nothing_half_whole(
    house: SftpHouse,
    other: Callable[[asyncssh.SFTPClient], Awaitable[None]],
    after: dict[str, bytes],
    same_connection: bool,
) -> None:
    async def send() -> None:
        async with await house.connect() as link, await house.connect() as second:
            client = await link.start_sftp_client()
            file = await client.open(NAME, "wb")
            await file.write(HALF)
            await other(await (link if same_connection else second).start_sftp_client())
            await asyncio.to_thread(house.becomes_whole, after)
            with pytest.raises(asyncssh.SFTPPermissionDenied, match="send it again"):
                await file.write(b"late")
            with pytest.raises(asyncssh.SFTPPermissionDenied, match="send it again"):
                await file.close()

    asyncio.run(send())
    house.stop()
    assert house.whole() == after


@pytest.mark.rule("IN-05")
def test_who_resumes_takes_over_from_a_connection_that_hangs(house: SftpHouse) -> None:
    async def send() -> None:
        async with house.session() as hanging, house.session() as client:
            old = await hanging.open(NAME, "wb")
            await old.write(HALF)
            new = await client.open(NAME, FXF_WRITE, encoding=None)
            await new.write(CONTENT[len(HALF) : -10], len(HALF))
            with pytest.raises(asyncssh.SFTPPermissionDenied, match="another session"):
                await old.write(b"late bytes")
            with pytest.raises(asyncssh.SFTPPermissionDenied):
                await old.close()
            assert house.whole() == {}
            await new.write(CONTENT[-10:], len(CONTENT) - 10)
            await new.close()

    asyncio.run(send())
    house.becomes_whole({PLACE: CONTENT})


@pytest.mark.rule("IN-05")
def test_the_end_of_one_session_says_nothing_of_another(house: SftpHouse) -> None:
    async def send() -> None:
        async with cutting(house), house.session() as client:
            await put(client, "other", CONTENT)
            await asyncio.to_thread(house.becomes_whole, {"acme/other": CONTENT})
        await asyncio.to_thread(until, lambda: house.happened("upload_cut"))

    asyncio.run(send())
    assert house.whole() == {"acme/other": CONTENT}


# --- stop and start


@pytest.mark.rule("IN-05", "OP-42")
def test_what_was_received_when_the_server_died_is_whole_at_the_next_start(tmp_path: Path) -> None:
    house = SftpHouse(tmp_path)
    for name, state in ((NAME, State.RECEIVED_SFTP), ("x.part", State.RECEIVED_SFTP), ("ftp", State.RECEIVED_FTP)):
        with house.tree.begin(1001, (name,)) as stream:
            stream.write(CONTENT)
        house.tree.received(house.tree.place(1001, (name,)), state)
    with house.tree.begin(1001, ("half",)) as stream:
        stream.write(HALF)
    assert house.whole() == {}
    house.stop()
    house = SftpHouse(tmp_path)
    house.stop()
    assert house.whole() == {PLACE: CONTENT}


@pytest.mark.rule("OP-42")
def test_a_stop_lets_uploads_end_and_cuts_those_that_hang(house: SftpHouse) -> None:
    async def send() -> None:
        async with await house.connect() as link, await house.connect() as lazy, await house.connect() as idle:
            client, other = await link.start_sftp_client(), await lazy.start_sftp_client()
            await idle.start_sftp_client()
            file, hanging = await client.open(NAME, "wb"), await other.open("hanging", "wb")
            await file.write(HALF)
            await hanging.write(HALF)
            stopping = asyncio.create_task(asyncio.to_thread(house.stop, 1.0))
            await idle.wait_closed()
            await file.write(CONTENT[len(HALF) :])
            await file.close()
            await lazy.wait_closed()
            await stopping

    asyncio.run(send())
    assert house.whole() == {PLACE: CONTENT}
    assert house.mode("hanging") == State.OPEN
    with pytest.raises(ConnectionRefusedError):
        house.socket()


def test_a_port_in_use_and_a_key_that_is_none_are_named(house: SftpHouse, tmp_path: Path) -> None:
    port = house.server.address[1]

    def server(key: Path) -> SftpServer:
        return SftpServer(house.tree, FakeAccounts({}), SftpSection(), key, port=port, throttle=Throttle())

    for key in (house.host_key, tmp_path / "missing", tmp_path / "nonsense", tmp_path / "locked"):
        if key.name == "nonsense":
            key.write_text("no key")
        if key.name == "locked":
            private_key("server").write_private_key(str(key), "pkcs8-pem", passphrase="secret")
        other = server(key)
        with pytest.raises(SystemFailure, match=str(port) if key == house.host_key else key.name):
            other.start()
        other.stop(0)


# --- habits


def test_times_modes_and_owners_are_taken_politely_and_change_nothing(house: SftpHouse) -> None:
    house.put(NAME, CONTENT)
    house.becomes_whole({PLACE: CONTENT})
    (before,) = house.door.look(PARTNERS)

    async def set_all(client: asyncssh.SFTPClient) -> None:
        await client.utime(NAME, (1, 1))
        await client.chmod(NAME, 0o600)
        await client.chown(NAME, 5, 5)
        with pytest.raises(asyncssh.SFTPPermissionDenied):
            await client.truncate(NAME, 3)
        with pytest.raises(asyncssh.SFTPNoSuchFile):
            await client.utime("none", (1, 1))
        async with client.open("other", "wb") as file:
            await file.write(CONTENT)
            await file.utime((1, 1))
            await file.chmod(0o640)
            assert house.mode("other") == State.OPEN

    house.with_client(set_all)
    until(lambda: "acme/other" in house.whole())
    assert [delivery for delivery in house.door.look(PARTNERS) if delivery.name == NAME] == [before]


def test_an_open_file_can_be_cut_and_flushed(house: SftpHouse) -> None:
    async def send(client: asyncssh.SFTPClient) -> None:
        async with client.open(NAME, "wb") as file:
            await file.write(CONTENT)
            await file.fsync()
            await file.truncate(100)
            assert (await file.stat()).size == 100
            await file.write(b"end", 100)

    house.with_client(send)
    house.becomes_whole({PLACE: CONTENT[:100] + b"end"})


def test_folders_listings_and_reading_back(house: SftpHouse) -> None:
    async def walk(client: asyncssh.SFTPClient) -> None:
        assert await client.realpath("a/../b/./c/") == "/b/c"
        assert await client.realpath("../../..") == "/"
        await client.mkdir("in")
        with pytest.raises(asyncssh.SFTPError, match="of that name"):
            await client.mkdir("in")
        with pytest.raises(asyncssh.SFTPNoSuchFile):
            await client.mkdir("none/in")
        await put(client, f"in/{NAME}", CONTENT)
        (entry,) = [one async for one in client.scandir("in")]
        assert entry.attrs.size == len(CONTENT)
        shown = f"{entry.longname!s}"
        assert shown.startswith("-rw-r--r-- ")
        assert shown.endswith(NAME)
        assert await client.isdir("in")
        assert await client.isfile(f"in/{NAME}")
        async with client.open(f"in/{NAME}", "rb") as file:
            got: list[object] = [await file.read(100, 50), await file.read(-1, 0)]
            assert got == [CONTENT[50:150], CONTENT]
            with pytest.raises(asyncssh.SFTPPermissionDenied):
                await file.write(b"x")
        with pytest.raises(asyncssh.SFTPFailure, match="not empty"):
            await client.rmdir("in")
        with pytest.raises(asyncssh.SFTPPermissionDenied):
            await client.rmdir("/")
        await client.rename(f"in/{NAME}", NAME)
        await client.rename("in", "out")
        await client.rmdir("out")
        assert await client.listdir("/") == [NAME]
        with pytest.raises(asyncssh.SFTPNoSuchFile):
            await client.listdir("out")

    house.with_client(walk)
    house.becomes_whole({PLACE: CONTENT})


@pytest.mark.parametrize("version", [4, 5, 6])
def test_a_client_that_would_speak_a_later_version_speaks_the_third(house: SftpHouse, version: int) -> None:
    async def send() -> None:
        async with house.session(version=version) as client:
            assert client.version == 3
            await put(client, NAME, CONTENT)
            assert (await client.stat(NAME)).size == len(CONTENT)

    asyncio.run(send())
    house.becomes_whole({PLACE: CONTENT})


def test_a_client_that_sends_in_parallel_delivers_the_same_bytes(house: SftpHouse, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "big").write_bytes(content)

    async def send(client: asyncssh.SFTPClient) -> None:
        await client.put(tmp_path / "big", NAME, preserve=True, block_size=10_000, max_requests=50)
        await client.get(NAME, tmp_path / "back")

    house.with_client(send)
    assert (tmp_path / "back").read_bytes() == content
    house.becomes_whole({PLACE: content})


def test_a_copy_on_the_server_is_a_delivery_of_its_own(house: SftpHouse) -> None:
    """Longer than one block of asyncssh's copying; of a file that still grows there is none."""
    content = os.urandom(700_000)
    house.put("x.part", content)

    async def copy(client: asyncssh.SFTPClient) -> None:
        # asyncssh itself never closes what it opens for a copy
        async with client.open("x.part", "rb") as source, client.open(NAME, "wb") as target:
            await client.remote_copy(source, target)
        async with client.open("growing", "wb") as file:
            await file.write(HALF)
            with pytest.raises(asyncssh.SFTPPermissionDenied, match="still being uploaded"):
                await client.remote_copy("growing", "copied.part")

    house.with_client(copy)
    house.becomes_whole({PLACE: content, "acme/growing": HALF})


def test_what_the_client_sees_tells_nothing_of_the_host(house: SftpHouse) -> None:
    house.put(NAME, CONTENT)

    async def look(client: asyncssh.SFTPClient) -> SFTPAttrs:
        return await client.stat(NAME)

    attributes: SFTPAttrs = house.with_client(look)
    assert (attributes.uid, attributes.gid) == (0, 0)
    assert attributes.permissions is not None
    assert attributes.permissions & 0o777 == 0o644
