"""What a statement leaves behind in its session, judged from its text as it passes the cursor.

The judgement rests on a list of what is known to be harmless: a statement is ``CLEAN`` only where its verb, every function
that it calls and every construct in it are known to leave nothing that the session's next borrower could notice.
Whatever is not understood is ``DIRTY``; that costs a reset of the session and never a leak. Two things can't be seen in a
statement's text: what a trigger, a view or a generated value of the tables does, and statements that do not pass the
cursor at all. ``reset = "always"`` covers both.
"""

from __future__ import annotations

import re
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

#: Texts longer than this are judged each time rather than remembered, so that the memory stays small.
LONGEST_REMEMBERED = 16_384


class Verdict(IntEnum):
    """What is to be done with the session before its next borrower; the greatest of its statements counts."""

    #: Nothing.
    CLEAN = 0
    #: Reset it.
    DIRTY = 1
    #: Close the connection: no reset clears what was done.
    UNSALVAGEABLE = 2


class Judgement(NamedTuple):
    """What a statement leaves in its session, and what it has to do with what earlier ones have left there."""

    verdict: Verdict
    #: Its answer is about the statement before it: ``ROW_COUNT()``.
    asks_about_previous: bool = False
    #: Its answer is about the last INSERT, which may be further back: ``LAST_INSERT_ID()``.
    asks_about_last_id: bool = False
    #: The last id may be of this statement, afterwards.
    sets_last_id: bool = False
    #: It has one answer, unless an error is it.
    is_single: bool = False


# Built-in functions whose calls change nothing but their result. From the function indexes of the manuals of MySQL 9 and
# MariaDB 11. Left out on purpose: GET_LOCK and its kin, NEXTVAL and its kin (LASTVAL would tell), LOAD_FILE, MASTER_*,
# WAIT_*, SETVAL, BENCHMARK, and whatever a server may have as a stored or loadable function.
_FUNCTIONS = frozenset(
    """
    abs acos adddate addtime ascii asin atan atan2 avg bin bit_and bit_count bit_length bit_or bit_xor cast ceil ceiling
    char char_length character_length charset coalesce coercibility collation concat concat_ws connection_id conv convert
    convert_tz cos cot count crc32 cume_dist curdate current_date current_role current_time current_timestamp current_user
    curtime database date date_add date_format date_sub datediff day dayname dayofmonth dayofweek dayofyear default degrees
    dense_rank elt exp export_set extract field find_in_set first_value floor format format_bytes found_rows from_base64
    from_days from_unixtime greatest group_concat grouping hex hour if ifnull inet6_aton inet6_ntoa inet_aton inet_ntoa
    insert instr interval is_ipv4 is_ipv6 is_uuid isnull json_array json_array_append json_array_insert json_arrayagg
    json_compact json_contains json_contains_path json_depth json_detailed json_equals json_exists json_extract json_insert
    json_keys json_length json_loose json_merge json_merge_patch json_merge_preserve json_normalize json_object
    json_objectagg json_overlaps json_pretty json_query json_quote json_remove json_replace json_schema_valid json_search
    json_set json_storage_size json_table json_type json_unquote json_valid json_value lag last_day last_insert_id
    last_value lcase lead least left length ln localtime localtimestamp locate log log10 log2 lower lpad ltrim make_set
    makedate maketime match max md5 member microsecond mid min minute mod month monthname natural_sort_key now nth_value
    ntile nullif nvl nvl2 oct octet_length ord percent_rank period_add period_diff pi position pow power quarter quote
    radians rand random_bytes rank regexp_instr regexp_like regexp_replace regexp_substr repeat replace reverse right round
    row_count row_number rpad rtrim schema sec_to_time second session_user sha sha1 sha2 sign sin soundex space sqrt
    st_area st_asbinary st_asgeojson st_astext st_aswkb st_aswkt st_boundary st_buffer st_centroid st_collect st_contains
    st_convexhull st_crosses st_difference st_dimension st_disjoint st_distance st_distance_sphere st_endpoint st_envelope
    st_equals st_exteriorring st_frechetdistance st_geohash st_geomcollfromtext st_geometryn st_geometrytype
    st_geomfromgeojson st_geomfromtext st_geomfromwkb st_hausdorffdistance st_interiorringn st_intersection st_intersects
    st_isclosed st_isempty st_isring st_issimple st_isvalid st_latfromgeohash st_latitude st_length st_linefromtext
    st_lineinterpolatepoint st_lineinterpolatepoints st_longfromgeohash st_longitude st_makeenvelope st_numgeometries
    st_numinteriorrings st_numpoints st_overlaps st_pointatdistance st_pointfromgeohash st_pointfromtext st_pointn
    st_pointonsurface st_polyfromtext st_relate st_simplify st_srid st_startpoint st_swapxy st_symdifference st_touches
    st_transform st_union st_validate st_within st_x st_y mbrcontains mbrcoveredby mbrcovers mbrdisjoint mbrequals
    mbrintersects mbroverlaps mbrtouches mbrwithin point linestring polygon multipoint multilinestring multipolygon
    geometrycollection
    std stddev stddev_pop stddev_samp str_to_date strcmp subdate substr substring substring_index subtime sum system_user
    sysdate tan time time_format time_to_sec timediff timestamp timestampadd timestampdiff to_base64 to_char to_days
    to_seconds trim truncate ucase unhex unix_timestamp upper user utc_date utc_time utc_timestamp uuid uuid_short
    uuid_to_bin bin_to_uuid value values var_pop var_samp variance version week weekday weekofyear weight_string year
    yearweek sleep
    """.split()
)

