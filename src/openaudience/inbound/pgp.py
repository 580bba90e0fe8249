"""OpenPGP through the ``gpg`` program: keys of an installation, and decryption in bounded memory (IN-15, OP-64)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from codecs import getincrementaldecoder
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from openaudience.errors import FileRejected, StoreUnavailable, SystemFailure

_ARMOR = b"-----BEGIN PGP MESSAGE-----"
_AES = {"7", "8", "9"}
_NO_AGENT = re.compile(r"connect to the (?:gpg-)?agent|agent .*(?:not|failed)|No agent running", re.IGNORECASE)
_PREFERENCES = "AES256 AES192 AES SHA512 SHA384 SHA256 ZLIB ZIP Uncompressed"
_LONGEST_HOME = 80
"""Characters of a home path; its agent's socket lies below it and must stay under 108."""


class _Source(Protocol):
    def read(self, size: int = -1, /) -> bytes | None: ...


def looks_like_pgp(head: bytes) -> bool:
    """Whether the first bytes of a file are an OpenPGP message, armored or binary (RFC 4880, 4.2, and RFC 9580).

    A text in UTF-8 or Latin-1 never is: the packet's version or format byte must fit, too.
    """
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(_ARMOR):
        return True
    if len(head) < 3 or not head[0] & 0x80:
        return False
    with suppress(UnicodeDecodeError):
        getincrementaldecoder("utf-8")().decode(head)
        return False
    if head[0] & 0x40:
        tag = head[0] & 0x3F
        length = 1 if head[1] < 192 or 224 <= head[1] < 255 else 2 if head[1] < 224 else 5
    else:
        tag = head[0] >> 2 & 0x0F
        length = (1, 2, 4, 0)[head[0] & 3]
    body = head[1 + length :]
    if not body:
        return False
    fits: dict[int, bytes] = {
        1: b"\x02\x03\x06",
        2: b"\x03\x04\x06",
        3: b"\x04\x05\x06",
        4: b"\x03\x06",
        8: b"\x00\x01\x02\x03",
        10: b"P",
        11: b"btu",
        18: b"\x01\x02",
        20: b"\x01",
    }
    return body[0] in fits.get(tag, b"")


