"""OpenSSH public keys of drop-off users: which are taken (IN-05, OP-34)."""

from __future__ import annotations

KINDS = ("ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")
RSA_BITS = 2048
_FORM = "write one line of a .pub file, such as: ssh-ed25519 AAAA… comment"


def fault(text: str) -> str:
    """What is wrong with a public key of the form ``ssh-ed25519 AAAA… comment``; empty when nothing is.

    Never quotes the text: a private key put here by mistake must not be shown.
    """
    if "PRIVATE KEY" in text:
        return f"this is a private key, which nobody else may see; {_FORM}"
    if not text.isprintable():
        return f"a key is one line; {_FORM}"
    kind = text.split(" ")[0]
    if kind not in KINDS:
        known = kind.startswith(("ssh-", "ecdsa-", "sk-")) and kind.isascii() and len(kind) < 64
        return f"keys of the kind {kind} are not taken; take {', '.join(KINDS)}" if known else f"no public key; {_FORM}"
    # Takes a while to load, and few workspaces have keys
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        key = load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        return f"the key is damaged or cut off; {_FORM}"
    if isinstance(key, RSAPublicKey) and key.key_size < RSA_BITS:
        return f"an RSA key of {key.key_size} bits is too short; take {RSA_BITS} or more, or ssh-ed25519"
    return ""
