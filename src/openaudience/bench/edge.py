"""The HTTP edge at full load and at half of it, beside the same server answering nothing; and its store alone (OP-52).

The store alone is asked three things and told three things a call, in groups, by one and by two processes. The edge
is ``serve --only edge`` of a new installation: half the calls sync an ID, half are events with an ID and signals.
Every answered call must be in its log.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openaudience.bench import measure
from openaudience.bench.load import Address, Loaded, load
from openaudience.calls.model import Call, Origin, Pair, Realized
from openaudience.calls.sqlite import SqliteCalls
from openaudience.calls.store import View, Work
from openaudience.errors import SystemFailure, UsageError
from openaudience.home import Home
from openaudience.runs.site import Site

GROUPS = (1, 8, 32)
STORE_PROCESSES = (1, 2)
VISITORS = 100_000
REQUESTS = 40_000
"""Different requests, sent over and over."""
WARM_SECONDS = 1.0
START_SECONDS = 60
PARTNER, COOKIE_SOURCE, CRM_SOURCE = 900, 8100, 7001
RULES = 50
HOST = "127.0.0.1"
OURS, NOTHING = "edge", "nothing"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EdgePlan:
    """What to measure; ``processes`` of the server are the sizes, ``seconds`` those of one measurement."""

    processes: tuple[int, ...] = (1, 2)
    lines: int = 32
    seconds: float = 5.0
    runs: int = 3
    seed: int = 2026

    def checked(self) -> EdgePlan:
        """The same; UsageError names what is wrong."""
        if not self.processes or min(*self.processes, self.lines, self.runs) < 1 or self.seconds <= 0:
            raise UsageError("bench: processes, lines and runs must be whole numbers from 1 on, seconds more than 0")
        return self


@dataclass(frozen=True, slots=True)
class EdgeMeasure:
    """Medians of the runs. ``p50`` and ``p99``: seconds until an answer (the store: until a group is durable).
    ``server`` and ``generator``: how many processors they used."""

    runner: str
    processes: int
    question: str
    rate: float
    p50: float
    p99: float
    server: float
    generator: float | None


def measure_edge(plan: EdgePlan, say: Say) -> list[EdgeMeasure]:
    """The store, then the server answering nothing and the edge, each in a temporary folder, removed afterwards."""
    plan.checked()
    results: list[EdgeMeasure] = []
    with tempfile.TemporaryDirectory(prefix="openaudience-bench-") as name:
        folder = Path(name)
        for processes, group in itertools.product(STORE_PROCESSES, GROUPS):
            say(f"store alone, groups of {group}, {processes} process(es)")
            results.append(_store(plan, folder, processes, group))
        requests = made_requests(plan.seed)
        prepare(folder)
        for processes in plan.processes:
            for server in (bare_server(folder, processes), edge_server(folder, processes)):
                results += _Server(plan, folder, processes, server, requests, say).measured()
    return results


# the store alone


def _store(plan: EdgePlan, folder: Path, processes: int, group: int) -> EdgeMeasure:
    runs = []
    for run in range(plan.runs):
        file = folder / f"store-{processes}-{group}-{run}.db"
        SqliteCalls(file, seeds=(1, 2)).close()
        commands = [
            [sys.executable, "-m", __name__, "store", str(file), str(group), str(plan.seconds), str(plan.seed + at)]
            for at in range(processes)
        ]
        with ExitStack() as ended:
            started = [
                ended.enter_context(subprocess.Popen(one, stdout=subprocess.PIPE, text=True)) for one in commands
            ]
            outputs = [process.communicate()[0] for process in started]
        if any(process.returncode for process in started):
            raise SystemFailure("bench: a process that writes to the store failed; its words stand above")
        runs.append([json.loads(output) for output in outputs])
    return EdgeMeasure(
        "store",
        processes,
        f"groups of {group}",
        statistics.median(sum(one["rate"] for one in run) for run in runs),
        statistics.median(statistics.median(one["p50"] for one in run) for run in runs),
        statistics.median(max(one["p99"] for one in run) for run in runs),
        statistics.median(sum(one["processors"] for one in run) for run in runs),
        None,
    )


def write_calls(file: Path, group: int, seconds: float, seed: int) -> dict[str, float]:
    """Answers calls for some seconds: calls a second, seconds of a group at two percentiles, processors used."""
    draw = random.Random(seed)
    store = SqliteCalls(file, seeds=(1, 2))
    took: list[float] = []
    clock = measure.Clock()
    started = now = time.perf_counter()
    while now < started + seconds:
        works = [_work(draw) for _ in range(group)]
        begun = time.perf_counter()
        results: list[Exception | None] = store.group(works)
        now = time.perf_counter()
        took.append(now - begun)
        if any(results):
            raise SystemFailure(f"bench: the store refused a call: {next(filter(None, results))}")
    taken = clock.taken()
    store.close()
    took.sort()
    return {
        "rate": len(took) * group / (now - started),
        "p50": took[len(took) // 2],
        "p99": took[len(took) * 99 // 100],
        "processors": taken.processor / taken.seconds,
    }


def _work(draw: random.Random) -> Work[None]:
    """Three reads, and three writes: the call and what finds it by each of two IDs."""
    uuid, ident = _visitor(draw.randrange(VISITORS))

    def work(view: View) -> tuple[Call, None]:
        view.opted_out(PARTNER, CRM_SOURCE, ident)
        view.opted_out(PARTNER, 0, uuid)
        view.device_of(CRM_SOURCE, ident, 0)
        pairs = (Pair(CRM_SOURCE, ident, 1),)
        return Call(1_772_000_000, PARTNER, uuid, True, Origin.EVENT, pairs, (Realized(4001),), customers=pairs), None

    return work


def _visitor(number: int) -> tuple[str, str]:
    """The device of a visitor, and its user ID."""
    return f"{number + 1:038d}", f"u{number:08d}"


# the servers


@dataclass(frozen=True, slots=True)
class _Program:
    """A server as it is started. ``home``: where its calls are, None for one that keeps nothing."""

    runner: str
    commands: tuple[tuple[str, ...], ...]
    environ: dict[str, str]
    address: Address
    home: Path | None


def prepare(folder: Path) -> None:
    """Makes an installation ``home`` in the folder with a partner, its sources and rule-based traits."""
    (folder / "workspace.json").write_text(workspace())
    for arguments in (("init",), ("workspace", "apply", str(folder / "workspace.json"))):
        measure.run(_ours(*arguments), {**os.environ, "OPENAUDIENCE_HOME": str(folder / "home")})


def workspace() -> str:
    """A workspace file (JSON)."""
    traits = [
        {
            "sid": 4000 + at,
            "name": f"Rule {at}",
            "traitType": "RULE_BASED_TRAIT",
            "dataSourceId": COOKIE_SOURCE,
            "traitRule": f'c_step == "step{at}" AND c_price > {at}',
        }
        for at in range(RULES)
    ]
    sources = [
        {"dataSourceId": COOKIE_SOURCE, "name": "Browsers", "idType": "COOKIE"},
        {
            "dataSourceId": CRM_SOURCE,
            "name": "Customers",
            "idType": "CROSS_DEVICE",
            "integrationCode": "crm",
            "supportsAuthenticatedProfile": True,
        },
    ]
    partner = {"pid": PARTNER, "name": "bench", "dataSources": sources, "traits": traits}
    return json.dumps({"partners": [partner]})


def made_requests(seed: int) -> list[bytes]:
    """Syncs and events of many visitors, in turn; every fourth event is posted."""
    draw = random.Random(seed)
    found = []
    for at in range(REQUESTS):
        uuid, ident = _visitor(draw.randrange(VISITORS))
        if at % 2:
            found.append(_request("dpm", uuid, f"/ibs:dpid={COOKIE_SOURCE}&dpuuid={ident}"))
            continue
        signals = (
            f"d_cid={CRM_SOURCE}%01c{ident}%011&c_step=step{draw.randrange(2 * RULES)}&c_price={draw.randrange(100)}"
            f"&c_page=%2Fshop%2F{draw.randrange(500)}&c_colour=teal&d_rtbd=json"
        )
        if at % 8:
            found.append(_request("bench", uuid, f"/event?{signals}"))
        else:
            found.append(_request("bench", uuid, "/event", signals))
    return found


def _request(label: str, uuid: str, target: str, body: str = "") -> bytes:
    head = f"{'POST' if body else 'GET'} {target} HTTP/1.1\r\nHost: {label}.demdex.net\r\nCookie: demdex={uuid}\r\n"
    if body:
        head += f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n"
    return f"{head}User-Agent: Mozilla/5.0 (bench)\r\nAccept: */*\r\n\r\n{body}".encode()


def edge_server(folder: Path, processes: int) -> _Program:
    """``serve --only edge`` of the prepared installation."""
    port = _free_port()
    settings = {"LISTEN": HOST, "PORT": str(port), "WORKERS": str(processes), "DENY_CALLS": "0"}
    environ = {f"OPENAUDIENCE_EDGE_{key}": value for key, value in settings.items()}
    home = folder / "home"
    return _Program(
        OURS,
        (_ours("serve", "--only", "edge"),),
        {**os.environ, **environ, "OPENAUDIENCE_HOME": str(home)},
        (HOST, port),
        home,
    )


def bare_server(folder: Path, processes: int) -> _Program:
    """The HTTP server of the edge with an application that does nothing."""
    port = _free_port()
    command = (sys.executable, "-m", __name__, "nothing", str(port))
    return _Program(NOTHING, (command,) * processes, dict(os.environ), (HOST, port), None)


def _ours(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", "from openaudience.cli import run; run()", *arguments)


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as found:
        port: int = found.getsockname()[1]
        return port


class _Server:
    """A server under load."""

    def __init__(
        self, plan: EdgePlan, folder: Path, processes: int, program: _Program, requests: Sequence[bytes], say: Say
    ) -> None:
        self._plan = plan
        self._words = folder / f"{program.runner}-{processes}.txt"
        self._processes = processes
        self._program = program
        self._requests = itertools.cycle(requests)
        self._say = say
        self._answered = 0
        self._pids: list[int] = []

    def measured(self) -> list[EdgeMeasure]:
        before = self._logged()
        with self._running():
            self._load(WARM_SECONDS, None)
            full = self._runs("full load", None)
            half = self._runs("half of it", full.rate / 2)
        if self._program.home is not None and self._logged() - before != self._answered:
            raise SystemFailure(
                f"bench: {self._answered} calls were answered, {self._logged() - before} are in the log of the edge"
            )
        return [full, half]

    def _runs(self, question: str, rate: float | None) -> EdgeMeasure:
        runs = []
        for run in range(self._plan.runs):
            self._say(f"{self._program.runner}, {self._processes} process(es), {question}, run {run + 1}")
            used = self._used()
            loaded = self._load(self._plan.seconds, rate)
            runs.append((loaded, (self._used() - used) / loaded.seconds))
        return EdgeMeasure(
            self._program.runner,
            self._processes,
            question,
            statistics.median(one.answered / one.seconds for one, _ in runs),
            statistics.median(one.p50 for one, _ in runs),
            statistics.median(one.p99 for one, _ in runs),
            statistics.median(server for _, server in runs),
            statistics.median(one.processor / one.seconds for one, _ in runs),
        )

    def _load(self, seconds: float, rate: float | None) -> Loaded:
        loaded = load(
            self._program.address,
            self._requests,
            lines=self._plan.lines,
            seconds=seconds,
            rate=rate,
            fault=_fault,
        )
        self._answered += loaded.answered
        return loaded

    def _used(self) -> float:
        """Seconds of processor that the server's processes used, 0 where /proc tells nothing."""
        return sum(measure.processor(pid) for root in self._pids for pid in measure.family(root))

    def _logged(self) -> int:
        """The number of the last call in the log."""
        if self._program.home is None:
            return 0
        with Home.open(self._program.home) as home:
            site = Site(home, "production")
            try:
                return site.calls.newest()
            finally:
                site.close()

    @contextmanager
    def _running(self) -> Iterator[None]:
        with self._words.open("wb") as words:
            started = [
                subprocess.Popen(command, env=self._program.environ, stdout=words, stderr=words)
                for command in self._program.commands
            ]
        try:
            self._pids = [process.pid for process in started]
            self._await(started)
            yield
        finally:
            for process in started:
                process.terminate()
            for process in started:
                try:
                    process.wait(START_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _await(self, started: Sequence[subprocess.Popen[bytes]]) -> None:
        """Until the address answers. Raises SystemFailure with the server's words if it does not."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(self._program.address, timeout=1).close()
                return
            except OSError:
                time.sleep(0.05)
            if time.monotonic() > deadline or any(process.poll() is not None for process in started):
                words = self._words.read_text(errors="replace")[-2000:]
                raise SystemFailure(f"bench: the server {self._program.runner} did not start: {words}")


def _fault(answer: bytes) -> str:
    return "an error" if b"\r\nx-error:" in answer[: answer.find(b"\r\n\r\n")].lower() else ""


PIXEL = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002014c003b")


async def nothing(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    """An ASGI application that answers a picture to everything."""
    headers = [(b"content-type", b"image/gif"), (b"content-length", str(len(PIXEL)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": PIXEL})


def serve_nothing(port: int) -> None:
    """Runs that application as ``serve`` runs the edge."""
    import uvicorn

    with socket.create_server((HOST, port), backlog=1024, reuse_port=True) as listening:
        config = uvicorn.Config(
            nothing,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            loop="uvloop",
            http="httptools",
        )
        uvicorn.Server(config).run(sockets=[listening])


# what is shown


def table(results: Sequence[EdgeMeasure]) -> str:
    """One Markdown table."""
    lines = [
        "| runner | processes | question | calls/s | p50 ms | p99 ms | processors | of the generator |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in results:
        generator = "" if one.generator is None else f"{one.generator:.2f}"
        lines.append(
            f"| {one.runner} | {one.processes} | {one.question} | {one.rate:,.0f} | {one.p50 * 1e3:.2f} "
            f"| {one.p99 * 1e3:.2f} | {one.server:.2f} | {generator} |"
        )
    return "\n".join(lines) + "\n"


def documents(results: Sequence[EdgeMeasure]) -> list[dict[str, Any]]:
    """The results for ``--json``."""
    return [asdict(one) for one in results]


def told(plan: EdgePlan) -> str:
    """What was measured, for the sentence about the machine."""
    return (
        f"medians of {plan.runs} runs of {plan.seconds:g} s, {plan.lines} connections, the generator on the same "
        f"machine, {VISITORS:,} visitors, {RULES} rules, seed {plan.seed}"
    )


if __name__ == "__main__":
    if sys.argv[1] == "store":
        file, group, seconds, seed = sys.argv[2:]
        print(json.dumps(write_calls(Path(file), int(group), float(seconds), int(seed))))
    else:
        serve_nothing(int(sys.argv[2]))
