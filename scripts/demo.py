"""The main job on sample files, through the real command line. Ends by itself, and leaves nothing behind.

    make demo             run it
    KEEP=1 make demo      keep the installation that it made, to look around in
    SERVE=1 make demo     keep its server up until Ctrl-C

Every command is shown as you would type it. The files and what their receipts must say are in ``examples/``.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples" / "demo"))

import doors  # noqa: E402  (found by the line above)
import drops  # noqa: E402

PROGRAM = shutil.which("openaudience", path=str(Path(sys.executable).parent)) or "openaudience"


class Demo:
    """One throw-away installation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.environ = {**os.environ, "OPENAUDIENCE_HOME": str(self.home), "COLUMNS": "110"}

    def say(self, text: str) -> None:
        print(f"\n── {text}", flush=True)

    def run(self, *arguments: str | Path, status: int = 0) -> None:
        """Show and run one command; ``status`` is the exit status that it must have."""
        shown = " ".join(
            quoted(str(argument).replace(f"{self.folder}/", "").replace(f"{ROOT}/", "")) for argument in arguments
        )
        print(f"\n$ openaudience {shown}", flush=True)
        done = subprocess.run([PROGRAM, *map(str, arguments)], env=self.environ, cwd=ROOT, check=False)
        if done.returncode != status:
            raise SystemExit(f"error: the command above ended with status {done.returncode}, expected {status}")

    def answer(self, *arguments: str | Path) -> list[dict[str, object]]:
        """The JSON document that a command prints; not shown."""
        done = subprocess.run(
            [PROGRAM, *map(str, arguments), "--json"], env=self.environ, cwd=ROOT, check=True, stdout=subprocess.PIPE
        )
        result: list[dict[str, object]] = json.loads(done.stdout)
        return result

    def encrypt(self, text: bytes, target: Path) -> bool:
        """Encrypt for the installation, as a sender would; False where there is no gpg."""
        if shutil.which("gpg") is None:
            return False
        public_key = exported_key(self.home)
        sender = Path(tempfile.mkdtemp(prefix="oa-gpg-"))
        sender.chmod(0o700)
        gpg = ["gpg", "--homedir", str(sender), "--batch", "--quiet", "--no-tty"]
        try:
            subprocess.run([*gpg, "--import"], input=public_key, check=True, stderr=subprocess.DEVNULL)
            listing = subprocess.run(
                [*gpg, "--with-colons", "--list-keys"], check=True, capture_output=True, text=True
            ).stdout
            fingerprint = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))
            print(f"\n$ gpg --encrypt --cipher-algo AES256 -r {fingerprint[-16:]} -o {target.name} …", flush=True)
            subprocess.run(
                [
                    *gpg,
                    "--trust-model",
                    "always",
                    "--cipher-algo",
                    "AES256",
                    "-r",
                    fingerprint,
                    "-o",
                    str(target),
                    "-e",
                ],
                input=text,
                check=True,
            )
        finally:
            subprocess.run(["gpgconf", "--homedir", str(sender), "--kill", "all"], check=False, capture_output=True)
            shutil.rmtree(sender, ignore_errors=True)
        return True


def quoted(argument: str) -> str:
    return f"'{argument}'" if " " in argument else argument


def exported_key(home: Path) -> bytes:
    """The installation's public key, which it gives to its senders."""
    for file in sorted((home / "keys").rglob("*.asc")):
        return file.read_bytes()
    for ring in sorted((home / "keys").rglob("pubring.kbx")):
        return subprocess.run(
            ["gpg", "--homedir", str(ring.parent), "--batch", "--quiet", "--no-tty", "--armor", "--export"],
            check=True,
            stdout=subprocess.PIPE,
        ).stdout
    raise SystemExit(f"error: no public key under {home / 'keys'}; was the installation made by `openaudience init`?")


