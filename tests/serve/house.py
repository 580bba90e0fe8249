"""The real ``openaudience serve`` on a home of its own: starts it, sends to it, waits for what it does, ends it."""

from __future__ import annotations

import asyncio
import ftplib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncssh
import yaml
from sqlalchemy import select

from openaudience.catalog.ledger import FileRow, JobRow, ReceiptRow
from openaudience.cli import main
from openaudience.home import Home
from openaudience.runs.checking import check
from openaudience.runs.receipts import receipts_of
from openaudience.runs.site import Site
from openaudience.serve.state import State, states

PARTNER, PASSWORD = "acme", "a long secret"
PATIENCE = 40.0
CUSTOMERS = 200
SYNC = "adobe_id_0_5001_1600000000.sync"

SETTINGS = {
    "OPENAUDIENCE_FTP_PORT": "0",
    "OPENAUDIENCE_FTP_BETA_PORT": "0",
    # below the ports that systems give to clients
    "OPENAUDIENCE_FTP_PASSIVE_PORTS": "21000-21999",
    "OPENAUDIENCE_FTP_BETA_PASSIVE_PORTS": "22000-22999",
    "OPENAUDIENCE_SFTP_PORT": "0",
    "OPENAUDIENCE_SFTP_BETA_PORT": "0",
    "OPENAUDIENCE_WEB_PORT": "0",
    "OPENAUDIENCE_EDGE_PORT": "0",
    "OPENAUDIENCE_DROPOFF_SETTLE_SECONDS": "1",
    "OPENAUDIENCE_DROPOFF_LINGER_SECONDS": "0",
}
"""Any free port, and no waiting longer than the tests need."""


def until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Waits for what other processes do."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"after {patience} s still not so: {what}"
        time.sleep(0.02)


def _status(pid: int) -> tuple[str, int]:
    """State and parent of a process, as the system tells them; of none: dead."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return words[0], int(words[1])


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and only not yet cleared away does not."""
    return _status(pid)[0] not in "XZ"


def device(number: int) -> str:
    return f"{number:038d}"


def make_home(home: Path) -> Path:
    """A new home with two traits, one drop-off user and an ID sync applied: customers C-0 … C-199 are known."""

    def trait(sid: int, rule: str) -> dict[str, object]:
        kind = {"traitType": "ON_BOARDED_TRAIT", "dataSourceId": 5001, "traitRule": rule, "ttl": 120}
        return {"sid": sid, "name": f"T{sid}", **kind}

    source = {
        "dataSourceId": 5001,
        "name": "CRM",
        "idType": "COOKIE",
        "inboundMailingList": ["crm@acme.example"],
    }
    partner = {
        "pid": 1001,
        "name": PARTNER,
        "dropoff": {"users": [{"name": PARTNER, "password_file": "password"}]},
        "dataSources": [source],
        "traits": [trait(901, 'ic == "10"'), trait(902, 'ic == "20"')],
    }
    (home.parent / "password").write_text(PASSWORD, encoding="utf-8")
    workspace = home.parent / "workspace.yaml"
    workspace.write_text(yaml.safe_dump({"partners": [partner]}), encoding="utf-8")
    sync = home.parent / SYNC
    sync.write_text("".join(f"{device(number + 1)}\tC-{number}\n" for number in range(CUSTOMERS)), encoding="utf-8")
    for arguments in (["init"], ["workspace", "apply", str(workspace)], ["ingest", str(sync)]):
        assert main(["--home", str(home), *arguments]) == 0, arguments
    return home


def data_name(number: int) -> str:
    """Names in the order of their numbers, all of one data source."""
    return f"ftp_dpm_5001_{1_700_000_000 + number}.sync"


def data_file(number: int, lines: int = 4) -> bytes:
    """A file like no other: some known customers, one unknown, one line with a mistake."""
    known = "".join(
        f"C-{(number * 7 + line * 13) % CUSTOMERS}\t{10 + 10 * (line % 2)},n{number}x{line}\n" for line in range(lines)
    )
    return f"{known}U-{number}\t10\nbroken{number}\n".encode()


