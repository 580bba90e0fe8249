"""All errors of the platform, in one tree.

    OpenAudienceError
    ├── TerminalError                trying again gives the same error
    │   ├── InputError               what the user gave is refused              exit status 1
    │   │   ├── FileRejected         a whole inbound file, with its IN-87 code
    │   │   ├── RuleError            a trait or segment rule, with code and position (QL-002)
    │   │   ├── TemplateError        a template of a file format, with position (OB-88)
    │   │   └── WorkspaceError       a workspace file, with every mistake in it (OP-31)
    │   ├── DeliveryRefused          a file must not or cannot go to its server  exit status 3
    │   ├── UsageError               wrong command or option                     exit status 2
    │   └── SystemFailure            damaged home, wrong version, missing tool   exit status 3
    └── TransientError               worth trying again later                    exit status 3
        ├── DeliveryFailed           a file did not get to its server
        ├── LeaseLost                another applier took over
        └── StoreUnavailable         disk full, catalog locked, store unreachable
            └── LeaseTaken           another process is changing the data now

A retry loop asks for ``TransientError``; nothing else decides whether to try again.
Each message says what happened, where, and how to mend it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class OpenAudienceError(Exception):
    """Base of all errors that a user may see. ``str(error)`` is the sentence shown."""

    exit_status = 3


class TerminalError(OpenAudienceError):
    """Trying again with the same input gives the same error."""


class TransientError(OpenAudienceError):
    """The surroundings failed, not the input; trying again may work."""


class InputError(TerminalError):
    """Input given by a user is refused."""

    exit_status = 1


class FileRejected(InputError):
    """A whole inbound file is refused and changes nothing.

    ``code`` is a reason code of IN-87, ``text`` the sentence for people,
    ``fix`` what the sender can do about it.
    """

    def __init__(self, code: str, text: str, fix: str = "") -> None:
        super().__init__(f"{text} {fix}".strip())
        self.code = code
        self.text = text
        self.fix = fix


class RuleError(InputError):
    """A trait or segment rule is refused: ``code`` (E_…), ``position`` (0-based character offset), ``message``."""

    def __init__(self, code: str, position: int, message: str) -> None:
        super().__init__(f"{code} at {position}: {message}")
        self.code = code
        self.position = position
        self.message = message


class TemplateError(InputError):
    """A template of a file format is refused: ``position`` (0-based character offset), ``message`` (OB-88)."""

    code = "E_TEMPLATE"

    def __init__(self, position: int, message: str) -> None:
        super().__init__(f"{self.code} at {position}: {message}")
        self.position = position
        self.message = message


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake in a text file; ``line`` and ``column`` count from 1."""

    file: str
    line: int
    column: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.text}"


class WorkspaceError(InputError):
    """A workspace file is refused as a whole; ``mistakes`` holds every fault found (OP-31)."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__("\n".join(str(mistake) for mistake in mistakes))
        self.mistakes = tuple(mistakes)


class DeliveryRefused(TerminalError):
    """A file must not go to its server, or never will: a file of another run is there, the server is not the pinned
    one, or what is configured cannot work (OB-209).
    """


class UsageError(TerminalError):
    """A command was called in a wrong way."""

    exit_status = 2


class SystemFailure(TerminalError):
    """The installation itself cannot work: damaged, of another version, or a tool is missing."""


class DeliveryFailed(TransientError):
    """A file did not get to its server: unreachable, silent, or it refused login, path or space (OB-208)."""


class LeaseLost(TransientError):
    """Another applier holds the lease; this one must not decide anything any more."""


class StoreUnavailable(TransientError):
    """Disk full, catalog locked, or a store that does not answer."""


class LeaseTaken(StoreUnavailable):
    """Another process holds the lease of the environment longer than this one could wait."""