class GpgHome:
    """A folder with the private key of an installation. Use as a context manager: leaving stops the key agent.

    ``path``: the folder, made with mode 0700 if missing. Raises SystemFailure if gpg is missing or does not work.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path).absolute()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        program = shutil.which("gpg")
        if program is None:
            raise SystemFailure("The program gpg is missing; install GnuPG (package gnupg) to read or make PGP files.")
        self._program = program
        self._short: Path | None = None
        self._home = str(self.path)
        if len(os.fsencode(self._home)) > _LONGEST_HOME:
            self._short = Path(tempfile.mkdtemp(prefix="oa-gpg-", dir=self._short_root()))
            link = self._short / "h"
            link.symlink_to(self.path)
            self._home = str(link)

    @staticmethod
    def _short_root() -> str | None:
        root = tempfile.gettempdir()
        return None if len(os.fsencode(root)) < _LONGEST_HOME - 20 else "/tmp"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the key agent of this home; a later call starts it again."""
        if gpgconf := shutil.which("gpgconf"):
            subprocess.run([gpgconf, "--homedir", self._home, "--kill", "all"], check=False, capture_output=True)

    def close(self) -> None:
        """Stops the agent and removes the short path; the object is not usable afterwards."""
        self.stop()
        if self._short is not None:
            (self._short / "h").unlink(missing_ok=True)
            self._short.rmdir()
            self._short = None

    def _command(self, *arguments: str) -> list[str]:
        return [self._program, "--homedir", self._home, "--batch", "--quiet", "--no-tty", *arguments]

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(self._command(*arguments), check=False, capture_output=True)
        if done.returncode:
            raise SystemFailure(f"gpg failed in {self.path}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode(errors="replace")

    def generate(self, name: str = "OpenAudience inbound", algorithm: str = "default") -> str:
        """Makes a key pair without a passphrase that never expires; gives its fingerprint.

        ``algorithm`` as gpg names it (``default`` is RSA or better, by its version). Asks senders for AES (IN-15).
        """
        self._run(
            "--pinentry-mode",
            "loopback",
            "--passphrase",
            "",
            "--default-preference-list",
            _PREFERENCES,
            "--quick-generate-key",
            name,
            algorithm,
            "default",
            "never",
        )
        return self.fingerprints()[-1]

    def fingerprints(self) -> list[str]:
        """Fingerprints of the private keys, in gpg's order."""
        listing = self._run("--with-colons", "--list-secret-keys")
        return re.findall(r"^sec:.*\n(?:.*\n)?fpr:+([0-9A-F]+):", listing, re.MULTILINE)

    def public_key(self) -> str:
        """The armored public keys, for senders."""
        return self._run("--armor", "--export", *self.fingerprints())

    def decrypt(self, source: _Source, target: BinaryIO, limit: int) -> bool:
        """Writes the plaintext of one message to ``target``; False if it is longer than ``limit`` bytes.

        The caller must use nothing of ``target`` before this returns True: gpg writes plaintext before it knows that
        the message is whole. Raises FileRejected: ``pgp_key``, ``pgp_cipher``, ``corrupt_pgp``.
        """
        with tempfile.TemporaryFile() as status, tempfile.TemporaryFile() as log:
            number = status.fileno()
            process = subprocess.Popen(
                self._command(
                    "--status-fd",
                    str(number),
                    "--pinentry-mode",
                    "error",
                    "--no-auto-key-retrieve",
                    "--skip-verify",
                    "--decrypt",
                ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=(number,),
                env=os.environ | {"LC_ALL": "C"},
            )
            feeder = _Feeder(source, process)
            feeder.start()
            assert process.stdout is not None
            written = 0
            try:
                while written <= limit and (data := os.read(process.stdout.fileno(), 1 << 20)):
                    written += len(data)
                    if written <= limit:
                        target.write(data)
            finally:
                # a gpg that still writes would wait for ever, and the feeder with it
                if sys.exc_info()[0] is not None or written > limit:
                    process.kill()
                feeder.join()
                process.stdout.close()
                process.wait()
            within = written <= limit
            if feeder.error is not None:
                raise feeder.error
            status.seek(0)
            said = [line.split()[1:] for line in status.read().decode(errors="replace").splitlines() if " " in line]
            log.seek(0)
            complaints = log.read(1 << 16).decode(errors="replace")
        if process.returncode and _NO_AGENT.search(complaints):
            raise StoreUnavailable(
                f"The key agent of gpg did not answer, so nothing is known of the file: {complaints.strip()[-300:]}. "
                f"Check gpg-agent and the folder {self.path}; the file can be tried again."
            )
        _judge(said, process.returncode, within, self._own_key)
        return within

    def _own_key(self, number: str) -> bool:
        """Whether a key ID, as messages name it, belongs to a private key of this home."""
        listing = self._run("--with-colons", "--list-secret-keys")
        return any(line.split(":")[4] == number for line in listing.splitlines() if line.startswith(("sec:", "ssb:")))


class _Feeder(Thread):
    """Writes the message into gpg while its plaintext is read on the other side."""

    def __init__(self, source: _Source, process: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        self._source = source
        self._process = process
        self.error: BaseException | None = None

    def run(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            while data := self._source.read(1 << 20):
                pipe.write(data)
        except BrokenPipeError:
            pass  # gpg has ended before its input did; its status says why
        except BaseException as error:
            self.error = error
        finally:
            with suppress(BrokenPipeError):
                pipe.close()


def _judge(said: list[list[str]], status: int, within: bool, own_key: Callable[[str], bool]) -> None:
    """Raises what gpg's status lines say against the message."""
    words = {line[0] for line in said if line}
    ciphers = [line[2] for line in said if line[:1] == ["DECRYPTION_INFO"] and len(line) > 2]
    if any(cipher not in _AES for cipher in ciphers):
        raise FileRejected("pgp_cipher", "The file is not encrypted with AES.", "Encrypt it with AES (any key size).")
    damaged = FileRejected(
        "corrupt_pgp", "The OpenPGP message is cut off or damaged.", "Encrypt and send the file again."
    )
    if not ciphers and any(own_key(line[1]) for line in said if line[:1] == ["ENC_TO"] and len(line) > 1):
        raise damaged  # the key is the right one, but what it should open is not what it was
    if not ciphers and ("NEED_PASSPHRASE_SYM" in words or "BEGIN_DECRYPTION" in words or "NO_SECKEY" in words):
        by_password = "NEED_PASSPHRASE_SYM" in words
        raise FileRejected(
            "pgp_key",
            "The file is encrypted with a password." if by_password else "The file is encrypted to another key.",
            "Encrypt it to the public key of this installation.",
        )
    if not within:
        return
    if not ciphers and status == 0 and "PLAINTEXT" in words:
        raise FileRejected("pgp_cipher", "The OpenPGP message is not encrypted.", "Encrypt it with AES (any key size).")
    if status != 0 or "DECRYPTION_OKAY" not in words or "DECRYPTION_FAILED" in words:
        raise damaged