def walk(demo: Demo) -> None:
    files = drops.write_plain(demo.folder)

    demo.say("A new installation, and what the company keeps: three data sources, nine traits.")
    demo.run("init")
    demo.run("workspace", "apply", drops.WORKSPACE)

    demo.say("Three published sample files in one drop: two ID syncs that chain, and an overwrite.")
    demo.run("ingest", *(files[name] for name in (drops.SAMPLE_SYNC, drops.SAMPLE_CHAIN, drops.SAMPLE_DATA)))

    demo.say("Coded and key-value records, one file gzipped and one encrypted, form one job.")
    encrypted = demo.folder / drops.ENCRYPTED
    batch = [files[drops.GZIPPED]]
    if demo.encrypt(drops.ENCRYPTED_TEXT, encrypted):
        batch.append(encrypted)
    else:
        print("\n(gpg is not installed here: the encrypted file is left out)")
    demo.run("ingest", *batch)

    demo.say("A file with every kind of mistake. First checked at home, before anything is sent:")
    demo.run("validate", files[drops.MISTAKES], "--against", drops.WORKSPACE, status=1)
    demo.say("In beta it changes nothing:")
    demo.run("ingest", "--environment", "beta", files[drops.MISTAKES])
    demo.say("Dropped in production, with a faulty ID sync, device IDs and platform IDs beside it:")
    demo.run("ingest", *(files[name] for name in (drops.MISTAKES, drops.BAD_SYNC, drops.DEVICES, drops.BY_UUID)))
    demo.say("A name with milliseconds is refused as a whole:")
    demo.run("ingest", files[drops.MILLISECONDS], status=1)

    demo.say("Who is in which trait, and why.")
    demo.run("traits")
    demo.run("profile", "67890:4598060374")
    demo.run("why", "67890:4598060374", "201")
    demo.run("why", "67890:4581274262", "201")

    demo.say("An overwrite takes trait 201 away from that user ...")
    demo.run("ingest", files[drops.OVERWRITE])
    demo.run("profile", "67890:4598060374")
    job = next(str(entry["job"]) for entry in demo.answer("jobs") if drops.OVERWRITE in str(entry["files"]))
    demo.say("... and undo brings it back.")
    demo.run("undo", job)
    demo.run("profile", "67890:4598060374")

    drop_off(demo)

    demo.say("All that was taken, the facts as open tables, and the proof that the index is the fold of the facts.")
    demo.run("jobs")
    demo.run("sql", "SELECT sid, count(*) AS facts FROM realizations GROUP BY sid ORDER BY sid")
    demo.run("check")

    send_out(demo)


def send_out(demo: Demo) -> None:
    """Segments over the traits, and two exports: first everybody, then what changed."""
    demo.say("Segments over the traits, and a destination that gets them under the CRM's IDs.")
    out = demo.folder / "out"
    out.mkdir()
    text = (ROOT / "examples" / "demo" / "audiences.yaml").read_text(encoding="utf-8")
    audiences = demo.folder / "audiences.yaml"
    audiences.write_text(text.replace("directory: OUT", f"directory: {json.dumps(str(out))}"), encoding="utf-8")
    demo.run("workspace", "apply", audiences)
    demo.run("segments")
    demo.run("estimate", "201T AND NOT 202T")
    demo.run("why", "67890:4392434426", "301")
    demo.say("The first export holds everybody ...")
    demo.run("export", "7301")
    seen = exported(out, set())
    demo.say("... the next one only what changed since: a customer returned what she had bought.")
    change = demo.folder / "ftp_dpm_67890_1478001100.sync"
    change.write_bytes(b"2351382994\t20\n")
    demo.run("ingest", change)
    demo.run("export", "7301")
    exported(out, seen)
    (changes,) = [path for path in out.iterdir() if path.name not in seen and path.suffix == ".sync"]
    if changes.read_bytes() != b"2351382994  301\n":
        raise SystemExit(f"error: {changes.name} does not say that just this customer left the segment")
    demo.run("exports", "7301")


def exported(out: Path, seen: set[str]) -> set[str]:
    """Shows the files of a folder that were not there before; gives the names of all."""
    files = sorted((path for path in out.iterdir() if path.name not in seen), key=lambda path: path.suffix == ".info")
    if not files:
        raise SystemExit(f"error: nothing was exported to {out}")
    for path in files:
        print(f"\n$ cat out/{path.name}\n{path.read_text(encoding='utf-8')}", end="", flush=True)
    return seen | {path.name for path in files}


