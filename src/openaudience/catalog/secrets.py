"""Secrets of a workspace (OP-36): read where the file says, and kept so that the catalog gives none away.

What people log in with (``Kind.login``) is kept as an argon2id hash; what the platform must show to others, to deliver,
is sealed with the home's key. Both lie in a table of their own, so documents hold references only.
"""

from __future__ import annotations

import base64
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from openaudience.catalog.objects import Entry
from openaudience.catalog.schema import BY_KEY, Kind
from openaudience.catalog.tables import SecretRow
from openaudience.errors import InputError, SystemFailure

if TYPE_CHECKING:
    from argon2 import PasswordHasher

HASHED, SEALED = "argon2id", "sealed"
LONGEST_LOGIN = 1024
"""Bytes of a password or client secret; longer ones are refused before anything is worked out with them."""
LARGEST = 1 << 16
"""Bytes of any secret; a key is a few thousand."""
_PURPOSE = b"openaudience: sealed secrets of the catalog"
_NONCE = 12
_AT_ONCE = 4

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a secret belongs: the object (``kind`` by its key in a file) and the field, ``signatures.0.key`` nested."""

    kind: str
    number: int
    field: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A secret as it is stored: ``form`` is ``argon2id`` or ``sealed``."""

    form: str
    value: str


@functools.cache
def hasher() -> PasswordHasher:
    """Makes and checks argon2id hashes, with the parameters that the library advises (OP-66)."""
    from argon2 import PasswordHasher

    return PasswordHasher()


def matches(hashed: str, secret: str) -> bool:
    """Whether a secret is the one that was hashed; a damaged hash matches nothing. Takes 64 MiB for a moment."""
    from argon2.exceptions import InvalidHashError, VerificationError

    try:
        return hasher().verify(hashed, secret)
    except (VerificationError, InvalidHashError):
        return False


class Vault:
    """Seals and opens secrets with a key derived from the 32 secret bytes of the home.

    A sealed value opens only in its own place, so nothing is gained by moving rows of the table about.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @functools.cached_property
    def _cipher(self) -> Any:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return AESGCM(HKDF(SHA256(), 32, salt=None, info=_PURPOSE).derive(self._secret))

    def seal(self, environment: str, place: Place, secret: str) -> str:
        """The text to be stored."""
        nonce = os.urandom(_NONCE)
        sealed = self._cipher.encrypt(nonce, secret.encode(), _label(environment, place))
        return base64.b64encode(nonce + sealed).decode("ascii")

    def unseal(self, environment: str, place: Place, value: str) -> str:
        """The secret again. Raises SystemFailure when another home sealed it, for another place, or it is damaged."""
        from cryptography.exceptions import InvalidTag

        try:
            raw = base64.b64decode(value, validate=True)
            opened: bytes = self._cipher.decrypt(raw[:_NONCE], raw[_NONCE:], _label(environment, place))
        except (InvalidTag, ValueError):
            raise SystemFailure(
                f"the secret {place.field} of {place.kind} {place.number} ({environment}) does not open with this "
                "home's key; restore keys/secret.json, or apply the workspace file again"
            ) from None
        return opened.decode()


def _label(environment: str, place: Place) -> bytes:
    return "\0".join((environment, place.kind, str(place.number), place.field)).encode()


class Reader:
    """Reads the secrets that a workspace file refers to, each file once, so both environments get the same.

    A file of one line is taken without its line end. ``login``: the secret is one to log in with. Errors are
    InputError, which says what is wrong and never shows the secret.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._files: dict[Path, str] = {}

    def variable(self, name: str, *, login: bool = False) -> str:
        """The secret in an environment variable."""
        shown = f"the environment variable {name}"
        value = self._environ.get(name)
        if not value:
            raise InputError(f"{shown} is not set")
        # Bytes that were no UTF-8 come as halves of surrogate pairs
        return _checked(_text(value.encode(errors="surrogateescape"), shown), shown, login)

    def file(self, path: Path, shown: str, *, login: bool = False) -> str:
        """The secret in a file, which messages call ``shown``."""
        if path not in self._files:
            try:
                with path.open("rb") as file:
                    raw = file.read(LARGEST + 1)
            except OSError as error:
                raise InputError(f"{shown} cannot be read: {error.strerror}") from None
            except ValueError:
                raise InputError(f"{shown!r} is no name of a file") from None
            self._files[path] = _text(raw, shown)
        return _checked(self._files[path], shown, login)


def _text(raw: bytes, shown: str) -> str:
    if len(raw) > LARGEST:
        raise InputError(f"{shown} holds more than {LARGEST} bytes; that is no secret")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{shown} is not UTF-8 text; save it as UTF-8") from None
    if not text.strip():
        raise InputError(f"{shown} is empty; write the secret into it")
    line = text.removesuffix("\n").removesuffix("\r")
    return text if "\n" in line else line


