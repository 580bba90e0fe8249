#!/bin/sh
# Writes requirements.lock and requirements-bench.lock: every package that a checkout needs, pinned, with the hashes
# of all its files, for Linux and macOS and every Python from 3.11 on. Needs a network; run it when pyproject.toml changes.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "uv>=0.9,<1"
# The build backend is pinned too, so that the project itself is installed without a second, unpinned look at the index.
printf 'hatchling>=1.25\neditables>=0.5\npip>=24\n' >"$work/build.in"
lock() {
    output=$1
    shift
    "$work/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
        --no-emit-index-url --no-emit-find-links --upgrade --output-file "$work/out" pyproject.toml "$work/build.in" "$@"
    { echo "# Written by scripts/lock.sh from pyproject.toml; do not edit."; cat "$work/out"; } >"$output"
}
lock requirements.lock --extra dev --extra postgres
lock requirements-bench.lock --extra dev --extra postgres --extra bench
