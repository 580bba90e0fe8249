"""Who may put files into the drop-off of an environment: drop-off users, their passwords and keys (IN-05, OP-66)."""

from __future__ import annotations

import functools
import secrets
import threading
from dataclasses import dataclass

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from openaudience.catalog.schema import BY_NAME
from openaudience.catalog.secrets import HASHED, LONGEST_LOGIN, hasher, matches
from openaudience.catalog.tables import DocumentRow, PartnerRow, SecretRow

_USERS = BY_NAME["dropoffUser"].key
_AT_ONCE = threading.BoundedSemaphore(4)
"""Each check of a password takes 64 MiB for a moment; a flood of them waits instead of filling the memory."""


@dataclass(frozen=True, slots=True)
class Login:
    """A drop-off user: ``name`` to log in with, the partner whose files it sends, and what proves it.

    ``password_hash``: argon2id, None when the user has no password; ``public_keys``: OpenSSH lines.
    """

    name: str
    pid: int
    partner: str
    password_hash: str | None
    public_keys: tuple[str, ...]

    def __repr__(self) -> str:
        # A login may come into a log; its hash may not.
        return f"Login(name={self.name!r}, pid={self.pid}, partner={self.partner!r})"


def login(session: Session, environment: str, name: str) -> Login | None:
    """The drop-off user of a name, letter case included; None when there is none. Found through an index."""
    query = (
        select(DocumentRow.pid, PartnerRow.name, DocumentRow.document, SecretRow.value)
        .join(
            PartnerRow,
            and_(PartnerRow.environment == DocumentRow.environment, PartnerRow.number == DocumentRow.pid),
        )
        .outerjoin(
            SecretRow,
            and_(
                SecretRow.environment == DocumentRow.environment,
                SecretRow.kind == DocumentRow.kind,
                SecretRow.number == DocumentRow.number,
                SecretRow.field == "password",
                SecretRow.form == HASHED,
            ),
        )
        .where(DocumentRow.environment == environment, DocumentRow.kind == _USERS, DocumentRow.name == name)
    )
    if not name.isprintable():
        return None  # such a name cannot be stored, and some databases refuse to be asked for it
    found = session.execute(query).first()
    if found is None:
        return None
    pid, partner, document, hashed = found
    return Login(name, pid, partner, hashed, tuple(document.get("publicKeys") or ()))


def verify(login: Login | None, password: str) -> bool:
    """Whether the password is that of the login, compared as UTF-8 bytes.

    No login, or one without a password, takes the same time as a wrong password, so time does not tell who exists
    (OP-66). Passwords of more than 1,024 bytes are refused at once. Blocks for about a tenth of a second: call it in
    a thread.
    """
    try:
        length = len(password.encode())
    except UnicodeEncodeError:
        return False
    if length > LONGEST_LOGIN:
        return False
    dummy = _dummy()
    known = None if login is None else login.password_hash
    with _AT_ONCE:
        same = matches(known or dummy, password)
    return same and known is not None


@functools.cache
def _dummy() -> str:
    """A hash of a password that nobody knows, made as all others are."""
    return hasher().hash(secrets.token_hex(32))