def _checked(secret: str, shown: str, login: bool) -> str:
    if login and any(ord(char) < 0x20 or ord(char) == 0x7F for char in secret):
        raise InputError(f"{shown} holds a line break or another control character; a login's secret is one line")
    if login and len(secret.encode()) > LONGEST_LOGIN:
        raise InputError(f"{shown} holds more than {LONGEST_LOGIN} bytes; take a shorter secret")
    return secret


def stored(session: Session, environment: str) -> dict[Place, Kept]:
    """All secrets of an environment as they are kept."""
    query = select(SecretRow.kind, SecretRow.number, SecretRow.field, SecretRow.form, SecretRow.value)
    rows = session.execute(query.where(SecretRow.environment == environment))
    return {Place(kind, number, field): Kept(form, value) for kind, number, field, form, value in rows}


class Keeper:
    """Compares secrets with what is kept, and makes what is to be kept.

    Hashing takes a tenth of a second each, so it is done side by side, once for both environments, and remembered.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._matching: dict[tuple[str, str], bool] = {}
        self._hashes: dict[tuple[Place, str], str] = {}

    def changed(self, environment: str, found: Mapping[Place, str], kept: Mapping[Place, Kept]) -> frozenset[Place]:
        """The places whose secret, as the files have it, is not the one that is kept."""
        pairs = {
            (kept[place].value, secret)
            for place, secret in found.items()
            if _login(place) and place in kept and kept[place].form == HASHED
        }
        fresh = sorted(pairs - self._matching.keys())
        self._matching |= zip(fresh, _side_by_side(lambda pair: matches(*pair), fresh), strict=True)
        differing = set()
        for place, secret in found.items():
            old = kept.get(place)
            if old is None or not self._same(environment, place, secret, old):
                differing.add(place)
            elif old.form == HASHED:
                self._hashes.setdefault((place, secret), old.value)
        return frozenset(differing)

    def _same(self, environment: str, place: Place, secret: str, old: Kept) -> bool:
        if old.form != (HASHED if _login(place) else SEALED):
            return False
        if old.form == HASHED:
            return self._matching[old.value, secret]
        try:
            return self._vault.unseal(environment, place, old.value) == secret
        except SystemFailure:
            return False  # what does not open any more is written anew

    def prepare(self, found: Mapping[Place, str], places: Iterable[Place]) -> None:
        """Hashes what ``keep`` will need of ``places``."""
        wanted = {(place, found[place]) for place in places if _login(place)} - self._hashes.keys()
        fresh = sorted(wanted, key=lambda pair: (pair[0].kind, pair[0].number))
        self._hashes |= zip(fresh, _side_by_side(lambda pair: hasher().hash(pair[1]), fresh), strict=True)

    def keep(self, session: Session, environment: str, found: Mapping[Place, str], places: Iterable[Place]) -> None:
        """Writes the secrets of ``places``."""
        places = list(places)
        self.prepare(found, places)
        for place in places:
            secret = found[place]
            login = _login(place)
            value = self._hashes[place, secret] if login else self._vault.seal(environment, place, secret)
            session.merge(
                SecretRow(
                    environment=environment,
                    kind=place.kind,
                    number=place.number,
                    field=place.field,
                    form=HASHED if login else SEALED,
                    value=value,
                )
            )


def holds(kind: Kind) -> bool:
    """Whether objects of a kind may have secrets."""
    return bool(kind.secrets) or any(field.secrets for field in kind.fields.values())


def forget(session: Session, environment: str, entry: Entry, *, all_of_it: bool) -> None:
    """Removes the secrets of an object to which it has no reference any more, or all of them."""
    query = delete(SecretRow).where(
        SecretRow.environment == environment, SecretRow.kind == entry.kind.key, SecretRow.number == entry.number
    )
    if not all_of_it:
        query = query.where(SecretRow.field.not_in(list(_referred(entry))))
    session.execute(query)


def _referred(entry: Entry) -> Iterator[str]:
    """Fields of an object that have a reference to a secret."""
    for secret in entry.kind.secrets:
        if f"{secret}_env" in entry.document or f"{secret}_file" in entry.document:
            yield secret
    for name, field in entry.kind.fields.items():
        for secret in field.secrets:
            for index, inner in enumerate(entry.document.get(name) or ()):
                if f"{secret}_env" in inner or f"{secret}_file" in inner:
                    yield f"{name}.{index}.{secret}"


def _login(place: Place) -> bool:
    return BY_KEY[place.kind].login


def _side_by_side(work: Callable[[T], R], items: list[T]) -> list[R]:
    """Results in the order of ``items``; hashing lets other threads run, and takes 64 MiB each."""
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, items))
