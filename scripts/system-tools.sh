#!/bin/sh
# Installs what the tests use beside Python: gpg, a PostgreSQL server, a browser, the programs that senders use, servers
# that files are delivered to, and a stand-in for Amazon's queues. Where that takes rights or a package manager that are
# not here, it says so, and the tests concerned are skipped by name.
set -eu
cd "$(dirname "$0")/.."
# The stand-in wants other versions of what the product uses: it gets an environment of its own.
queues=.venv-sqs
if [ -x .venv/bin/python ] && [ ! -x "$queues/bin/ministack" ]; then
    { .venv/bin/python -m venv "$queues" &&
        "$queues/bin/python" -m pip install -qq --disable-pip-version-check --retries 1 'ministack>=1.5.33,<2'; } \
        >/dev/null 2>&1 || {
        rm -rf "$queues"
        echo "note: could not install ministack; the tests that need it are skipped" >&2
    }
fi
missing=
command -v gpg >/dev/null || missing="$missing gnupg"
command -v curl >/dev/null || missing="$missing curl"
command -v lftp >/dev/null || missing="$missing lftp"
command -v sftp >/dev/null || missing="$missing openssh-client"
command -v sshd >/dev/null || [ -x /usr/sbin/sshd ] || missing="$missing openssh-server"
command -v vsftpd >/dev/null || [ -x /usr/sbin/vsftpd ] || missing="$missing vsftpd"
if ! command -v initdb >/dev/null && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then
    missing="$missing postgresql"
fi
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null ||
    missing="$missing chromium fonts-dejavu-core"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "note: not installed here:$missing; the tests that need them are skipped" >&2
    exit 0
fi
# Freshly installed servers must not start by themselves: the tests start their own.
policy=/usr/sbin/policy-rc.d
made=
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    made=yes
fi
{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing >/dev/null; } ||
    echo "note: could not install:$missing; the tests that need them are skipped" >&2
[ -z "$made" ] || rm -f "$policy"
