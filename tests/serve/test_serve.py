"""``openaudience serve`` as it is started by its operator: real processes, real ports, real files."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from openaudience.serve.doors import port_range
from runs.posting import Sink, free_port
from runs.posting import serving as mail_server
from serve.house import (
    PASSWORD,
    SETTINGS,
    Ledger,
    Serving,
    address,
    alive,
    data_file,
    data_name,
    drop,
    ledger,
    send_ftp,
    send_sftp,
    serving,
    until,
)

QUEUE = ("intake", "worker-production")
"""What takes and applies files; starts faster than everything."""
FIRST = "ftp_dpm_5001_1600000001.sync"


class All:
    """Everything that ``serve`` can run, with a mail server beside it."""

    def __init__(self, serve: Serving, ledger: Ledger, sink: Sink) -> None:
        self.serve = serve
        self.ledger = ledger
        self.sink = sink
        self.next = 100

    def file(self) -> dict[str, bytes]:
        """A file that was never sent."""
        self.next += 1
        return {data_name(self.next): data_file(self.next)}


@pytest.fixture(scope="module")
def everything(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[All]:
    home = Path(shutil.copytree(made, tmp_path_factory.mktemp("all") / "home"))
    sink, port = Sink(), free_port()
    settings = {"OPENAUDIENCE_MAIL_HOST": "127.0.0.1", "OPENAUDIENCE_MAIL_PORT": str(port)}
    with (
        mail_server(sink, port),
        serving(home, settings=settings) as serve,
        ledger(home) as opened,
    ):
        yield All(serve, opened, sink)
        # whatever the tests left it in
        assert serve.stop() < 10


# ---- everything runs ------------------------------------------------------------------------------------------


@pytest.mark.rule("OP-14")
def test_every_door_is_named_once_it_is_open_and_ready_comes_last(everything: All) -> None:
    said = everything.serve.said
    first = said[: said.index({"event": "ready"})]
    doors = [(one["door"], one.get("environment")) for one in first]
    both = ("production", "beta")
    assert sorted(doors, key=str) == sorted(
        [*((door, name) for door in ("ftp", "sftp", "folder") for name in both), ("edge", None), ("web", None)], key=str
    )
    for one in first:
        if "port" in one:
            with socket.create_connection((one["where"], one["port"]), timeout=10):
                pass
        else:
            assert Path(one["where"]).is_dir()


@pytest.mark.rule("IN-90", "OP-14")
def test_a_file_is_in_the_traits_within_seconds_of_its_arrival_at_any_door(everything: All) -> None:
    serve, found = everything.serve, everything.ledger
    senders: tuple[Callable[[str, bytes], None], ...] = (
        lambda name, content: send_ftp(address(serve, "ftp"), {name: content}),
        lambda name, content: send_sftp(address(serve, "sftp"), {name: content}),
        lambda name, content: drop(serve.home, name, content),
    )
    for send in senders:
        # a customer whom no other file of these tests puts into the trait
        number = len(found.names())
        name = f"ftp_dpm_5001_{1_800_000_000 + number}.sync"
        before = found.traits()[902]
        send(name, f"C-{199 - number}\t20\n".encode())
        found.wait_for([name], 15)
        assert found.traits()[902] == before + 1


@pytest.mark.rule("IN-01")
def test_beta_is_taken_too_and_changes_nothing_in_production(everything: All) -> None:
    before = len(everything.ledger.files())
    file = everything.file()
    with ledger(everything.serve.home, "beta") as beta:
        send_ftp(address(everything.serve, "ftp", "beta"), file)
        beta.wait_for(list(file))
    assert len(everything.ledger.files()) == before


@pytest.mark.rule("OP-41")
def test_health_readiness_and_metrics(everything: All) -> None:
    serve = everything.serve
    assert serve.get("/healthz") == (200, '{"status":"ok"}')
    file = everything.file()
    drop(serve.home, *next(iter(file.items())))
    everything.ledger.wait_for(list(file))
    status, text = serve.get("/readyz")
    document = json.loads(text)
    assert (status, document["ready"]) == (200, True), text
    assert set(document["checks"]) == {
        "disk", "catalog", "ftp", "sftp", "intake", "worker-production", "worker-beta", "mail", "export", "edge", "web",
    }  # fmt: skip
    files = everything.ledger.files()
    received = sum(receipt["records_received"] for receipt in everything.ledger.receipts())
    wanted = (
        f'openaudience_files{{environment="production",state="in_force"}} {len(files)}.0',
        f'openaudience_records_total{{class="received",environment="production"}} {received}.0',
        'openaudience_queue_age_seconds{environment="production"} 0.0',
        'openaudience_part_up{part="worker-production"} 1.0',
    )
    # counted every ten seconds
    until(lambda: all(line in serve.get("/metrics")[1] for line in wanted), f"metrics {wanted}")


@pytest.mark.rule("OP-41", "OP-44")
def test_a_killed_part_makes_it_unready_is_started_again_and_works(everything: All) -> None:
    serve = everything.serve
    old = serve.parts["ftp"].pid
    doors = sum(one.get("door") == "ftp" for one in serve.said)
    # the supervisor is held, so that it does not start the part again before anybody has looked
    serve.process.send_signal(signal.SIGSTOP)
    try:
        os.kill(old, signal.SIGKILL)
        until(lambda: not alive(old), "it is dead")
        # its threads may still be ending, and its lock is let go with the last of them
        until(lambda: serve.get("/readyz")[0] == 503, "the health page has noticed")
        _, text = serve.get("/readyz")
    finally:
        serve.process.send_signal(signal.SIGCONT)
    assert json.loads(text)["checks"]["ftp"] == {"ok": False, "why": "it does not run"}
    until(lambda: serve.get("/readyz")[0] == 200, "ready again")
    assert serve.parts["ftp"].pid != old
    # port 0 is another port now
    until(lambda: sum(one.get("door") == "ftp" for one in serve.said) == doors + 2, "the new ports are told")
    ended = [line for line in serve.logged() if line["event"] == "part-ended" and line["child"] == "ftp"]
    assert [line["pid"] for line in ended] == [old]
    file = everything.file()
    send_ftp(address(serve, "ftp"), file)
    everything.ledger.wait_for(list(file))


@pytest.mark.rule("UI-31")
def test_receipts_go_out_by_mail(everything: All) -> None:
    file = everything.file()
    drop(everything.serve.home, *next(iter(file.items())))
    everything.ledger.wait_for(list(file))
    (name,) = file

    def arrived() -> list[str]:
        texts = [str(mail.get_content()) for mail in everything.sink.messages]
        return [text for text in texts if name in text and "Status: Completed" in text]

    until(arrived, f"the receipt of {name} is at the mail server")
    assert len(arrived()) == 1
    until(
        lambda: json.loads(everything.serve.get("/readyz")[1])["mails"]["production"] == {"queued": 0, "failed": 0},
        "the health page knows of no mail that waits",
    )


@pytest.mark.rule("OP-41")
def test_logs_are_json_lines_without_what_is_in_the_files(everything: All) -> None:
    name = "ftp_dpm_5001_1750000000.sync"
    drop(everything.serve.home, name, b"C-17\t10,zebra7\nHERMIT-9\t10\nnothing but trouble\n")
    everything.ledger.wait_for([name])
    with pytest.raises(Exception, match="530"):
        send_ftp_as(address(everything.serve, "ftp"), "acme", "wrong secret")
    job = next(receipt["job"] for receipt in everything.ledger.receipts() if receipt["files"] == [name])
    until(lambda: any(line.get("job") == job for line in everything.serve.logged()), "the job is logged")
    lines = everything.serve.logged()
    for line in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert {"level", "event", "part"} <= line.keys()
    taken = next(line for line in lines if line["event"] == "taken" and line["path"].endswith(name))
    assert (taken["environment"], taken["door"], taken["partner"], taken["size"]) == (
        "production",
        "folder",
        "acme",
        47,
    )
    done = next(line for line in lines if line.get("job") == job)
    assert (done["event"], done["records_received"], done["stored_records"]) == ("job", 3, 1)
    text = everything.serve.log.read_text(encoding="utf-8")
    for secret in ("C-17", "zebra7", "HERMIT", "trouble", "broken1", f"{1:038d}", PASSWORD, "wrong secret"):
        assert secret not in text


def send_ftp_as(where: tuple[str, int], user: str, password: str) -> None:
    import ftplib

    with ftplib.FTP(timeout=20) as client:
        client.connect(*where)
        client.login(user, password)


@pytest.mark.rule("OP-42")
def test_commands_get_their_turn_beside_a_busy_serve(everything: All, tmp_path: Path) -> None:
    serve, found = everything.serve, everything.ledger
    sent: dict[str, bytes] = {}
    for _ in range(40):
        sent |= everything.file()
    mine = everything.file()
    ((name, content),) = mine.items()
    (tmp_path / name).write_bytes(content)
    for file in sent.items():
        drop(serve.home, *file)
    # while these are taken and applied
    status, job = run(serve.home, "ingest", str(tmp_path / name), "--json")
    assert status == 0, job
    # a job may have taken some of the others with it
    number = json.loads(job)[0]["job"]
    assert run(serve.home, "undo", str(number), "--file", name)[0] == 0
    found.wait_for(list(sent))
    states = {file.name: file.state for file in found.files()}
    assert states[name] == "withdrawn"
    assert {states[one] for one in sent} == {"in_force"}
    found.check()


def run(home: Path, *arguments: str) -> tuple[int, str]:
    """Exit status and output of a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "openaudience", "--home", str(home), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **SETTINGS},
    )
    return done.returncode, done.stdout + done.stderr


