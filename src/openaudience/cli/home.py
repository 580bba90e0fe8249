"""``openaudience init``, ``keys create | export`` and ``config show`` (OP-10, OP-40)."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path

from openaudience.clock import Clock, system_clock
from openaudience.errors import InputError, SystemFailure
from openaudience.home import Home
from openaudience.inbound.pgp import GpgHome
from openaudience.store.files import replace_text, storing

PUBLIC_KEY = "inbound-public-key.asc"


def init(home: Path, as_json: bool = False, clock: Clock = system_clock) -> int:
    """Makes a home with its catalog and keys, and says what senders need. Returns the exit status.

    The PGP key needs the program gpg; without it the home is made all the same and standard error says so.
    """
    with Home.create(home, clock) as made:
        host = made.host_key_fingerprint()
        fingerprint: str | None = None
        try:
            fingerprint, _ = _pgp_key(made)
        except SystemFailure as error:
            print(f"warning: no PGP key was made: {error} Later: openaudience keys create", file=sys.stderr)
        key = made.path / "keys" / PUBLIC_KEY if fingerprint else None
        if as_json:
            document = {
                "home": str(made.path),
                "environments": ["production", "beta"],
                "pgp_fingerprint": fingerprint,
                "pgp_public_key": None if key is None else str(key),
                "sftp_fingerprint": host,
            }
            print(json.dumps(document, ensure_ascii=False))
            return 0
        print(f"home      {made.path}")
        print(f"settings  {made.path / 'openaudience.toml'}")
        if key is not None:
            print(f"PGP key   {fingerprint}")
            print(f"          senders encrypt to {key}")
        print(f"SFTP key  {host}")
        print("next      openaudience workspace apply FILE")
    return 0


def keys_create(home: Path, as_json: bool = False) -> int:
    """Makes the PGP key of the installation if there is none, and shows its fingerprint (IN-15)."""
    with Home.open(home) as opened:
        fingerprint, made = _pgp_key(opened)
    if as_json:
        print(json.dumps({"fingerprint": fingerprint, "created": made}))
    else:
        print(f"PGP key   {fingerprint}{'' if made else ', as before'}")
    return 0


def keys_export(home: Path, file: Path | None = None, as_json: bool = False) -> int:
    """Prints the armored public PGP key for senders, or writes it to a file (IN-15). Raises InputError for no key."""
    with Home.open(home) as opened, closing(GpgHome(opened.pgp)) as gpg:
        fingerprints = gpg.fingerprints()
        if not fingerprints:
            raise InputError(f"{opened.path} has no PGP key; make one with: openaudience keys create")
        armored = gpg.public_key()
    if file is not None:
        # Written in place, for FILE may be a device or a pipe
        with storing(file):
            file.write_text(armored, encoding="ascii")
    if as_json:
        print(json.dumps({"fingerprint": fingerprints[-1], "armored": armored}))
    elif file is None:
        print(armored, end="")
    else:
        print(f"{file}: public key {fingerprints[-1]}")
    return 0


def _pgp_key(home: Home) -> tuple[str, bool]:
    """The fingerprint of the installation's newest PGP key, made if there is none, and whether it was made.

    Raises SystemFailure when gpg is missing or fails.
    """
    with closing(GpgHome(home.pgp)) as gpg:
        known = gpg.fingerprints()
        fingerprint = known[-1] if known else gpg.generate()
        replace_text(home.path / "keys" / PUBLIC_KEY, gpg.public_key())
    return fingerprint, not known


def config_show(home: Path, as_json: bool = False) -> int:
    """Prints every setting with its effective value and where that came from; passwords are masked."""
    with Home.open(home) as opened:
        origins = opened.configuration.origins
    if as_json:
        rows = [{"section": o.section, "key": o.key, "value": o.value, "origin": o.origin} for o in origins]
        print(json.dumps(rows, ensure_ascii=False))
        return 0
    width = max(len(f"{origin.section}.{origin.key}") for origin in origins)
    for origin in origins:
        value = json.dumps(origin.value, ensure_ascii=False)
        print(f"{f'{origin.section}.{origin.key}':<{width}} = {value}  ({origin.origin})")
    return 0
