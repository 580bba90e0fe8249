"""Text of a trait rule → parse tree (QL-401 … QL-413); what it has in common with segment rules is in ``grammar``."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lark import Token, v_args

from openaudience.errors import RuleError
from openaudience.rules.grammar import BEFORE_OPERAND, Builder, Language, Piece, Roles, cut
from openaudience.rules.matching import Matcher
from openaudience.rules.patterns import PatternError, compiled
from openaudience.rules.tree import (
    NAMED_OPERATORS,
    NUMERIC_OPERATORS,
    RESERVED,
    And,
    Comparison,
    Node,
    Not,
    Or,
    canonical,
    comparisons,
    evaluate,
    holds,
    is_bare_key,
    number,
    words,
)

__all__ = [
    "And",
    "Comparison",
    "Matcher",
    "Node",
    "Not",
    "Or",
    "canonical",
    "check",
    "comparisons",
    "evaluate",
    "parse",
    "rule_warnings",
]

MAX_LENGTH = 32_768
MAX_KEY = 255

CONTROL_KEYS = frozenset(
    re.findall(
        r"\w+",
        """d_caller d_cb d_cid d_cid_ic d_coppa d_cts d_dpid d_dpuuid d_dst d_dst_filter d_jsonv d_ld d_mid d_nsid
        d_orgid d_ptfm d_px d_rd d_rs d_rtbd d_sid d_tdpid d_tdpid_ic d_uuid d_ver d_visid_ver d_fieldgroup d_blob
        d_verify d_bust dpid dpuuid gdpr gdpr_consent""",
    )
)
"""Parameters of a call that never are signals (RT-1003); so is every key that starts with ``_``."""

_SYMBOLS = {"==": "==", "=": "==", "!=": "!=", ">": ">", "<": "<", ">=": ">=", "=>": ">=", "<=": "<="}
_PIECE = re.compile(
    r"""(?P<space>\s+)
      | (?P<word>[\w.-]+)
      | (?P<symbol>[=!<>&|]+)
      | (?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<bracket>[()])""",
    re.VERBOSE | re.DOTALL,
)

_GRAMMAR = """
    leaf: KEY OPERATOR VALUE
    %declare KEY OPERATOR VALUE
"""


def _pieces(text: str) -> Iterator[Piece]:
    """Cuts the text; raises the first fault of the tokens themselves (QL-401, QL-403, QL-406)."""

    def refused(at: int) -> RuleError:
        if text[at] in "\"'":
            return RuleError("E_QUOTE", at, f"the quote {text[at]} is never closed; add the same quote at the end")
        return RuleError("E_TOKEN", at, f"{text[at]!r} cannot stand outside quotes; put the key or value in quotes")

    for piece in cut(text, _PIECE, refused):
        if piece.kind == "symbol" and piece.text not in _SYMBOLS:
            raise RuleError(
                "E_OPERATOR",
                piece.at,
                f"{piece.text!r} is no operator; use == != > < >= <= and the words AND, OR, NOT",
            )
        yield piece


class _Roles(Roles):
    operand_ends = frozenset({"VALUE"})

    def role(self, piece: Piece, before: Token) -> Token:
        kind, text, at = piece.kind, piece.text, piece.at
        if kind == "bracket":
            return Token("LPAR" if text == "(" else "RPAR", text, at)
        if kind == "word" and text.lower() in RESERVED:
            return Token(text.upper(), text, at)
        if kind == "symbol":
            return Token("OPERATOR", _SYMBOLS[text], at)
        if before.type in BEFORE_OPERAND:
            return Token("KEY", _key(piece), at)
        if before.type == "OPERATOR":
            return Token("VALUE", _value(piece, str(before)), at)
        if before.type == "KEY" and kind == "word" and text.lower() in NAMED_OPERATORS:
            return Token("OPERATOR", text.lower(), at)
        return Token("KEY", text, at)


def _key(piece: Piece) -> str:
    key = piece.text
    if piece.kind == "quoted":
        key = _unquoted(key)
        if not key:
            raise RuleError("E_KEY", piece.at, "the key is empty; write the name of a signal key")
    elif not is_bare_key(key):
        raise RuleError(
            "E_KEY",
            piece.at,
            f"{key[:60]!r} is no bare key (letters A-Z, digits, - _, with a letter, no leading -); put it in quotes",
        )
    if len(key) > MAX_KEY:
        raise RuleError("E_KEY", piece.at, f"the key is longer than {MAX_KEY} characters; shorten it")
    return key


def _value(piece: Piece, operator: str) -> str:
    value, at = piece.text, piece.at
    if piece.kind == "quoted":
        value = _unquoted(value, pattern=operator == "matchesregex")
    if operator in NUMERIC_OPERATORS and number(value) is None:
        raise RuleError("E_NUMBER", at, f"{operator} compares numbers and {value[:60]!r} is none; write one like 9.5")
    if operator in ("contains", "startswith", "endswith") and not value:
        raise RuleError("E_EMPTY_VALUE", at, f'{operator} needs a text; to ask for an empty value write == ""')
    if operator == "matcheswords" and not words(value):
        raise RuleError("E_EMPTY_VALUE", at, "matcheswords needs at least one word of letters or digits")
    if operator == "matchesregex":
        try:
            compiled(value)
        except PatternError as error:
            raise RuleError(error.code, at, str(error)) from None
    return value


def _unquoted(text: str, *, pattern: bool = False) -> str:
    quote, inner = text[0], text[1:-1]
    if "\\" not in inner:
        return inner
    undone = quote if pattern else quote + "\\"
    return re.sub(r"\\(.)", lambda m: m[1] if m[1] in undone else m[0], inner, flags=re.DOTALL)


@v_args(inline=True)
class _Builder(Builder[Comparison]):
    def leaf(self, key: Token, operator: Token, value: Token) -> Node:
        return Comparison(str(key), str(operator), str(value))


_LANGUAGE: Language[Comparison] = Language(
    grammar=_GRAMMAR,
    roles=_Roles,
    builder=_Builder(),
    pieces=_pieces,
    max_length=MAX_LENGTH,
    example='write a comparison such as color == "red"',
    shape='comparisons look like key == "value", joined by AND or OR',
)


def parse(text: str) -> Node:
    """The tree of a trait rule. Raises ``RuleError`` with the first fault in the order of QL-412."""
    node, _ = _LANGUAGE.read(text)
    if holds(node, lambda _: False):
        raise RuleError(
            "E_NEGATIVE", 0, "a record without any signal would satisfy this rule; add a comparison that must hold"
        )
    return node


def rule_warnings(node: Node) -> list[str]:
    """A sentence for each key that no rule will ever see because calls use it as control parameter (QL-114)."""
    keys = dict.fromkeys(comparison.key for comparison in comparisons(node))
    return [
        f"{key} is a control parameter of calls and never a signal of a call"
        for key in keys
        if key.casefold() in CONTROL_KEYS or key.startswith("_")
    ]


def check(text: str) -> tuple[Node, list[str]]:
    """Validates a rule without saving it (QL-414): its tree and warnings. Raises as ``parse``."""
    node = parse(text)
    return node, rule_warnings(node)