def drop_off(demo: Demo) -> None:
    """A file over each door of a running server, in production and beta."""
    demo.say("One program serves it all: FTP, SFTP, object storage, a folder, and the calls of web pages.")
    password = secrets.token_urlsafe(12)
    demo.environ["DEMO_DROPOFF_PASSWORD"] = password
    demo.run("workspace", "apply", ROOT / "examples" / "demo" / "dropoff.yaml")
    with doors.object_store(demo.folder / "store") as endpoint:
        if endpoint is None:
            print("\n(no object store is installed here: that door is left out)")
        environ = {**doors.settings(endpoint), **demo.environ}
        print("\n$ openaudience serve", flush=True)
        server = doors.Server(PROGRAM, environ)
        try:
            visitor = web_shop(demo, server)
            for drop in doors.DROPS:
                if drop.door != "s3" or endpoint is not None:
                    address = doors.put(drop, server, demo.home, password, endpoint or "")
                    print(f"\n→ {address.replace(f'{demo.folder}/', '')}", flush=True)
                    receive(demo, drop)
                if drop.door == "folder":
                    demo.say("The file's customer Anna-7K was matched to the browser that called.")
                    demo.run("profile", visitor)
            if os.environ.get("SERVE"):
                keep_serving(server, password)
        finally:
            server.stop()


def web_shop(demo: Demo, server: doors.Server) -> str:
    """A browser's calls: its device is mapped to the customer who logged in, and it puts something into the basket."""
    demo.say("The web shop. A page syncs its visitor's customer ID, then tells that the basket was filled.")

    def call(host: str, target: str, cookie: str = "") -> tuple[dict[str, str], bytes]:
        with_cookie = f" -b demdex={cookie[:6]}…" if cookie else ""
        print(f"\n$ curl -i 'http://{host}{target}'{with_cookie}", flush=True)
        status, headers, body = doors.call(server, host, target, cookie)
        if status != 200 or "x-error" in headers:
            raise SystemExit(f"error: the call was answered {status}, {headers.get('x-error')}")
        return headers, body

    headers, _ = call("dpm.demdex.net", "/ibs:dpid=67890&dpuuid=Anna-7K")
    print(f"200 {headers['content-type']}\nSet-Cookie: {headers['set-cookie']}")
    visitor = headers["set-cookie"].partition(";")[0].removeprefix("demdex=")
    _, body = call("acme.demdex.net", "/event?c_step=basket&d_rtbd=json", visitor)
    print(body.decode())
    if json.loads(body)["uuid"] != visitor:
        raise SystemExit("error: the event was not taken for the visitor's")
    return visitor


def receive(demo: Demo, drop: doors.Drop) -> None:
    """Waits for the receipt of a dropped file, shows it, and compares it with what it must say."""
    environment = ("--environment", drop.environment)
    deadline = time.monotonic() + doors.PATIENCE
    while True:
        job = next((entry for entry in demo.answer("jobs", *environment) if drop.name in str(entry["files"])), None)
        if job is not None:
            break
        if time.monotonic() > deadline:
            raise SystemExit(f"error: {drop.name} has no receipt after {doors.PATIENCE:.0f} s")
        time.sleep(0.2)
    demo.run("receipt", str(job["job"]), *environment)
    if job["stored"] != drop.stored:
        raise SystemExit(f"error: the receipt says {job['stored']} stored records, expected {drop.stored}")


def keep_serving(server: doors.Server, password: str) -> None:
    print(f"\nStill serving; login {doors.LOGIN}, password {password}. Stop with Ctrl-C.")
    for (door, environment), port in sorted(server.ports.items()):
        print(f"  {door} {environment} 127.0.0.1:{port}")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="oa-demo-"))
    demo = Demo(folder)
    keep = bool(os.environ.get("KEEP"))
    try:
        walk(demo)
    finally:
        for ring in (demo.home / "keys").rglob("pubring.kbx"):
            subprocess.run(
                ["gpgconf", "--homedir", str(ring.parent), "--kill", "all"], check=False, capture_output=True
            )
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    if keep:
        print(f"\nThe installation is kept: export OPENAUDIENCE_HOME={demo.home}")
    else:
        print("\nDone; the throw-away installation is deleted again (KEEP=1 make demo keeps it).")
    print("Next: README.md is a tour of ten minutes; docs/ holds every command and file format.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
