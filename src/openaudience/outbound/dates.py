"""Date patterns of templates: those of Java's SimpleDateFormat, in English and UTC (OB-111)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_PIECE = re.compile(
    r"(?P<quote>'')|'(?P<quoted>(?:[^']|'')+)'|(?P<letters>([A-Za-z])\4*)|(?P<other>[^A-Za-z']+)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Remark:
    """Something about a pattern: ``at`` is the 0-based place in it."""

    at: int
    text: str


class PatternFault(ValueError):
    """A date pattern is refused; ``remark`` says where and why."""

    def __init__(self, at: int, text: str) -> None:
        super().__init__(text)
        self.remark = Remark(at, text)


class DatePattern:
    """A pattern ready to use. Raises ``PatternFault`` for a letter that has no meaning or a quote without end.

    ``remarks`` name letters that are probably meant otherwise (OB-89, OB-112).
    """

    def __init__(self, pattern: str) -> None:
        self.remarks: list[Remark] = []
        self._parts: list[tuple[str, int]] = []  # letter and how often; plain text with 0
        runs: list[tuple[int, str]] = []
        at = 0
        while at < len(pattern):
            found = _PIECE.match(pattern, at)
            if found is None:
                raise PatternFault(at, "this quote of the date pattern is never closed; write '' for the sign itself")
            if letters := found["letters"]:
                _check(letters, at)
                runs.append((at, letters))
                self._parts.append((letters[0], len(letters)))
            else:
                text = found["other"] or (found["quoted"] or found["quote"]).replace("''", "'")
                self._parts.append((text, 0))
            at = found.end()
        half_day = any(letters[0] == "a" for _, letters in runs)
        for at, letters in runs:
            if letters[0] == "Y":
                self.remarks.append(Remark(at, f"{letters} is the week-year; the year of the date is {'y' * 4}"))
            elif letters in ("D", "DD"):
                self.remarks.append(Remark(at, f"{letters} is the day of the year; the day of the month is dd"))
            elif letters[0] == "h" and not half_day:
                self.remarks.append(Remark(at, f"{letters} is the hour of half a day; of the whole day it is HH"))

    def text(self, instant: int) -> str:
        """An instant in milliseconds of UTC, written by the pattern."""
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=instant)
        return "".join(_LETTERS[text](moment, count) if count else text for text, count in self._parts)


def _check(letters: str, at: int) -> None:
    if letters[0] not in _LETTERS:
        known = " ".join(_LETTERS)
        raise PatternFault(at, f"date patterns have no letter {letters[0]!r}; use {known}, or quote it: '{letters}'")
    if letters[0] == "X" and len(letters) > 3:
        raise PatternFault(at, "X may stand at most three times in a row")


def _number(value: Callable[[datetime], int]) -> Callable[[datetime, int], str]:
    return lambda moment, count: str(value(moment)).zfill(count)


def _year(value: Callable[[datetime], int]) -> Callable[[datetime, int], str]:
    return lambda moment, count: f"{value(moment) % 100:02d}" if count == 2 else str(value(moment)).zfill(count)


def _month(moment: datetime, count: int) -> str:
    if count < 3:
        return str(moment.month).zfill(count)
    return _MONTHS[moment.month - 1] if count > 3 else _MONTHS[moment.month - 1][:3]


def _day(moment: datetime, count: int) -> str:
    return _DAYS[moment.weekday()] if count > 3 else _DAYS[moment.weekday()][:3]


def _week(moment: datetime) -> tuple[int, int]:
    """Week-year and week. Weeks start on Sunday, and the one with 1 January is the first of its year."""
    day = moment.date()
    saturday = day + timedelta(days=(5 - day.weekday()) % 7)
    year = saturday.year
    # The year of a week is that of its last day, for if 1 January is among its days it is not after that day.
    return year, (saturday - date(year, 1, 1)).days // 7 + 1


_LETTERS: dict[str, Callable[[datetime, int], str]] = {
    "y": _year(lambda moment: moment.year),
    "Y": _year(lambda moment: _week(moment)[0]),
    "M": _month,
    "w": _number(lambda moment: _week(moment)[1]),
    "D": _number(lambda moment: moment.timetuple().tm_yday),
    "d": _number(lambda moment: moment.day),
    "E": _day,
    "u": _number(lambda moment: moment.isoweekday()),
    "a": lambda moment, count: "AM" if moment.hour < 12 else "PM",
    "H": _number(lambda moment: moment.hour),
    "k": _number(lambda moment: moment.hour or 24),
    "K": _number(lambda moment: moment.hour % 12),
    "h": _number(lambda moment: moment.hour % 12 or 12),
    "m": _number(lambda moment: moment.minute),
    "s": _number(lambda moment: moment.second),
    "S": _number(lambda moment: moment.microsecond // 1000),
    "z": lambda moment, count: "Coordinated Universal Time" if count > 3 else "UTC",
    "Z": lambda moment, count: "+0000",
    "X": lambda moment, count: "Z",
}
