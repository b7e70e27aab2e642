"""The analysis of statements: what each leaves in its session, read from its text as it passes the cursor.

The analysis rests on a list of what is known to be harmless: a statement is ``CLEAN`` only if its verb, every function
that it calls and every construct in it are known to leave nothing that the session's next borrower could notice.
Whatever is not understood is ``DIRTY``; that costs a reset of the session and never a leak. Three things can't be seen in a
statement's text: what a trigger, a view or a generated value of the tables does; what text that only the server puts
together does, or stored code; and statements that reach the server past the driver's connection. ``reset = "always"``
covers what a reset clears.

A text is first *reduced* to its syntax (strings, comments, quoted names and the like become signs, and any gap a single
space), and the reduced text is then searched. Each pattern reads on from where it began and gives up only what it has just
read, so that the analysis takes time in proportion to the length of the text, whatever it says.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from .functions import calls_of

#: Texts longer than this are analysed each time rather than remembered, so that the memory stays small.
LONGEST_REMEMBERED = 16_384
#: Characters of a statement that are looked at for its kind.
LONGEST_KIND = 200


class SessionEffect(IntEnum):
    """Tells what must be done with a session before its next borrower; the greatest of its statements counts."""

    #: Nothing.
    CLEAN = 0
    #: Reset it.
    DIRTY = 1
    #: Close the connection: no reset clears what was done.
    UNSALVAGEABLE = 2


@dataclass(frozen=True, slots=True)
class StatementEffects:
    """The effects of a statement on its session, and its questions about earlier ones."""

    on_session: SessionEffect
    #: Its answer is about the statement before it: ``ROW_COUNT()``.
    asks_about_previous: bool = False
    #: Its answer is about the last INSERT, which may be further back: ``LAST_INSERT_ID()``.
    asks_about_last_id: bool = False
    #: The last id may be of this statement, afterwards.
    sets_last_id: bool = False
    #: It has one answer, unless an error is it.
    is_single: bool = False
    #: It may run what is not in its text: a procedure, a stored function, a text that the server puts together.
    is_opaque: bool = False


# The character sets in which a byte below 128 is the ASCII character of that number, and no part of another one. In the
# others a quote or a backslash may be the second half of a character, for the server or for the driver's codec (in Python's
# shift_jis a yen sign becomes a backslash). In swe7 the signs of SQL are letters.
_UTF8 = frozenset({"utf8", "utf8mb3", "utf8mb4"})
_ONE_BYTE = frozenset(
    """
    armscii8 ascii binary cp1250 cp1251 cp1256 cp1257 cp850 cp852 cp866 dec8 geostd8 greek hebrew hp8 keybcs2 koi8r koi8u
    latin1 latin2 latin5 latin7 macce macroman tis620
    """.split()
)

# (Possessive if Python knows that, so that a long string is not remembered piece by piece.)
_ONCE = "+" if sys.version_info >= (3, 11) else ""
# Between quotes: anything but a placeholder, whose argument brings quotes of its own.
_PERCENT = "%%|%(?![%s(])"

# What stands for nothing else, and what is not understood. A backslash before the quote of its string is left out of the
# string patterns on purpose: whether it ends the string depends on NO_BACKSLASH_ESCAPES, so it is not understood.
# (They share a set of first characters, so that the text between them is skipped at once.)
_OPAQUE = re.compile(
    rf"""
    ['"`/\#\-%\x00-\x08\x0e-\x1f\x7f-\U0010ffff] (?:
      (?P<string> (?<=') [^'\\%]*(?:(?:''|\\[^'%]|\\(?=%)|{_PERCENT})[^'\\%]*)*{_ONCE}'(?!') )
    | (?P<quoted> (?<=`) [^`%]*(?:(?:``|{_PERCENT})[^`%]*)*{_ONCE}`(?!`)
                | (?<=") [^"\\%]*(?:(?:""|\\[^"%]|\\(?=%)|{_PERCENT})[^"\\%]*)*{_ONCE}"(?!") )  # a name, by ANSI_QUOTES
    | (?P<hint>   (?<=/) \*M?!(?P<inside>[\w \t\r\n,]*)\*/ )
    | (?P<comment> (?<=/) \*(?!M?!).*?\*/ | (?<=\#) [^\n]* | (?<=-) -(?=[\t\n\v\f\r\ ]|\Z)[^\n]* )
    | (?P<placeholder> (?<=%) (?:s|\(\w+\)s) )
    | (?P<percent> (?<=%) % )
    | (?P<foreign> (?<=[^\x00-\x7f]) [^\x00-\x7f]* )
    | (?P<rest>   (?:(?<=['"`\x00-\x08\x0e-\x1f\x7f]) | (?<=/) \*) .* )
    )
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)

