"""Files that are brought to real servers: whole or not at all, under their names, and never over somebody else's."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openaudience.errors import DeliveryFailed, DeliveryRefused
from openaudience.outbound import targets
from openaudience.outbound.servers import Server
from openaudience.outbound.targets import Target, Timeouts, open_target
from outbound import peers
from outbound.peers import Make, Peer, Polling

FOLDERS: dict[str, Make] = {
    "local": peers.local_folder,
    "openssh": peers.openssh,
    "vsftpd": peers.vsftpd,
    "own-sftp": peers.own_sftp,
    "own-ftps": peers.own_ftps,
    "own-ftp": peers.own_ftp,
}
CONTENT = b"".join(b"user-%06d 1,2,3\n" % number for number in range(20_000))
NAME = "s3_7301_52011_full_1709992800000.sync"
RUN = "main/7301/17"


@pytest.fixture(scope="module")
def store() -> Iterator[Callable[[str], Peer]]:
    with peers.store() as running:
        yield running


@pytest.fixture(params=[*FOLDERS, "s3"])
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """A server of each kind, with nothing on it."""
    if request.param == "s3":
        bucket = "b" + hashlib.sha256(request.node.name.encode()).hexdigest()[:20]
        yield request.getfixturevalue("store")(bucket)
        return
    with FOLDERS[request.param]() as running:
        yield running


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """A server of each kind that has folders."""
    with FOLDERS[request.param]() as running:
        yield running


@pytest.fixture(params=[name for name in FOLDERS if name != "local"])
def remote(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """A server of each kind to which OB-203 and OB-204 apply."""
    with FOLDERS[request.param]() as running:
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "generated"
    path.write_bytes(CONTENT)
    return path


def put(peer: Peer, path: Path, name: str = NAME, *, run: str = RUN, again: bool = False, **changed: Any) -> None:
    with peer.open(**changed) as target:
        target.put(path, name, run=run, again=again)


@pytest.mark.rule("OB-196", "OB-199", "OB-203", "OB-205")
def test_a_file_arrives_as_it_is_under_its_name_and_nothing_else_does(peer: Peer, file: Path) -> None:
    put(peer, file)
    assert peer.files() == {NAME: CONTENT}


def test_one_connection_brings_many_files_also_empty_ones(peer: Peer, tmp_path: Path) -> None:
    contents = {f"part {number} ü.sync": bytes([number]) * number * 40_000 for number in range(4)}
    with peer.open() as target:
        for name, content in contents.items():
            (tmp_path / "f").write_bytes(content)
            target.put(tmp_path / "f", name, run=RUN, again=False)
    assert peer.files() == contents


@pytest.mark.rule("OB-209")
def test_a_file_of_another_run_is_left_alone(peer: Peer, file: Path) -> None:
    peer.plant(NAME, b"theirs")
    for again in (False, True):
        with pytest.raises(DeliveryRefused, match=f"exists: .*{NAME}"):
            put(peer, file, again=again)
    assert peer.files() == {NAME: b"theirs"}


@pytest.mark.rule("OB-209")
def test_a_file_of_another_run_is_left_alone_though_it_begins_like_ours(peer: Peer, file: Path) -> None:
    peer.plant(NAME, CONTENT[:1000])
    for again in (False, True):
        with pytest.raises(DeliveryRefused, match="exists"):
            put(peer, file, again=again)
    assert peer.files() == {NAME: CONTENT[:1000]}


@pytest.mark.rule("OB-209")
def test_what_got_through_without_our_knowing_counts_as_delivered(peer: Peer, file: Path) -> None:
    put(peer, file)
    put(peer, file, again=True)
    assert peer.files() == {NAME: CONTENT}


@pytest.mark.rule("OB-209")
def test_a_retry_replaces_what_its_own_first_attempt_left(remote: Peer, file: Path) -> None:
    remote.plant(f"{NAME}.tmp", CONTENT[:70_000] + b"x" * 1_000_000)
    put(remote, file, again=True)
    assert remote.files() == {NAME: CONTENT}


@pytest.mark.rule("OB-203")
def test_without_temporary_names_a_retry_replaces_only_the_beginning_of_its_own_file(remote: Peer, file: Path) -> None:
    remote.plant("a", CONTENT[:70_000])
    remote.plant("b", CONTENT[:70_000] + b"x")
    open_to_all(remote)
    put(remote, file, "a", again=True, tmp_rename=False)
    for again in (False, True):
        with pytest.raises(DeliveryRefused, match="exists"):
            put(remote, file, "b", again=again, tmp_rename=False)
    with pytest.raises(DeliveryRefused, match="exists"):
        put(remote, file, "a", tmp_rename=False)
    assert remote.files() == {"a": CONTENT, "b": CONTENT[:70_000] + b"x"}


def open_to_all(peer: Peer) -> None:
    """Lets the account of the server write what was planted."""
    if peer.root is not None:
        for path in peer.root.iterdir():
            path.chmod(0o666)


@pytest.mark.rule("OB-204")
def test_suffix_and_folder_for_finished_files(remote: Peer, file: Path) -> None:
    assert remote.root is not None
    done = remote.root / "done"
    done.mkdir()
    done.chmod(0o777)
    base = f"{remote.server.remote_path}/" if remote.server.remote_path else ""
    for tmp_rename in (True, False):
        name = f"f-{tmp_rename}"
        put(remote, file, name, tmp_rename=tmp_rename, suffix=".ready", move_to=f"{base}done")
        put(remote, file, name, again=True, tmp_rename=tmp_rename, suffix=".ready", move_to=f"{base}done")
        with pytest.raises(DeliveryRefused, match="exists"):
            put(remote, file, name, tmp_rename=tmp_rename, suffix=".ready", move_to=f"{base}done")
    assert remote.files() == {"done/f-True.ready": CONTENT, "done/f-False.ready": CONTENT}


@pytest.mark.rule("OB-203", "OB-205", "OB-198")
def test_whoever_looks_all_the_time_sees_only_whole_files(peer: Peer, tmp_path: Path) -> None:
    content = CONTENT * 30
    (tmp_path / "f").write_bytes(content)
    sent = 0
    with Polling(peer) as somebody, peer.open() as target:
        while sent < 3 or (somebody.looks < 5 and sent < 50):
            target.put(tmp_path / "f", f"f{sent}", run=RUN, again=False)
            sent += 1
    final = {name: sizes for name, sizes in somebody.seen.items() if not name.endswith(".tmp")}
    assert somebody.looks > 3
    assert final
    assert all(sizes == {len(content)} for sizes in final.values()), final
    assert len(peer.files()) == sent


@pytest.mark.parametrize("name", ["../up", "a/b", "..", "", "a\r\nDELE b", "a\0b"])
def test_a_name_that_is_none_reaches_no_server(name: str, file: Path) -> None:
    with peers.local_folder() as peer, pytest.raises(DeliveryRefused, match="name"):
        put(peer, file, name)


def test_a_file_that_is_gone_is_told(peer: Peer, tmp_path: Path) -> None:
    with pytest.raises(DeliveryFailed, match="cannot be read: No such file"):
        put(peer, tmp_path / "none")
    assert peer.files() == {}


@pytest.mark.rule("OB-206")
def test_nothing_is_sent_to_a_server_of_messages() -> None:
    with pytest.raises(DeliveryRefused, match="HTTP"):
        open_target(Server(1, "Hook", "HTTP", host="h"), {})


@pytest.mark.rule("OB-211")
def test_a_test_writes_and_deletes_and_may_be_repeated(peer: Peer) -> None:
    peer.plant(targets.WRITE_TEST, b"left by a test that was killed")
    open_to_all(peer)
    for _ in range(2):
        with peer.open() as target:
            target.test()
    assert peer.files() == {}


@pytest.mark.rule("OB-211")
def test_a_test_tells_a_folder_that_is_not_there(folder: Peer) -> None:
    changed: dict[str, Any] = (
        {"directory": f"{folder.root}/none"} if folder.server.type == "LOCAL" else {"remote_path": "none"}
    )
    with folder.open(**changed) as target, pytest.raises(DeliveryFailed, match=r"path.*none"):
        target.test()
    assert folder.files() == {}


@pytest.mark.rule("OB-211", "OB-212")
def test_a_test_tells_a_login_that_is_refused(peer: Peer) -> None:
    if peer.server.type == "LOCAL":
        pytest.skip("nobody logs in at a folder")
    wrong = peers.private("others") if "privateKey" in peer.secrets else "hunter2-hunter2"
    with peer.open(secrets=dict.fromkeys(peer.secrets, wrong)) as target, pytest.raises(DeliveryFailed) as caught:
        target.test()
    assert ": login: " in str(caught.value)
    assert wrong not in str(caught.value)


NETWORK = [
    Server(1, "A", "SFTP", host="127.0.0.1", user="u", port=22),
    Server(2, "B", "FTPS", host="127.0.0.1", user="u", port=21),
    Server(3, "C", "FTP", host="127.0.0.1", user="u", port=21),
    Server(4, "D", "S3", bucket="b", access_key="k", endpoint="http://127.0.0.1:80"),
]
SECRETS = {"password": "hunter2", "secretAccessKey": "hunter2"}


def at(server: Server, host: str, port: int, timeouts: Timeouts = peers.HASTY) -> Target:
    changed = replace(server, host=host, port=port)
    if server.type == "S3":
        changed = replace(server, endpoint=f"http://{host}:{port}")
    return open_target(changed, SECRETS, timeouts)


@pytest.mark.rule("OB-211")
@pytest.mark.parametrize("server", NETWORK, ids=lambda server: server.type)
def test_a_test_tells_the_steps_before_the_login(server: Server) -> None:
    with at(server, "no-such-host.invalid", 22) as target, pytest.raises(DeliveryFailed, match="DNS: no-such-host"):
        target.test()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = taken.getsockname()[1]
    with at(server, "127.0.0.1", nobody) as target, pytest.raises(DeliveryFailed, match=r"TCP: .*refuse"):
        target.test()


@pytest.mark.rule("OB-211")
@pytest.mark.parametrize("server", NETWORK, ids=lambda server: server.type)
def test_a_server_that_is_silent_is_not_waited_for(server: Server, file: Path) -> None:
    told = r"within 0\.4 s|silent for 0\.4 s"
    with peers.silent() as port, at(server, "127.0.0.1", port) as target, pytest.raises(DeliveryFailed, match=told):
        target.put(file, NAME, run=RUN, again=False)