# Words that may stand before a parenthesis without calling anything, and the types of CAST and CONVERT.
_WORDS_BEFORE_PARENTHESIS = frozenset(
    """
    all and any as between binary by case columns cross distinct div else end escape except exists exclude filter for
    from group having in index inner intersect is join key keys lateral like limit match minus natural not offset on or
    order over partition recursive regexp returning rlike row rows select separator set some straight_join table
    then union unique unsigned using when where window with within xor
    char nchar decimal numeric datetime time timestamp varchar varbinary float double signed integer
    """.split()
)

_HARMLESS_BEFORE_PARENTHESIS = _FUNCTIONS | _WORDS_BEFORE_PARENTHESIS

_NAME = r"(?:`(?:[^`]|``)+`|[^\W\d]\w*)"
_QUALIFIED_NAME = rf"{_NAME}(?:\s*\.\s*{_NAME})?"

# The texts that stand for nothing else: strings, comments, quoted names. A backslash before a quote is left out of the
# string pattern on purpose: whether it ends the string depends on NO_BACKSLASH_ESCAPES, so it is not understood. So is a
# placeholder in a string, whose argument brings quotes of its own.
_OPAQUE = re.compile(
    r"""
      (?P<string> '(?:[^'\\%]|''|\\[^'"%]|%%|%(?![%s(]))*' )
    | (?P<quoted> `(?:[^`]|``)+` | "(?:[^"\\%]|""|\\[^'"%]|%%|%(?![%s(]))*" )  # "..." is a name where ANSI_QUOTES is on
    | (?P<hint>   /\*M?!\d*(?P<inside>[\w\s,]*)\*/ )
    | (?P<comment> /\*(?!M?!).*?\*/ | \#[^\n]* | --(?=[\t\n\v\f\r\ ]|\Z)[^\n]* )
    | (?P<placeholder> %s | %\(\w+\)s | %% )
    """,
    re.VERBOSE | re.DOTALL,
)