# The signs of a reduced text. What is not ASCII can only be part of a name; a hint is code for some servers and a comment
# for others, so its words are there, and nothing may depend on which it is.
_NAME_SIGN, _FOREIGN_SIGN, _HINT_SIGN, _UNKNOWN_SIGN = "`", "\xf6", "\x01", "\\"

#: The replacement of each group of _OPAQUE. An argument may be a tuple, which is filled in with its parentheses.
_SIGNS = {"string": " 0 ", "quoted": _NAME_SIGN, "comment": " ", "placeholder": "(0)", "percent": " % "}

_CHARACTER = rf"[\w${_FOREIGN_SIGN}]"
_NAME = rf"(?:{_CHARACTER}+|{_NAME_SIGN})"

# What is never harmless in a reduced text. Comment marks are leftovers: of what was not understood.
_HARMFUL_SIGNS = re.compile(
    r"[@\\:/*\-\x01.](?:(?<=[@\\:])|(?<=/)\*|(?<=\*)/|(?<=-)-(?![\w(])|(?<=\x01) ?[(.]|(?<=\.) ?\x01)", re.ASCII
)
_HARMFUL_WORDS = frozenset({"into", "nextval", "temporary", "procedure", "load", "handler", "prepare", "xa"})
_WORD = re.compile(r"[\w$]+", re.ASCII)
_SEQUENCE = re.compile(r"\bnext\W+value\b", re.ASCII)
# A name before a parenthesis; a space between them is told too. With its schema before it, it is a stored function.
_CALL = re.compile(rf"(?<!{_CHARACTER})({_CHARACTER}+ ?|{_NAME_SIGN} ?)\(", re.ASCII)
_QUALIFIED_CALL = re.compile(rf"\. ?{_NAME} ?\(", re.ASCII)
# Names before a parenthesis that call nothing, for where they stand: after AS (a type, an alias); after what a call can't
# follow (MATCH (...) AGAINST, a path's COLUMNS, LIKE ... ESCAPE); JSON_TABLE as a table, which after a comma has columns.
_NO_CALL = re.compile(
    rf"(?:\bas {_NAME}|(?:\)| 0|{_NAME_SIGN}) (?:against|columns|escape)|\b(?:from|join) json_table"
    r"|, ?json_table(?= ?\([^()]* 0 columns ?\())(?= ?\()",
    re.ASCII,
)
_VERB = re.compile(r"[\s(]*([a-z]+)", re.IGNORECASE | re.ASCII)
_INSERT = re.compile(
    rf"(?:insert|replace)(?: (?:low_priority|delayed|high_priority|ignore))*(?: into)? {_NAME}(?: ?\. ?{_NAME})?", re.ASCII
)
_EXPLAIN = re.compile(
    rf"(?:explain|describe|desc|analyze)(?: (?:extended|partitions|analyze|format ?= ?{_NAME}))* ", re.ASCII
)
# A common table expression with its columns: ``name (a, b) AS (``; ``AS (`` never follows a function call.
_CTE_COLUMNS = re.compile(rf"(?<!{_CHARACTER}){_NAME} ?\([\w$`{_FOREIGN_SIGN}, ]*\) ?as ?(?=\()", re.ASCII)
# What ends or marks a part of a transaction, in the only forms that are harmless.
_TRANSACTION = re.compile(
    rf"(?:(?:commit|rollback)(?: work)?|(?:savepoint|release savepoint|rollback to(?: savepoint)?) {_NAME})\Z", re.ASCII
)
# What no reset clears, by the words that do it, wherever in a dirty statement: they may be in a string that is executed.
# docs/sessions.md has the list.
_BEYOND_A_RESET = re.compile(
    r"\b(?:(?:xa|binlog)\b|profiling|optimizer_trace|set\W+role|session\W+authorization|resource\W+group)",
    re.IGNORECASE | re.ASCII,
)
# What the server answers from a session's memory of its last statement, and a word of each.
_WORDS_OF_PREVIOUS = frozenset("row_count found_rows warnings errors diagnostics warning_count error_count".split())
_PREVIOUS = re.compile(
    r"\b(?:row_count|found_rows) ?\( ?\)"
    r"|\bshow (?:count ?\( ?\* ?\) )?(?:warnings|errors)\b"
    r"|\bget (?:current |stacked )?diagnostics\b"
    r"|@@ ?(?:(?:session|local) ?\. ?)?(?:warning_count|error_count)\b",
    re.ASCII,
)
# And of the last id, likewise, which outlives statements that insert nothing. (With an argument, LAST_INSERT_ID() sets it.)
_WORDS_OF_LAST_ID = frozenset({"last_insert_id", "identity"})
_LAST_ID = re.compile(r"\blast_insert_id ?\( ?\)|@@ ?(?:(?:session|local) ?\. ?)?(?:last_insert_id|identity)\b", re.ASCII)
_INSERTS_FIRST = re.compile(r"[( ]*(?:analyze (?:format ?= ?\w+ )?)?(?:insert|replace|load|call)\b", re.ASCII)
_SETS_LAST_ID = re.compile(r"\blast_insert_id ?\( ?[^ )]", re.ASCII)
_QUERIES = frozenset({"select", "values", "table", "update", "delete", "show"})
_INSERTS = frozenset({"insert", "replace"})
_EXPLAINED = frozenset({"select", "values", "update", "delete", "insert", "replace", "with"})
_EXPLAINS = frozenset({"explain", "describe", "desc", "analyze"})
#: Verbs of statements that run stored code only if they call it by a name before a parenthesis.
_PLAIN = _QUERIES | _EXPLAINS | _INSERTS | frozenset({"with", "set", "use", "lock", "unlock", "start", "flush", "drop"})
#: Functions that leave something, and are no stored code on any server.
_BUILT_IN = frozenset({"get_lock", "release_lock", "release_all_locks", "lastval", "nextval", "setval"})


