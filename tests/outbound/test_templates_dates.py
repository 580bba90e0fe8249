"""Date patterns of templates: golden cases, weeks against a count by hand, and Java itself (OB-111, OB-112)."""

from __future__ import annotations

import random
import shutil
import subprocess
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openaudience.outbound.dates import DatePattern, PatternFault

LETTERS = "yYMwDdEuaHkKhmsSzZX"
HERE = Path(__file__).parent


def milliseconds(moment: str) -> int:
    return round(datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp() * 1000)


def golden() -> list[tuple[str, str, str]]:
    lines = (HERE / "template_dates.txt").read_text("utf-8").splitlines()
    rows = [line.split(" | ") for line in lines if line and not line.startswith("#")]
    return [(moment, pattern, wanted) for moment, pattern, wanted in rows]


@pytest.mark.rule("OB-111", "OB-112")
@pytest.mark.parametrize(("moment", "pattern", "wanted"), golden())
def test_golden(moment: str, pattern: str, wanted: str) -> None:
    assert DatePattern(pattern).text(milliseconds(moment)) == wanted


@pytest.mark.rule("OB-111")
@given(st.dates(date(1970, 1, 4), date(2400, 1, 1)))
def test_weeks_begin_on_sunday_and_the_first_holds_the_first_of_january(day: date) -> None:
    sunday = day - timedelta(days=day.isoweekday() % 7)
    week = [sunday + timedelta(days=step) for step in range(7)]
    year = next((one.year for one in week if (one.month, one.day) == (1, 1)), day.year)
    first = date(year, 1, 1)
    first -= timedelta(days=first.isoweekday() % 7)
    instant = milliseconds(f"{day}T23:59:59.999")
    assert DatePattern("YYYY w").text(instant) == f"{year} {(sunday - first).days // 7 + 1}"


@pytest.mark.rule("OB-111")
@pytest.mark.parametrize("letter", sorted(set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") - set(LETTERS)))
def test_other_letters_are_refused_where_they_stand(letter: str) -> None:
    with pytest.raises(PatternFault) as caught:
        DatePattern(f"yyyy-'{letter}'{letter}{letter}")
    assert caught.value.remark.at == 8
    assert repr(letter) in caught.value.remark.text


@pytest.mark.long
@pytest.mark.rule("OB-111")
def test_as_java_writes_them(tmp_path: Path) -> None:
    java = shutil.which("java")
    if java is None:
        pytest.skip("java is not installed")
    seed = random.Random(4)
    pieces = [*(letter * count for letter in LETTERS for count in range(1, 4 if letter == "X" else 7))]
    pieces += ["'T'", "''", "'o''clock'", "''''", " ", ":", "é", ".", "12"]
    rows: list[tuple[int, str]] = []
    while len(rows) < 5_000:
        pattern = "".join(seed.choice(pieces) for _ in range(seed.randint(1, 8)))
        if "XXXX" not in pattern:
            rows.append((seed.randrange(0, 13_000_000_000_000), pattern))
    source = tmp_path / "Dates.java"
    source.write_text(JAVA, "utf-8")
    given = "".join(f"{instant}\t{pattern}\n" for instant, pattern in rows)
    answer = subprocess.run([java, source], input=given.encode(), capture_output=True, check=True, timeout=120)
    wanted = answer.stdout.decode().splitlines()
    assert [DatePattern(pattern).text(instant) for instant, pattern in rows] == wanted


JAVA = """
import java.io.*;
import java.nio.charset.StandardCharsets;
import java.text.SimpleDateFormat;
import java.util.*;

public class Dates {
    public static void main(String[] args) throws Exception {
        var in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        var out = new PrintStream(new FileOutputStream(FileDescriptor.out), false, StandardCharsets.UTF_8);
        for (String line; (line = in.readLine()) != null; ) {
            int tab = line.indexOf('\\t');
            var format = new SimpleDateFormat(line.substring(tab + 1), Locale.US);
            format.setTimeZone(TimeZone.getTimeZone("UTC"));
            out.print(format.format(new Date(Long.parseLong(line.substring(0, tab)))) + "\\n");
        }
        out.flush();
    }
}
"""
