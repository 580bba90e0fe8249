#!/bin/sh
# setup.sh VENV LOCK STAMP: makes the virtual environment from the lock file and puts the project into it.
# Runs again only when the lock or pyproject.toml changed (make compares them with STAMP).
set -eu
cd "$(dirname "$0")/.."
venv=$1
lock=$2
stamp=$3

fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

python=
for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
    if fits "$candidate"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "error: no Python 3.11 or newer was found; install one, or name it: make PYTHON=/path/to/python3 ..." >&2
    exit 1
fi

if ! fits "$venv/bin/python" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$venv"
    if ! "$python" -m venv "$venv" >"${TMPDIR:-/tmp}/openaudience-venv.$$" 2>&1; then
        # Debian ships the module that fills a virtual environment in a package of its own.
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            apt-get -qq update
            DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends python3-venv >/dev/null
            rm -rf "$venv"
            "$python" -m venv "$venv"
        else
            cat "${TMPDIR:-/tmp}/openaudience-venv.$$" >&2
            rm -f "${TMPDIR:-/tmp}/openaudience-venv.$$"
            echo "error: $python cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2
            exit 1
        fi
    fi
    rm -f "${TMPDIR:-/tmp}/openaudience-venv.$$"
fi

echo "Installing $lock into $venv (the first time takes a minute or two) ..."
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --require-hashes -r "$lock"
# The build backend is pinned in the lock, so nothing more is fetched here.
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
touch "$stamp"