# ---- parts ----------------------------------------------------------------------------------------------------


@pytest.mark.rule("OP-14")
def test_only_one_part_runs_in_the_very_process(home: Path) -> None:
    with serving(home, "intake") as serve:
        assert {state.part: state.pid for state in serve.parts.values()} == {"intake": serve.process.pid}
        assert [one["door"] for one in serve.said if "door" in one] == ["folder", "folder"]
        assert serve.stop() < 10
    assert not list((home / "run").glob("*.json"))


@pytest.mark.rule("OP-14")
@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("fpt", "--only fpt: there is no such part; did you mean ftp?"),
        ("mail", "--only mail: it is switched off; mail.host is empty in openaudience.toml"),
    ],
)
def test_a_part_that_cannot_be_meant_is_refused(home: Path, part: str, words: str) -> None:
    status, text = run(home, "serve", "--only", part)
    assert (status, text.splitlines()) == (2, [f"error: {words}"])


def test_a_port_that_is_taken_is_named(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environ = {**os.environ, **SETTINGS, "OPENAUDIENCE_FTP_PORT": str(port), "OPENAUDIENCE_WEB_PORT": str(port)}
        for part in ("ftp", "web"):
            done = subprocess.run(
                [sys.executable, "-m", "openaudience", "--home", str(home), "serve", "--only", part],
                capture_output=True,
                text=True,
                timeout=60,
                env=environ,
            )
            assert done.returncode == 3
            assert "Traceback" not in done.stderr
            errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1
            assert f"127.0.0.1:{port}" in errors[0]
            assert "port" in errors[0].replace(f"127.0.0.1:{port}", "")


@pytest.mark.long
def test_serve_ends_with_the_reason_when_a_part_cannot_start(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        serve = Serving(home, "web", "intake", settings={"OPENAUDIENCE_WEB_PORT": str(port)})
        try:
            assert serve.process.wait(60) == 3
            last = serve.log.read_text(encoding="utf-8").splitlines()[-1]
            assert last.startswith("error: serve: the part web cannot start: ")
            assert f"127.0.0.1:{port}" in last
            assert not serve.children()
        finally:
            serve.end()


@pytest.mark.parametrize("text", ["", "x", "2000-1000", "80-90", "50000-70000", "-"])
def test_a_range_of_ports_that_means_nothing_is_refused(text: str) -> None:
    from openaudience.errors import InputError

    with pytest.raises(InputError, match=r"ftp\.passive_ports"):
        port_range("ftp.passive_ports", text)


# ---- stopping and dying -----------------------------------------------------------------------------------------


@pytest.mark.rule("OP-42")
def test_stopped_in_the_middle_of_a_big_job_it_is_gone_in_ten_seconds_and_goes_on_at_the_next_start(home: Path) -> None:
    lines = 300_000
    # a hundred known customers; the others take as long
    content = "".join(f"C-{number}\t10,k{number}\n" for number in range(100, 100 + lines)).encode()
    with ledger(home) as found:
        with serving(home, *QUEUE) as serve:
            drop(home, FIRST, content)
            until((home / "production" / "work" / "run").exists, "the run has begun")
            # nobody can decide anything now, so the run is in the middle for as long as this test likes
            with closing(sqlite3.connect(home / "catalog.db", timeout=5, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                assert FIRST not in found.names()
                assert serve.stop() < 10
                other.execute("ROLLBACK")
            assert "stopped-in-the-middle" in {line["event"] for line in serve.logged()}
        assert FIRST not in found.names()
        with serving(home, *QUEUE) as serve:
            found.wait_for([FIRST])
            assert serve.stop() < 10
        figures = found.figures()[FIRST][1]
        assert (figures["received"], figures["realized"], figures["reason_counts"]) == (
            lines,
            100,
            {"not_synced": lines - 100},
        )
        assert found.traits()[901] == 100
        found.check()


@pytest.mark.rule("OP-42")
def test_two_serves_on_one_home_take_each_file_once_and_one_is_enough(home: Path) -> None:
    files = {data_name(number): data_file(number) for number in range(60)}
    some, others = list(files)[:50], list(files)[50:]
    with ExitStack() as stack:
        found = stack.enter_context(ledger(home))
        both = [Serving(home, *QUEUE, name=f"serve{number}") for number in (1, 2)]
        for serve in both:
            stack.callback(serve.end)
        for serve in both:
            serve.wait_ready()
        for name in some:
            drop(home, name, files[name])
        found.wait_for(some)
        assert len(found.figures()) == 1 + len(some)
        both[0].kill()
        for name in others:
            drop(home, name, files[name])
        found.wait_for(others)
        assert both[1].stop() < 10
        assert len(found.figures()) == 1 + len(files)
        found.check()


@pytest.mark.rule("OP-42")
def test_a_killed_supervisor_leaves_no_process(home: Path) -> None:
    with serving(home, "sftp", *QUEUE) as serve:
        children = serve.children()
        assert len(children) == 3
        serve.process.kill()
        serve.process.wait()
        until(lambda: not any(map(alive, children)), "the parts have noticed", 10)


# ---- what cannot be done now ------------------------------------------------------------------------------------


def why(serve: Serving, check: str) -> str:
    """What the readiness page says is wrong with something; empty: nothing."""
    return json.loads(serve.get("/readyz")[1])["checks"][check]["why"] or ""


@pytest.mark.rule("OP-44")
def test_a_locked_catalog_is_told_and_the_work_goes_on_after_it(home: Path) -> None:
    with ledger(home) as found, serving(home, "web", *QUEUE) as serve:
        with closing(sqlite3.connect(home / "catalog.db", timeout=5, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            drop(home, FIRST, b"C-1\t10\n")
            until(lambda: "catalog" in why(serve, "intake"), "it is told")
            assert serve.get("/readyz")[0] == 503
            assert serve.get("/healthz")[0] == 200
            other.execute("ROLLBACK")
        found.wait_for([FIRST])
        until(lambda: not why(serve, "intake"), "it is well again")
        events = [line["event"] for line in serve.logged() if line["part"] == "intake"]
        # said once, not once a try
        assert events.count("cannot-work") == 1
        assert events.count("works-again") == 1
