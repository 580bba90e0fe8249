"""The home: the one folder that holds an installation (OP-10).

::

    openaudience.toml          settings (OP-40)
    catalog.db                 the catalog, unless catalog.url names another database; mode 0600
    keys/secret.json           installation secret and the two seeds of ID keys, mode 0600
    keys/pgp/                  key ring of inbound decryption, mode 0700
    keys/ssh_host_ed25519      key by which the SFTP drop-off is known, mode 0600
    production/, beta/         tables, index, archive, work, quarantine, dropoff, rulesets, exports of each environment
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from openaudience import config
from openaudience.catalog.base import open_engine, sqlite_url
from openaudience.catalog.facade import Catalog, mapping_limits
from openaudience.catalog.migrate import ENVIRONMENTS, upgrade
from openaudience.catalog.secrets import Vault
from openaudience.clock import Clock, system_clock
from openaudience.errors import InputError, StoreUnavailable, SystemFailure, UsageError
from openaudience.store.files import make_once, storing

FORMAT = 1
SETTINGS = "openaudience.toml"
CATALOG = "catalog.db"
FOLDERS = ("tables", "index", "archive", "work", "quarantine", "dropoff", "rulesets", "exports")


@dataclass(frozen=True, slots=True)
class Secret:
    """``secret``: 32 random bytes of this installation. ``seeds``: of the two XXH64 keys of an ID (design 2.6)."""

    secret: bytes
    seeds: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Environment:
    """Folders of ``production`` or ``beta``; nothing is shared between the two (IN-01)."""

    name: str
    root: Path

    @property
    def tables(self) -> Path:
        return self.root / "tables"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def archive(self) -> Path:
        return self.root / "archive"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    @property
    def dropoff(self) -> Path:
        return self.root / "dropoff"

    @property
    def rulesets(self) -> Path:
        return self.root / "rulesets"

    @property
    def exports(self) -> Path:
        return self.root / "exports"


class Home:
    """An opened home. Made by ``create`` or ``open``; ``close`` lets go of the catalog."""

    def __init__(self, path: Path, clock: Clock = system_clock, environ: Mapping[str, str] | None = None) -> None:
        self.path = path.absolute()
        self.clock = clock
        self.configuration = config.load(self.path / SETTINGS, environ)
        self.settings = self.configuration.settings

    @classmethod
    def create(cls, path: Path, clock: Clock = system_clock, environ: Mapping[str, str] | None = None) -> Home:
        """Makes a home: folders, secret, settings, catalog with the eight global data sources in both environments.

        Raises InputError when it is there already or ``path`` is a file or holds something else.
        """
        if is_home(path):
            raise InputError(f"{path} is a home already; use it, or choose another --home")
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; choose another --home")
        if path.is_dir() and any(path.iterdir()):
            raise InputError(f"{path} is not empty and no home; choose an empty or new folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "keys").mkdir(mode=0o700)
            (path / "keys" / "pgp").mkdir(mode=0o700)
            for name in ENVIRONMENTS:
                for folder in FOLDERS:
                    (path / name / folder).mkdir(parents=True)
            (path / SETTINGS).write_text(config.TEMPLATE, encoding="utf-8")
            # Holds hashes and personal data; SQLite gives the files beside it the same rights.
            (path / CATALOG).touch(mode=0o600)
        except OSError as error:
            raise SystemFailure(f"{path}: cannot be made: {error.strerror}; check permissions and space") from None
        home = cls(path, clock, environ)
        if home.settings.catalog.url:
            (path / CATALOG).unlink()
        upgrade(home.engine)
        # Last, and at once: a folder is a home when it has its secret, so an interrupted init is no half home.
        _write_secret(path / "keys" / "secret.json")
        return home

    @classmethod
    def open(cls, path: Path, clock: Clock = system_clock, environ: Mapping[str, str] | None = None) -> Home:
        """Opens a home; one of an older version is brought up to date, a newer one is refused (OP-43)."""
        if not is_home(path):
            raise InputError(f"{path} is no home; run: openaudience --home {path} init")
        home = cls(path, clock, environ)
        _ = home.secret
        for name in ENVIRONMENTS:
            for folder in FOLDERS:
                try:
                    (path / name / folder).mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise StoreUnavailable(f"{path / name / folder}: cannot be made: {error.strerror}") from None
        if not home.settings.catalog.url and not (path / CATALOG).is_file():
            raise SystemFailure(f"{path / CATALOG} is missing; restore it from a backup")
        if upgrade(home.engine):
            for file in path.glob(f"{CATALOG}*"):
                with storing(file):
                    file.chmod(0o600)
        return home

    def close(self) -> None:
        """Closes the connections to the catalog."""
        if "engine" in self.__dict__:
            self.engine.dispose()

    def __enter__(self) -> Home:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pgp(self) -> Path:
        """Folder of the key ring (mode 0700)."""
        return self.path / "keys" / "pgp"

    @property
    def host_key(self) -> Path:
        """File with the private key of the SFTP drop-off, in OpenSSH's form; made when it is first asked for.

        Raises StoreUnavailable when it cannot be written.
        """
        file = self.path / "keys" / "ssh_host_ed25519"
        if not file.is_file():
            _write_host_key(file)
        return file

    def host_key_fingerprint(self) -> str:
        """What SFTP clients show of the host key, ``SHA256:…``. Raises SystemFailure when the key is damaged."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            PublicFormat,
            load_ssh_private_key,
        )

        file = self.host_key
        try:
            key = load_ssh_private_key(file.read_bytes(), None)
        except OSError as error:
            raise SystemFailure(f"{file}: cannot be read: {error.strerror}; restore it from a backup") from None
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise SystemFailure(
                f"{file} is damaged; restore it from a backup, or remove it: the next start makes another, which "
                "senders have to accept anew"
            ) from None
        line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
        return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"

    @cached_property
    def vault(self) -> Vault:
        """Seals the secrets of the catalog (OP-36)."""
        return Vault(self.secret.secret)

    @cached_property
    def secret(self) -> Secret:
        """The installation's secret and seeds. Raises SystemFailure when they are damaged or of a newer version."""
        file = self.path / "keys" / "secret.json"
        try:
            document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            version = int(document["format"])
            seeds = tuple(int(seed) for seed in document["seeds"])
            secret = Secret(bytes.fromhex(document["secret"]), (seeds[0], seeds[1]))
        except OSError as error:
            raise SystemFailure(f"{file}: cannot be read: {error.strerror}; restore it from a backup") from None
        except (ValueError, KeyError, IndexError, TypeError):
            raise SystemFailure(f"{file} is damaged; restore it from a backup") from None
        if version > FORMAT:
            raise SystemFailure(f"{self.path} was made by a newer version of openaudience; install that version")
        return secret

    @cached_property
    def engine(self) -> Engine:
        """The catalog's database, shared by both environments."""
        return open_engine(self.settings.catalog.url or sqlite_url(self.path / CATALOG))

    def environment(self, name: str = "production") -> Environment:
        """Folders of ``production`` or ``beta``. Raises UsageError for any other name."""
        if name not in ENVIRONMENTS:
            raise UsageError(f"--environment {name}: no such environment; choose production or beta")
        return Environment(name, self.path / name)

    def catalog(self, environment: str = "production") -> Catalog:
        """The catalog of one environment."""
        name = self.environment(environment).name
        return Catalog(self.engine, name, self.clock, mapping_limits(self.settings.limits))


def is_home(path: Path) -> bool:
    """Whether a folder is a home: it has its secret."""
    return (path / "keys" / "secret.json").is_file()


def _write_secret(file: Path) -> None:
    document = {
        "format": FORMAT,
        "secret": secrets.token_hex(32),
        "seeds": [secrets.randbits(64), secrets.randbits(64)],
    }
    temporary = file.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(document, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def _write_host_key(file: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    make_once(file, key)
