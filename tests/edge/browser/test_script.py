"""The script as it is served: small, without dependencies, for old browsers too."""

from __future__ import annotations

import gzip
import re
from importlib.resources import files

from openaudience.edge.script import script, takes_gzip

SOURCE = files("openaudience.edge").joinpath("dil.js").read_text(encoding="utf-8")


def test_what_is_served() -> None:
    body, headers = script("edge.example:8443")
    assert headers["Content-Type"].startswith("application/javascript")
    assert headers["Cache-Control"] == "public, max-age=3600"
    assert re.fullmatch('"[0-9a-f]{32}"', headers["ETag"])
    assert b'EDGE="edge.example:8443"' in body
    assert b"__EDGE_DOMAIN__" not in body
    assert script("edge.example:8443") == (body, headers)
    assert script("other.example")[1]["ETag"] != headers["ETag"]


def test_the_compressed_variant() -> None:
    plain, headers = script("edge.test")
    body, compressed = script("edge.test", gzipped=True)
    assert gzip.decompress(body) == plain
    assert compressed["Content-Encoding"] == "gzip"
    assert compressed["ETag"] != headers["ETag"]
    assert compressed["Vary"] == headers["Vary"] == "Accept-Encoding, Origin"
    assert "Content-Encoding" not in headers


def test_who_takes_the_compressed_variant() -> None:
    assert all(takes_gzip(one) for one in ("gzip", "deflate, GZIP;q=0.5, br", "br,gzip; q=1"))
    assert not any(takes_gzip(one) for one in ("", "br", "gzip;q=0", "br, gzip ; q=0.000", "x-gzip-like", "identity"))


def test_a_domain_cannot_leave_its_string() -> None:
    body, _ = script('x";alert(1)//</script>')
    assert b'EDGE="x\\";alert(1)//</script>";' in body


def test_size_and_syntax() -> None:
    """The syntax of 2009: no word and no sign that came later, outside strings and comments."""
    body, _ = script("edge.test")
    assert len(body) < 28_000
    assert len(script("edge.test", gzipped=True)[0]) < 10_000
    code = re.sub(r'"(?:[^"\\\n]|\\.)*"|/\*.*?\*/|(?<!:)//[^\n]*', '""', SOURCE, flags=re.DOTALL)
    assert (
        re.findall(r"=>|`|\.\.\.|\?\.|\?\?|\*\*|\b(?:let|const|class|async|await|import|export|of|yield)\b", code) == []
    )
    assert max(len(line) for line in SOURCE.splitlines()) <= 120


def test_only_comments_and_space_are_taken_away() -> None:
    """Texts, too, are served as written."""
    text = script("edge.test")[0].decode()
    without = re.sub(r"/\*.*?\*/|(?<= )// [^\n]*", "", SOURCE, flags=re.DOTALL).replace("__EDGE_DOMAIN__", "edge.test")
    texts = re.findall(r'"[A-Za-z][^"\n]* [^"\n]*"', "".join(line for line in without.split("\n") if "/[" not in line))
    assert len(texts) > 40
    assert [one for one in texts if one not in text] == []
    bare = re.compile(r"\s+")
    assert bare.sub("", text).replace(";}", "}") == bare.sub("", without).replace(";}", "}")