class Ledger:
    """What the catalog of a home says about production, read while others write it."""

    def __init__(self, home: Path, environment: str = "production") -> None:
        self.home = home
        self._opened = Home.open(home)
        self.site = Site(self._opened, environment)

    def close(self) -> None:
        self.site.close()
        self._opened.close()

    def files(self) -> list[FileRow]:
        with self.site.reading() as session:
            query = select(FileRow).where(FileRow.environment == self.site.name).order_by(FileRow.file)
            return list(session.scalars(query))

    def names(self) -> set[str]:
        """Names of files that have their receipt."""
        with self.site.reading() as session:
            query = (
                select(FileRow.name)
                .join(JobRow, JobRow.job == FileRow.job)
                .where(FileRow.environment == self.site.name, JobRow.visible.is_(True))
            )
            return set(session.scalars(query))

    def receipts(self) -> list[dict[str, Any]]:
        with self.site.reading() as session:
            return [shown.document() for shown in receipts_of(session, self.site.name)]

    def wait_for(self, names: Sequence[str], patience: float = PATIENCE) -> None:
        """Until all these files have their receipts."""
        until(lambda: self.names().issuperset(names), f"receipts of {list(names)[:3]} …", patience)

    def hidden(self) -> list[tuple[int, int]]:
        """Receipts that are decided and that nobody can see yet: receipt and job."""
        with self.site.reading() as session:
            query = select(ReceiptRow.receipt, ReceiptRow.job).where(
                ReceiptRow.environment == self.site.name, ReceiptRow.visible.is_(False)
            )
            return [(receipt, job) for receipt, job in session.execute(query)]

    def figures(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """State and figures of each file, by name; fails if a name was taken twice or has several receipts.

        Without those that only wait, and without warnings, which tell in which order files came.
        """
        receipts = [name for receipt in self.receipts() for name in receipt["files"]]
        files = [file for file in self.files() if file.state != "waiting"]
        assert sorted(receipts) == sorted(file.name for file in files), "not one receipt a file"
        assert len(set(receipts)) == len(receipts), "a file was taken twice"
        outcomes = {file.name: json.loads(file.outcome or "{}") for file in files}
        return {file.name: (file.state, {**outcomes[file.name], "warnings": None}) for file in files}

    def traits(self) -> dict[int, int]:
        """Devices in each trait: what all files together came to."""
        from openaudience.runs.inquiry import Inquiry

        return {one["sid"]: one["population"]["device"] for one in Inquiry(self.site).trait_documents()}

    def check(self) -> None:
        """Proves the index, the counters and the folders."""
        report = check(self.site, repair=False)
        assert report.good, report.lines()


@contextmanager
def ledger(home: Path, environment: str = "production") -> Iterator[Ledger]:
    opened = Ledger(home, environment)
    try:
        yield opened
    finally:
        opened.close()


class Serving:
    """A running ``openaudience serve --json``. ``said``: its lines on standard output; ``log``: where its log goes."""

    def __init__(self, home: Path, *only: str, settings: Mapping[str, str] | None = None, name: str = "serve") -> None:
        self.home = home
        self.log = home.parent / f"{name}.log"
        self.said: list[dict[str, Any]] = []
        arguments = [word for part in only for word in ("--only", part)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "openaudience", "--home", str(home), "serve", "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **SETTINGS, **(settings or {})},
        )
        self._readers = [threading.Thread(target=one, daemon=True) for one in (self._read, self._keep_log)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(json.loads(line))

    def _keep_log(self) -> None:
        # through a pipe: what a test does to the files of the parts may not happen to their log
        assert self.process.stderr is not None
        with self.log.open("ab", buffering=0) as log:
            for line in self.process.stderr:
                log.write(line)

    def _read_all(self) -> None:
        for reader in self._readers:
            reader.join(10)

    def wait_ready(self, patience: float = 60.0) -> Serving:
        def ready() -> bool:
            assert self.process.poll() is None, f"serve ended by itself: {self.log.read_text()[-2000:]}"
            return {"event": "ready"} in self.said

        until(ready, "serve is ready", patience)
        return self

    @property
    def parts(self) -> dict[str, State]:
        """The parts of the home that are alive."""
        return {state.part: state for state in states(self.home)}

    def door(self, door: str, environment: str | None = "production") -> dict[str, Any]:
        """What was said last about a door."""
        return [one for one in self.said if one.get("door") == door and one.get("environment") == environment][-1]

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def get(self, page: str) -> tuple[int, str]:
        """Status and text of a page of the part ``web``."""
        web = self.door("web", None)
        try:
            with urllib.request.urlopen(f"http://{web['where']}:{web['port']}{page}", timeout=20) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def children(self) -> list[int]:
        """Processes of parts that this supervisor started and that live."""
        return [state.pid for state in states(self.home) if _status(state.pid)[1] == self.process.pid]

    def stop(self) -> float:
        """Asks it to stop; gives the seconds that it took. Fails unless it ended well and left no process."""
        children = self.children()
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(30)
        took = time.monotonic() - begun
        self._read_all()
        assert status == 0, f"serve ended with {status}: {self.log.read_text()[-2000:]}"
        assert not [pid for pid in children if alive(pid)], "processes were left behind"
        return took

    def kill(self) -> None:
        """kill -9 of the supervisor, and waits until its parts have noticed."""
        children = self.children()
        self.process.kill()
        self.process.wait()
        self._read_all()
        until(lambda: not any(map(alive, children)), "the parts have gone with their supervisor", 20)

    def end(self) -> None:
        """Whatever the test came to: nothing of it runs on."""
        children = self.children()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        # they end by themselves when their supervisor is gone, unless that is what is broken
        with suppress(AssertionError):
            until(lambda: not any(map(alive, children)), "the parts have gone with their supervisor", 12)
        for pid in children:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        self._read_all()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


@contextmanager
def serving(
    home: Path, *only: str, settings: Mapping[str, str] | None = None, name: str = "serve"
) -> Iterator[Serving]:
    """``serve`` that is ready; ended in the end."""
    started = Serving(home, *only, settings=settings, name=name)
    try:
        yield started.wait_ready()
    finally:
        started.end()


# ---- senders ---------------------------------------------------------------------------------------------------


def drop(home: Path, name: str, content: bytes, environment: str = "production") -> None:
    """Into the local folder, as IN-05 advises: under a name of an unfinished file, then renamed."""
    folder = home / environment / "folder" / PARTNER
    folder.mkdir(parents=True, exist_ok=True)
    half = folder / f".{name}"
    half.write_bytes(content)
    half.rename(folder / name)


def send_ftp(address: tuple[str, int], files: Mapping[str, bytes]) -> None:
    with ftplib.FTP(timeout=20) as client:
        client.connect(*address)
        client.login(PARTNER, PASSWORD)
        for name, content in files.items():
            client.storbinary(f"STOR {name}", io.BytesIO(content))


def send_sftp(address: tuple[str, int], files: Mapping[str, bytes]) -> None:
    async def session() -> None:
        host, port = address
        async with (
            asyncssh.connect(
                host,
                port,
                username=PARTNER,
                password=PASSWORD,
                known_hosts=None,
                config=None,
                login_timeout=20,
                keepalive_interval=5,
            ) as link,
            link.start_sftp_client() as client,
        ):
            for name, content in files.items():
                async with client.open(name, "wb") as file:
                    await file.write(content)

    asyncio.run(asyncio.wait_for(session(), 30))


def address(serve: Serving, door: str, environment: str = "production") -> tuple[str, int]:
    found = serve.door(door, environment)
    return found["where"], found["port"]