#: Of what is no text; and of a procedure's call.
NOT_A_TEXT = StatementEffects(SessionEffect.DIRTY, is_opaque=True)
CALL = StatementEffects(SessionEffect.DIRTY, sets_last_id=True, is_opaque=True)


def kind_of(statement: object) -> str | None:
    """A statement's first word, ``SELECT`` for instance: nothing of its values."""
    if not isinstance(statement, (str, bytes, bytearray)):
        return None
    beginning = statement[:LONGEST_KIND]
    match = _VERB.match(beginning if isinstance(beginning, str) else beginning.decode("latin-1"))
    return match[1].upper() if match else None


def analyser_for(server_info: str, character_set: str) -> Callable[[object], StatementEffects]:
    """Analyses the statements that a server is sent, or several in one string.

    ``server_info`` is what it greeted the driver with; ``character_set``, MySQL's name for it, what the driver writes in.
    Its argument is the template as it was given to ``cursor.execute``: with placeholders, before its arguments are
    filled in.
    """
    is_utf8 = character_set in _UTF8
    return _analyser_for(calls_of(server_info), "utf-8" if is_utf8 else "ascii" if character_set in _ONE_BYTE else None)


@lru_cache(maxsize=16)
def _analyser_for(harmless_calls: frozenset[str], encoding: str | None) -> Callable[[object], StatementEffects]:
    """The same: in bytes, what does not belong to ``encoding`` can only be a part of names, strings and comments.

    ``None``: nothing but ASCII is understood.
    """

    def analyse_text(sql: str) -> StatementEffects:
        return _analyse_text(sql, harmless_calls, is_understood=encoding is not None or sql.isascii())

    analyse_remembered = lru_cache(maxsize=2048)(analyse_text)

    def analyse(sql: object) -> StatementEffects:
        if not isinstance(sql, str):
            if not isinstance(sql, (bytes, bytearray)):
                return NOT_A_TEXT
            sql = sql.decode(encoding or "ascii", "surrogateescape")
        return analyse_text(sql) if len(sql) > LONGEST_REMEMBERED else analyse_remembered(sql)

    return analyse


