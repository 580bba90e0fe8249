"""``openaudience init`` and ``openaudience config show`` (OP-10, OP-40)."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path

from openaudience.clock import Clock, system_clock
from openaudience.errors import SystemFailure
from openaudience.home import Home
from openaudience.inbound.pgp import GpgHome

PUBLIC_KEY = "inbound-public-key.asc"


def init(home: Path, as_json: bool = False, clock: Clock = system_clock) -> int:
    """Makes a home with its catalog and keys, and says what senders need. Returns the exit status.

    The PGP key needs the program gpg; without it the home is made all the same and standard error says so.
    """
    with Home.create(home, clock) as made:
        fingerprint: str | None = None
        try:
            with closing(GpgHome(made.pgp)) as gpg:
                fingerprint = gpg.generate()
                made.path.joinpath("keys", PUBLIC_KEY).write_text(gpg.public_key(), encoding="ascii")
        except SystemFailure as error:
            print(f"warning: no PGP key was made: {error}", file=sys.stderr)
        key = made.path / "keys" / PUBLIC_KEY if fingerprint else None
        if as_json:
            document = {
                "home": str(made.path),
                "environments": ["production", "beta"],
                "pgp_fingerprint": fingerprint,
                "pgp_public_key": None if key is None else str(key),
            }
            print(json.dumps(document, ensure_ascii=False))
            return 0
        print(f"home      {made.path}")
        print(f"settings  {made.path / 'openaudience.toml'}")
        if key is not None:
            print(f"PGP key   {fingerprint}")
            print(f"          senders encrypt to {key}")
        print("next      openaudience workspace apply FILE")
    return 0


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