# What is never harmless in what remains. Comment marks and quotes are leftovers: of what was not understood.
_HARMFUL_SIGNS = re.compile(r"""[@'"\\]|:=|/\*|\*/|--(?![\w(])""")
_HARMFUL_WORDS = frozenset({"into", "nextval", "next", "temporary", "procedure", "load", "handler", "prepare", "xa"})
_WORD = re.compile(r"[^\W\d]\w*")
_CALL = re.compile(r"([^\W\d][\w$]*|`)\s*\(")
_VERB = re.compile(r"[\s(]*([a-z]+)", re.IGNORECASE)
_INSERT = re.compile(
    rf"\s*(?:insert|replace)(?:\s+(?:low_priority|delayed|high_priority|ignore))*(?:\s+into)?\s+{_QUALIFIED_NAME}\s*"
    rf"(?:\([\s\w`$,.]*\))?(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
# A common table expression with its columns: ``name (a, b) AS (``; ``AS (`` never follows a function call.
_CTE_COLUMNS = re.compile(rf"{_NAME}\s*\([\s\w`$,]*\)\s*as\s*(?=\()", re.IGNORECASE)
# What ends or marks a part of a transaction, in the only forms that are harmless.
_TRANSACTION = re.compile(
    rf"\s*(?:(?:commit|rollback)(?:\s+work)?|(?:savepoint|release\s+savepoint|rollback\s+to(?:\s+savepoint)?)\s+{_NAME})\s*$",
    re.IGNORECASE,
)
# What a session acts as: MariaDB's change_user and every server's reset of a session leave it as it was.
_ROLE = re.compile(r"\s*set\s+(?:role|session\s+authorization)\b", re.IGNORECASE)
# What the server answers from a session's memory of its last statement.
_PREVIOUS = re.compile(
    r"\b(?:row_count|found_rows)\s*\(\s*\)"
    r"|\bshow\s+(?:count\s*\(\s*\*\s*\)\s+)?(?:warnings|errors)\b"
    r"|\bget\s+(?:current\s+|stacked\s+)?diagnostics\b"
    r"|@@\s*(?:(?:session|local)\s*\.\s*)?(?:warning_count|error_count)\b",
    re.IGNORECASE,
)
# And of the last id, which outlives statements that insert nothing. (With an argument, LAST_INSERT_ID() sets it.)
_LAST_ID = re.compile(
    r"\blast_insert_id\s*\(\s*\)|@@\s*(?:(?:session|local)\s*\.\s*)?(?:last_insert_id|identity)\b", re.IGNORECASE
)
_SETS_LAST_ID = re.compile(
    r"[\s(]*(?:insert|replace|load|call)\b|.*\blast_insert_id\s*\(\s*[^\s)]", re.IGNORECASE | re.DOTALL
)
_QUERIES = frozenset({"select", "values", "table", "update", "delete", "show", "describe", "desc", "explain"})
_INSERTS = frozenset({"insert", "replace"})


#: Of what is no text; and of a procedure's call.
NOT_A_TEXT = Judgement(Verdict.DIRTY)
CALL = Judgement(Verdict.DIRTY, sets_last_id=True)


def judge(sql: object) -> Judgement:
    """The judgement on a statement, or on several in one string.

    ``sql`` is the template as it was given to ``cursor.execute``: with placeholders, before its arguments are filled in.
    """
    if not isinstance(sql, str):
        if not isinstance(sql, (bytes, bytearray)):
            return NOT_A_TEXT
        # Bytes beyond ASCII can only be part of names and strings; any one-byte encoding keeps them apart from syntax.
        sql = sql.decode("latin-1")
    return _judge_text(sql) if len(sql) > LONGEST_REMEMBERED else _judge_remembered(sql)


def kind_of(statement: object) -> str | None:
    """A statement's first word, ``SELECT`` for instance: nothing of its values."""
    if isinstance(statement, (bytes, bytearray)):
        statement = statement[:40].decode("latin-1")
    match = _VERB.match(statement) if isinstance(statement, str) else None
    return match[1].upper() if match else None


def _judge_text(sql: str) -> Judgement:
    text = _OPAQUE.sub(_stand_in, sql)
    verdict = max(
        (_judge_one(statement) for statement in text.split(";") if not statement.isspace() and statement),
        default=Verdict.CLEAN,
    )
    return Judgement(
        verdict,
        asks_about_previous=_PREVIOUS.search(text) is not None,
        asks_about_last_id=_LAST_ID.search(text) is not None,
        sets_last_id=_SETS_LAST_ID.match(text) is not None,
        is_single=verdict is Verdict.CLEAN and ";" not in sql,
    )


_judge_remembered = lru_cache(maxsize=2048)(_judge_text)


def _stand_in(match: re.Match[str]) -> str:
    """What an opaque text is replaced by, so that only syntax is left to look at."""
    if match["string"]:
        return " 0 "
    if match["quoted"]:
        return "`q`"
    if match["hint"]:
        return f" {match['inside']} "
    # An argument may be a tuple, which is filled in with its parentheses.
    return "(0)" if match["placeholder"] else " "


def _judge_one(statement: str) -> Verdict:
    match = _VERB.match(statement)
    verb = match[1].lower() if match else ""
    if verb in _INSERTS:
        insert = _INSERT.match(statement)
        if insert is None:
            return Verdict.DIRTY
        statement = insert["rest"]
    elif verb == "with":
        statement = _CTE_COLUMNS.sub(" ", statement)
    elif verb == "xa" or _ROLE.match(statement):
        return Verdict.UNSALVAGEABLE
    elif verb not in _QUERIES:
        return Verdict.CLEAN if _TRANSACTION.match(statement) else Verdict.DIRTY
    return Verdict.CLEAN if _is_harmless(statement) else Verdict.DIRTY


def _is_harmless(statement: str) -> bool:
    """Whether nothing in it is known to be harmful and every word before a parenthesis is known to be harmless.

    A quoted name before a parenthesis calls a stored function.
    """
    text = statement.lower()
    return (
        _HARMFUL_SIGNS.search(text) is None
        and _HARMFUL_WORDS.isdisjoint(_WORD.findall(text))
        and _HARMLESS_BEFORE_PARENTHESIS.issuperset(_CALL.findall(text))
    )