def _analyse_text(sql: str, harmless_calls: frozenset[str], *, is_understood: bool) -> StatementEffects:
    text = " ".join(_OPAQUE.sub(_stand_in, sql).lower().split())
    is_clean = is_understood and all(_is_clean(part.strip(), harmless_calls) for part in text.split(";"))
    effect = SessionEffect.CLEAN if is_clean else SessionEffect.DIRTY
    # Read with and without its comments.
    if not is_clean and (_BEYOND_A_RESET.search(sql) or _BEYOND_A_RESET.search(text)):
        effect = SessionEffect.UNSALVAGEABLE
    words = set(_WORD.findall(text))
    may_ask = not words.isdisjoint(_WORDS_OF_PREVIOUS)
    is_about_last_id = not words.isdisjoint(_WORDS_OF_LAST_ID)
    return StatementEffects(
        effect,
        asks_about_previous=may_ask and _PREVIOUS.search(text) is not None,
        asks_about_last_id=is_about_last_id and _LAST_ID.search(text) is not None,
        sets_last_id=bool(_INSERTS_FIRST.match(text) or (is_about_last_id and _SETS_LAST_ID.search(text))),
        is_single=is_clean and ";" not in sql,
        is_opaque=not is_clean and not (is_understood and all(_is_plain(part, harmless_calls) for part in text.split(";"))),
    )


def _is_plain(statement: str, harmless_calls: frozenset[str]) -> bool:
    """True if a dirty statement does what its text says, and runs no stored code."""
    match = _VERB.match(statement)
    return not statement.strip() or (
        match is not None
        and match[1] in _PLAIN
        and _UNKNOWN_SIGN not in statement
        and _QUALIFIED_CALL.search(statement) is None
        and all(call in harmless_calls or call in _BUILT_IN for call in _CALL.findall(_NO_CALL.sub(" , ", statement)))
    )


def _stand_in(match: re.Match[str]) -> str:
    """The replacement of an opaque text, so that only syntax is left to look at."""
    kind = match.lastgroup
    assert kind is not None
    if kind in _SIGNS:
        return _SIGNS[kind]
    if kind == "foreign":
        # Some spaces count as such for a server, by the character set.
        return _FOREIGN_SIGN if match[0].isprintable() else _UNKNOWN_SIGN
    if kind == "hint":
        return f" {_HINT_SIGN} {match['inside']} {_HINT_SIGN} "
    return f" {_UNKNOWN_SIGN} {match[0]}"


def _is_clean(statement: str, harmless_calls: frozenset[str]) -> bool:
    if not statement:
        return True
    match = _VERB.match(statement)
    verb = match[1] if match else ""
    if verb in _EXPLAINS:
        explained = _EXPLAIN.match(statement)
        rest = statement[explained.end() :] if explained else ""
        inner = _VERB.match(rest)
        if inner and inner[1] in _EXPLAINED:
            statement, verb = rest, inner[1]
        elif verb == "analyze":
            return False
    if verb in _INSERTS:
        insert = _INSERT.match(statement)
        if insert is None:
            return False
        statement = statement[insert.end() :]
    elif verb == "with":
        statement = _CTE_COLUMNS.sub(" , ", statement)
    elif verb not in _QUERIES and verb not in _EXPLAINS:
        return _TRANSACTION.match(statement) is not None
    return _is_harmless(statement, harmless_calls)


def _is_harmless(text: str, harmless_calls: frozenset[str]) -> bool:
    """True if nothing in it is known to be harmful and every word before a parenthesis is known to be harmless.

    A quoted name before a parenthesis calls a stored function.
    """
    return (
        _HARMFUL_SIGNS.search(text) is None
        and _HARMFUL_WORDS.isdisjoint(_WORD.findall(text))
        and ("next" not in text or _SEQUENCE.search(text) is None)
        and _QUALIFIED_CALL.search(text) is None
        and harmless_calls.issuperset(_CALL.findall(_NO_CALL.sub(" , ", text)))
    )
