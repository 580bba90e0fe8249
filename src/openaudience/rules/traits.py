"""Text of a trait rule → parse tree (QL-401 … QL-413).

Tokens are cut by a small scanner, since ``E_TOKEN``, ``E_OPERATOR`` and ``E_QUOTE`` come before every fault of the
grammar (QL-412) and the role of a word depends on its place (QL-402). The grammar is lark's LALR parser: it keeps its
stack on the heap and finds the first token that cannot stand where it does. Tokens are checked on their own
(``E_KEY``, ``E_NUMBER`` …) in the moment the parser asks for them, so the faults of both come out left to right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedToken
from lark.lexer import Lexer

from openaudience.errors import RuleError
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
    is_bare_key,
    is_letter_or_digit,
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
MAX_DEPTH = 50
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
    ?start: or_expr
    ?or_expr: and_expr (OR and_expr)*
    ?and_expr: unary (AND unary | negation)*
    ?unary: negation | LPAR or_expr RPAR -> group | comparison
    negation: NOT unary
    comparison: KEY OPERATOR VALUE
    %declare KEY OPERATOR VALUE AND OR NOT LPAR RPAR
"""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A token as cut from the text: ``kind`` is word, symbol, quoted or bracket."""

    kind: str
    text: str
    at: int


def _pieces(text: str) -> list[_Piece]:
    """Cuts the text; raises the first fault of the tokens themselves (QL-401, QL-403, QL-406)."""
    out = []
    at = 0
    while at < len(text):
        found = _PIECE.match(text, at)
        if found is None:
            if text[at] in "\"'":
                raise RuleError("E_QUOTE", at, f"the quote {text[at]} is never closed; add the same quote at the end")
            raise RuleError("E_TOKEN", at, f"{text[at]!r} cannot stand outside quotes; put the key or value in quotes")
        kind, cut = str(found.lastgroup), found.group()
        if kind == "word" and not cut.isascii():
            # \w also holds number signs such as ½, which are neither letter nor digit.
            for place, char in enumerate(cut, at):
                if not (char in "_-." or is_letter_or_digit(char)):
                    raise RuleError("E_TOKEN", place, f"{char!r} cannot stand outside quotes; put the value in quotes")
        if kind == "symbol" and cut not in _SYMBOLS:
            raise RuleError("E_OPERATOR", at, f"{cut!r} is no operator; use == != > < >= <= and the words AND, OR, NOT")
        if kind != "space":
            out.append(_Piece(kind, cut, at))
        at = found.end()
    return out


_BEFORE_OPERAND = frozenset({"START", "AND", "OR", "NOT", "LPAR"})


class _Roles(Lexer):
    """Gives each piece its role by the token before it and checks it there; lark pulls token by token."""

    __future_interface__ = 1

    def __init__(self, conf: object) -> None:
        pass

    def lex(self, state: object, parser_state: object) -> Iterator[Token]:
        pieces: list[_Piece] = state.text  # type: ignore[attr-defined]
        before, operator = "START", ""
        nesting: list[str] = []
        for piece in pieces:
            token = _role(piece, before, operator)
            kind = token.type
            opens = before in _BEFORE_OPERAND or (kind == "NOT" and before in ("VALUE", "RPAR"))
            before = kind
            if kind == "OPERATOR":
                operator = str(token)
            elif kind in ("NOT", "LPAR") and opens:
                # Out of place ("a (") it is no nesting: the grammar refuses it next.
                nesting.append(kind)
                if len(nesting) > MAX_DEPTH:
                    raise RuleError(
                        "E_DEPTH", piece.at, f"parentheses and NOT go deeper than {MAX_DEPTH}; split the rule"
                    )
            elif kind in ("VALUE", "RPAR"):
                if kind == "RPAR" and nesting:
                    nesting.pop()
                while nesting and nesting[-1] == "NOT":
                    nesting.pop()
            yield token


def _role(piece: _Piece, before: str, operator: str) -> Token:
    kind, text, at = piece.kind, piece.text, piece.at
    if kind == "bracket":
        return Token("LPAR" if text == "(" else "RPAR", text, at)
    if kind == "word" and text.lower() in RESERVED:
        return Token(text.upper(), text, at)
    if kind == "symbol":
        return Token("OPERATOR", _SYMBOLS[text], at)
    if before in _BEFORE_OPERAND:
        return Token("KEY", _key(piece), at)
    if before == "OPERATOR":
        return Token("VALUE", _value(piece, operator), at)
    if before == "KEY" and kind == "word" and text.lower() in NAMED_OPERATORS:
        return Token("OPERATOR", text.lower(), at)
    return Token("KEY", text, at)


def _key(piece: _Piece) -> str:
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


def _value(piece: _Piece, operator: str) -> str:
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
class _Builder(Transformer[Token, Node]):
    """Makes the tree while lark reduces."""

    def comparison(self, key: Token, operator: Token, value: Token) -> Node:
        return Comparison(str(key), str(operator), str(value))

    def negation(self, _not: Token, operand: Node) -> Node:
        return Not(operand)

    def group(self, _left: Token, inner: Node, _right: Token) -> Node:
        return inner

    def and_expr(self, *parts: Token | Node) -> Node:
        return And(tuple(part for part in parts if not isinstance(part, Token)))

    def or_expr(self, *parts: Token | Node) -> Node:
        return Or(tuple(part for part in parts if not isinstance(part, Token)))


_PARSER = Lark(_GRAMMAR, parser="lalr", lexer=_Roles, transformer=_Builder(), maybe_placeholders=False)


def parse(text: str) -> Node:
    """The tree of a trait rule. Raises ``RuleError`` with the first fault in the order of QL-412."""
    if not text.strip():
        raise RuleError("E_EMPTY", 0, 'the rule is empty; write a comparison such as color == "red"')
    if len(text) > MAX_LENGTH:
        raise RuleError("E_LENGTH", 0, f"the rule has {len(text)} characters, at most {MAX_LENGTH} are allowed")
    pieces = _pieces(text)
    try:
        node: Node = _PARSER.parse(pieces)  # type: ignore[assignment]
    except UnexpectedToken as error:
        raise _misplaced(text, pieces, error.token) from None
    if _needs_nothing(node):
        raise RuleError(
            "E_NEGATIVE", 0, "a record without any signal would satisfy this rule; add a comparison that must hold"
        )
    return node


def _needs_nothing(node: Node) -> bool:
    """Whether a record without any signal satisfies the rule (QL-411)."""
    match node:
        case Comparison():
            return False
        case Not(operand):
            return not _needs_nothing(operand)
        case And(operands):
            return all(_needs_nothing(operand) for operand in operands)
        case Or(operands):
            return any(_needs_nothing(operand) for operand in operands)


def _misplaced(text: str, pieces: list[_Piece], token: Token) -> RuleError:
    """The error for the first token that does not fit (QL-413)."""
    ended = token.type == "$END"
    at = len(text) if ended else int(token.start_pos or 0)
    opened: list[int] = []
    for piece in pieces:
        if piece.kind == "bracket" and piece.at < at:
            if piece.text == "(":
                opened.append(piece.at)
            else:
                opened.pop()
    if ended:
        if opened:
            return RuleError("E_PAREN", opened[-1], "this ( is never closed; add a )")
        return RuleError("E_SYNTAX", at, "the rule ends too early; complete the last comparison")
    if token.type == "RPAR" and not opened:
        return RuleError("E_PAREN", at, "this ) has no ( before it; remove it or add the (")
    found = next(piece.text for piece in pieces if piece.at == at)
    return RuleError(
        "E_SYNTAX", at, f'{found[:60]!r} cannot stand here; comparisons look like key == "value", joined by AND or OR'
    )


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
