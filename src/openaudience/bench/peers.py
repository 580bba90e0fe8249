"""The other runners, each a process of its own: ``python -m openaudience.bench.peers NAME SPEC``.

``SPEC`` is a JSON file: ``files`` (gzip, one form), ``ids`` (Parquet: id, ord), ``tokens`` (Parquet: token, sid).
Each prints one JSON line with what it counted. They do only the heart of the work: parse, join the user IDs,
join the signals, count. No checks of form, no counters of classes, no clean-up of signals, nothing durable.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Counts = dict[str, int]


def floor(spec: dict[str, Any]) -> Counts:
    """What cannot be undercut: decompress and count the delimiters."""
    from isal import igzip

    opened: Any = igzip.open  # the package has no types of its own
    commas = lines = 0
    for file in spec["files"]:
        with opened(file, "rb") as stream:
            while block := stream.read(1 << 24):
                commas += block.count(b",")
                lines += block.count(b"\n")
                block.count(b"\t")
    return {"records": lines, "signals": commas + lines}


def duckdb(spec: dict[str, Any]) -> Counts:
    """DuckDB SQL on two threads."""
    import duckdb as engine

    connection = engine.connect()
    connection.execute("SET threads = 2")
    files = ", ".join(f"'{file}'" for file in spec["files"])
    found = connection.execute(
        f"""
        WITH records AS (
            SELECT id, signals FROM read_csv([{files}], delim = '\t', quote = '', escape = '', header = false,
                auto_detect = false, columns = {{'id': 'VARCHAR', 'signals': 'VARCHAR'}}, max_line_size = 200000)
        ), matched AS (
            SELECT ord, signals FROM records JOIN read_parquet('{spec["ids"]}') USING (id)
        ), items AS (
            SELECT ord, unnest(string_split(signals, ',')) AS token FROM matched
        )
        SELECT count(*), count(sid) FROM items LEFT JOIN read_parquet('{spec["tokens"]}') USING (token)
        """
    ).fetchone()
    assert found is not None
    return {"signals": int(found[0]), "used": int(found[1])}


def polars(spec: dict[str, Any]) -> Counts:
    """Polars, streaming engine."""
    import polars as pl

    schema = {"id": pl.String, "signals": pl.String}
    items = (
        pl.scan_csv(spec["files"], separator="\t", has_header=False, quote_char=None, schema=schema)
        .join(pl.scan_parquet(spec["ids"]), on="id", how="inner")
        .select(pl.col("signals").str.split(",").alias("token"))
        .explode("token")
        .join(pl.scan_parquet(spec["tokens"]), on="token", how="left")
        .select(pl.len().alias("signals"), pl.col("sid").count().alias("used"))
    )
    found = items.collect(engine="streaming")
    return {"signals": int(found["signals"][0]), "used": int(found["used"][0])}


def spark(spec: dict[str, Any]) -> Counts:
    """PySpark, local mode on two cores."""
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as f

    session = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "4g")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.shuffle.partitions", "4")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    line = f.split(f.col("value"), "\t")
    records = session.read.text(spec["files"]).select(line[0].alias("id"), line[1].alias("signals"))
    matched = records.join(session.read.parquet(spec["ids"]), "id")
    items = matched.select(f.explode(f.split("signals", ",")).alias("token"))
    marked = items.join(f.broadcast(session.read.parquet(spec["tokens"])), "token", "left")
    found = marked.agg(f.count(f.lit(1)).alias("signals"), f.count("sid").alias("used")).collect()[0]
    session.stop()
    return {"signals": int(found["signals"]), "used": int(found["used"])}


PEERS: dict[str, Callable[[dict[str, Any]], Counts]] = {
    "floor": floor,
    "duckdb": duckdb,
    "polars": polars,
    "spark": spark,
}


def missing(name: str) -> str:
    """Why a peer cannot run here; '' if it can."""
    if name == "duckdb" and importlib.util.find_spec("duckdb") is None:
        return "the package duckdb is not installed (make bench installs it)"
    if name == "spark":
        if importlib.util.find_spec("pyspark") is None:
            return "the package pyspark is not installed (make bench installs it)"
        if shutil.which("java") is None:
            return "Spark needs Java, which is not installed"
    return ""


def main(arguments: list[str]) -> int:
    name, spec = arguments
    print(json.dumps(PEERS[name](json.loads(Path(spec).read_text()))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
