"""The effects of statements: from a list of what is harmless, and of nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_mysqlpool.mysqlpool.statements import LONGEST_REMEMBERED, SessionEffect, analyser_for, kind_of

pytestmark = pytest.mark.unit

MARIADB, MYSQL = "10.11.19-MariaDB-ubu2204", "9.7.4"
ANALYSERS = {server: analyser_for(server, "utf8mb4") for server in (MARIADB, MYSQL)}
analyse = ANALYSERS[MARIADB]

CLEAN = [
    "SELECT 1",
    "select 1",
    "  \n\t SELECT 1",
    "(SELECT 1)",
    "((SELECT a FROM t) UNION ALL (SELECT b FROM t)) ORDER BY 1 LIMIT 3",
    "SELECT COUNT(*) FROM `a b` WHERE `c``@d` = %s AND e IN (%s, %s)",
    "SELECT a FROM t WHERE b IN %s",
    "SELECT a FROM t WHERE mail = 'who@where.org' AND x = \"@y\"",
    "SELECT 'it''s; SET @a = 1'",
    r"SELECT 'a\nb', '%%', 'back\\slash'",
    "SELECT a /* @ SET GET_LOCK( */ FROM t -- @x\n WHERE b = 1 # ; SET @y = 1\n AND c = 2",
    "/* traceparent='00-ab@cd' */ SELECT 1",
    "-- first\nSELECT 1",
    "SELECT /*! STRAIGHT_JOIN */ a FROM t",
    "SELECT /*!40001 SQL_NO_CACHE */ a FROM t",
    "SELECT /*+ MAX_EXECUTION_TIME(1000) */ a FROM t",
    "SELECT a FROM t FOR UPDATE SKIP LOCKED",
    "SELECT a FROM t LOCK IN SHARE MODE",
    "WITH x AS (SELECT 1) SELECT * FROM x",
    "WITH x (a, b) AS (SELECT 1, 2), `y` (`c`) AS (SELECT 3) SELECT * FROM x, `y`",
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9) SELECT i FROM n",
    "WITH x AS (SELECT 1) DELETE FROM t WHERE a IN (SELECT * FROM x)",
    "INSERT INTO `t` (`a`, `b`) VALUES (%s, %s), (%s, %s)",
    "INSERT INTO t VALUES (1)",
    "INSERT IGNORE INTO d.t (a) SELECT b FROM u WHERE c = LOWER(%s)",
    "INSERT INTO t (a) VALUES (%(name)s) ON DUPLICATE KEY UPDATE a = VALUES(a), id = LAST_INSERT_ID(id)",
    "INSERT INTO `t` (`a`) VALUES (%s) RETURNING `t`.`id`",
    "REPLACE INTO t SET a = 1",
    "UPDATE t SET a = REPLACE(a, 'x', 'y') WHERE b = 1",
    "DELETE FROM t WHERE a = CAST(%s AS CHAR(3))",
    "SELECT RANK() OVER (PARTITION BY a ORDER BY b) FROM t",
    "SELECT JSON_EXTRACT(`a`, %s), ST_Within(`b`, ST_GeomFromText(%s)) FROM t",
    "VALUES ROW(1, 2)",
    "TABLE t",
    "SHOW TABLES LIKE 'x'",
    "DESCRIBE t",
    "EXPLAIN SELECT 1",
    "SAVEPOINT `s1`",
    "RELEASE SAVEPOINT `s1`",
    "ROLLBACK TO SAVEPOINT `s1`",
    "COMMIT",
    "ROLLBACK",
    "SELECT 1; SELECT 2;",
    ";",
    "",
    "SELECT HEX(AES_ENCRYPT(%s, 'k')), UNCOMPRESS(COMPRESS(%s)), EXTRACTVALUE(%s, '/a'), UPDATEXML(%s, '/a', '')",
    "SELECT _binary %s, _utf8mb4 %s, _latin1'x', N'y', x'4D', 0x4D",
    "INSERT INTO `t` (`a`) VALUES (_binary %s), (_binary %s)",
    "SELECT id FROM t WHERE MATCH (a, `b`) AGAINST (%s IN BOOLEAN MODE) OR MATCH(a) AGAINST('x')",
    "SELECT a FROM t JOIN JSON_TABLE(t.b, '$[*]' COLUMNS (a INT PATH '$.a', NESTED PATH '$.b' COLUMNS(c INT PATH '$'))) j",
    "SELECT CAST(`a` AS datetime(6)), CAST(a AS DECIMAL(10, 2)), CONVERT(a USING utf8mb4)",
    "SELECT a FROM t AS x (a) WHERE `x`.`a` IN (1)",
    "SELECT ROW_NUMBER () OVER w FROM t WINDOW w AS (ORDER BY a)",
    r"""SELECT 'it is \"so\"', "it's", 'a\%b', 5 %% 2, a %% 2""",
    "EXPLAIN INSERT INTO t (a) SELECT 1",
    "ANALYZE SELECT a FROM t",
    "ANALYZE FORMAT=JSON UPDATE t SET a = 1",
    "EXPLAIN FORMAT=JSON SELECT LOWER(a) FROM t",
    "DESC `t`",
    "SELECT a FROM t WHERE b LIKE %s ESCAPE %s OR b LIKE 'x' ESCAPE ('!')",
    "SELECT 5--3, 5 - -3",
    "SELECT 1 -- é\n, 'é', `é`, é FROM t",
    b"SELECT 1",
    bytearray(b"INSERT INTO t VALUES ('\xff')"),
]
DIRTY = [
    "SET @a = 1",
    "SELECT @a",
    "SELECT @@sql_mode",
    "SELECT @a := 1",
    "SELECT 1 INTO @a",
    "SELECT a INTO OUTFILE '/tmp/x' FROM t",
    "INSERT INTO t (a) SELECT 1 INTO @a",
    "/* a comment */ SET NAMES latin1",
    "# one\n-- two\n set foreign_key_checks = 0",
    "/*! SET @a = 1 */",
    "/*M! SET @a = 1 */",
    "/*!50001 SET @a = 1 */",
    "SELECT 1 /*! , GET_LOCK */ ('a', 1)",
    "SELECT 1 /*!99999 ' */, @a := 1 /*!99999 ' */",
    "SELECT GET_LOCK('a', 1)",
    "select get_lock ('a', 1)",
    "SELECT GET_LOCK/**/('a', 1)",
    "SELECT GET_LOCK%s",
    "DO RELEASE_LOCK('a')",
    "SELECT my_function(1)",
    "SELECT `my_function`(1)",
    "SELECT d.my_function(1)",
    'SELECT "my_function"(1)',
    "INSERT INTO t (a) VALUES (my_function(1))",
    "INSERT INTO t (a) VALUES (NEXTVAL(s))",
    "SELECT NEXT VALUE FOR s",
    r"SELECT '\', @a := 1, '",
    "SELECT 'never closed",
    "SELECT 1 /* never closed",
    "SELECT /* /* */ @a := 1 /* */",
    "SELECT 1; SET @a = 1",
    "SELECT ';'; SET @a = 1",
    "CREATE TEMPORARY TABLE t (a INT)",
    "CREATE TABLE t (a INT)",
    "DROP DATABASE d",
    "LOCK TABLES t READ",
    "UNLOCK TABLES",
    "PREPARE p FROM 'SELECT 1'",
    "EXECUTE p",
    "HANDLER t OPEN",
    "CALL p()",
    "BEGIN",
    "START TRANSACTION",
    "COMMIT AND CHAIN",
    "ROLLBACK RELEASE",
    "USE d",
    "FLUSH TABLES WITH READ LOCK",
    "LOAD DATA INFILE 'x' INTO TABLE t SET a = @b",
    "SAVEPOINT a b",
    "q'[it's]'",
    "SELECT 1 --\x01 '\n , @h := 1 -- '",
    "SELECT 1 --\u2003, @h := 1 FROM (SELECT 5 `\u2003`) t",
    "SELECT 1 --\x85 x",
    "SELECT '%s'",
    'SELECT "%(name)s"',
    "SELECT d.now()",
    "SELECT d . now ()",
    "SELECT `d`.now()",
    "SELECT d.`now`()",
    "SELECT d./* */now()",
    "SELECT d.left(a)",
    "SELECT d./*!99999 a, */now()",
    "SELECT now ()",  # only what follows at once is the function
    "SELECT now\n()",
    "SELECT now/**/()",
    "SELECT now/*!99999 , x */()",
    "SELECT COUNT (*) FROM t",
    "SELECT 5now(), 1e5now()",
    "SELECT ma\u212ae_set(1, 'a')",  # a Kelvin sign, which Python has for a k
    "SELECT now\xa0()",
    "SELECT x\xa0()",
    "SELECT _nothing(1)",
    "SELECT against(1)",
    "SET @xaxis = 1",
    "SELECT f.x, my.sum(1)",
    "INSERT INTO t (SELECT NEXT VALUE FOR s)",
    "SELECT NEXT /*! */ VALUE FOR s",
    "SELECT `%s`",
    "SELECT '\\%s'",
    "ANALYZE TABLE t",
    "EXPLAIN SELECT my_function(1)",
    "EXPLAIN FORMAT=JSON INTO @a SELECT 1",
    "SELECT 1 INTO\xa0OUTFILE 'x'",
    "SELECT\x00 1",
    "SELECT 'a''\\' , @x := 1 , ''",
    "¿",
    None,
    7,
]
UNSALVAGEABLE = ["XA START 'a'", "xa end 'a'", "SELECT 1; XA COMMIT 'a'", "/* c */ XA RECOVER"]
UNSALVAGEABLE += ["SET ROLE reader", "set /* c */ role none", "SELECT 1; SET ROLE DEFAULT", "/*!80000 SET ROLE r */"]
UNSALVAGEABLE += ["SET SESSION AUTHORIZATION u", "SET profiling = 1", "set @@session.`profiling`=1", "SET @@profiling := 1"]
UNSALVAGEABLE += ["SET SESSION optimizer_trace = 'enabled=on'", "SET RESOURCE GROUP g", "SET RESOURCE/**/GROUP g FOR 1"]
UNSALVAGEABLE += ["/*!50000 SET profiling = 1 */", "SELECT 1; SET profiling = 1", r"SELECT 'it\'s'; SET profiling = 1"]
UNSALVAGEABLE += ["EXECUTE IMMEDIATE 'SET profiling = 1'", "PREPARE p FROM 'SET ROLE r'", "SET @a = 'XA START 1'"]
UNSALVAGEABLE += [b"SET profiling=1"]
UNSALVAGEABLE += ["BEGIN NOT ATOMIC SET profiling = 1; END", "SET STATEMENT optimizer_trace='enabled=on' FOR SELECT 1"]
UNSALVAGEABLE += ["BINLOG 'x'"]

#: What is harmless on one server only, because the function is built in there.
CLEAN_ON = {
    MARIADB: [
        "SELECT COLUMN_GET(COLUMN_ADD(COLUMN_CREATE('a', 1), 'b', 2), 'b' AS INTEGER), COLUMN_JSON(a) FROM t",
        "SELECT MEDIAN(a) OVER (PARTITION BY b), PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY a) OVER () FROM t",
        "SELECT CHR(65), SFORMAT('{}', 1), CRC32C('x'), NVL2(1, 2, 3), MD5('x')",
        "SELECT TO_CHAR(NOW()), NATURAL_SORT_KEY('x'), SYSDATE ()",
    ],
    MYSQL: [
        "SELECT UUID_TO_BIN(UUID()), BIN_TO_UUID(a), ANY_VALUE(a) FROM t",
        "SELECT 1 MEMBER OF('[1, 2]'), 1 MEMBER OF (%s)",
        "SELECT REGEXP_LIKE(a, %s), POINT(1, 2) FROM t",
        "SELECT * FROM t, LATERAL (SELECT 1) x, JSON_TABLE('[]', '$[*]' COLUMNS (a INT PATH '$')) j",
        "SELECT RANK () OVER (ORDER BY a) FROM t",
    ],
}


@pytest.mark.parametrize("analyse", ANALYSERS.values(), ids=ANALYSERS)
class TestOnEitherServer:
    @pytest.mark.parametrize("sql", CLEAN)
    def test_harmless(self, analyse, sql):
        assert analyse(sql).on_session is SessionEffect.CLEAN

    @pytest.mark.parametrize("sql", DIRTY)
    def test_not_known_to_be_harmless(self, analyse, sql):
        assert analyse(sql).on_session is SessionEffect.DIRTY

    @pytest.mark.parametrize("sql", UNSALVAGEABLE)
    def test_beyond_a_reset(self, analyse, sql):
        assert analyse(sql).on_session is SessionEffect.UNSALVAGEABLE


@pytest.mark.parametrize(("server", "sql"), [(server, sql) for server, sqls in CLEAN_ON.items() for sql in sqls])
def test_a_function_of_one_server_may_be_a_stored_one_on_others(server, sql):
    for name, judge_there in ANALYSERS.items():
        assert judge_there(sql).on_session is (SessionEffect.CLEAN if name == server else SessionEffect.DIRTY), name


@pytest.mark.parametrize("version", ["10.6.0-MariaDB", "5.5.5-10.6.21-MariaDB-log", "8.0.11", "9.6.0", "no version"])
def test_a_function_of_a_newer_version_may_be_a_stored_one(version):
    newer = {"10.6.0-MariaDB": "SFORMAT(1)", "8.0.11": "JSON_VALUE(1, 2)", "9.6.0": "MD5(1)"}
    sql = newer.get(version, "CRC32C(1)")
    assert analyser_for(version, "utf8mb4")(f"SELECT {sql}").on_session is SessionEffect.DIRTY
    assert analyser_for(version, "utf8mb4")("SELECT ABS(1)").on_session is SessionEffect.CLEAN


def test_the_kind_of_a_statement_is_told_by_its_beginning():
    assert kind_of("SELECT 1") == kind_of(b"(select 1)") == "SELECT"
    assert kind_of("(" * 1_000_000) is kind_of(None) is None


class TestCharacterSets:
    """Where bytes of ASCII may belong to other characters, only ASCII is understood."""

    #: A character whose second byte is a backslash, and one whose is a backtick, with the character set.
    TRAPS = (("gbk", b"\x81\x5c", b"\x81\x60"), ("sjis", b"\x83\x5c", b"\x83\x60"), ("cp932", b"\x83\x5c", b"\x83\x60"))
    TRAPS += (("big5", b"\xa5\x5c", b"\xa5\x60"), ("gb18030", b"\x81\x5c", b"\x81\x60"))

    @pytest.mark.parametrize("charset", ["gbk", "sjis", "cp932", "big5", "gb18030", "euckr", "ujis", "swe7", "new"])
    def test_ascii_is_understood_in_any(self, charset):
        analyse = analyser_for("10.11.0-MariaDB", charset)
        assert analyse("SELECT a FROM t WHERE b = %s").on_session is analyse(b"SELECT 1").on_session is SessionEffect.CLEAN
        assert analyse("SELECT '\xa5'").on_session is analyse(b"SELECT '\xa1\xa1'").on_session is SessionEffect.DIRTY

    @pytest.mark.parametrize(("charset", "backslash", "backtick"), TRAPS)
    def test_half_a_character_is_no_quote(self, charset, backslash, backtick):
        analyse = analyser_for("10.11.0-MariaDB", charset)
        for text in (b"SELECT '" + backslash + b"', @a := 1, '", b"SELECT " + backtick + b", @a := 1 AS " + backtick):
            assert analyse(text).on_session is SessionEffect.DIRTY
        assert analyse(b"SELECT '" + backslash + b"'; SET profiling = 1").on_session is SessionEffect.UNSALVAGEABLE

    @pytest.mark.parametrize("charset", ["utf8mb4", "utf8mb3", "latin1", "cp1251", "cp850", "binary"])
    def test_others_are_read_as_they_are(self, charset):
        analyse = analyser_for("10.11.0-MariaDB", charset)
        assert analyse("INSERT INTO t VALUES ('ä')".encode()).on_session is SessionEffect.CLEAN
        assert analyse(b"INSERT INTO t VALUES ('\xff')").on_session is SessionEffect.CLEAN
        # A space for some.
        assert (
            analyse(b"SELECT now\xa0()").on_session
            is analyse(b"SELECT 1 into\xffoutfile 'x'").on_session
            is SessionEffect.DIRTY
        )


class TestJsonTable:
    @pytest.mark.parametrize("before", ["FROM", "FROM t,", "FROM t JOIN", "FROM (SELECT 1) u, t ,"])
    @pytest.mark.parametrize("server", ["10.11.0-MariaDB", "8.0.36"])
    def test_as_a_table(self, server, before):
        sql = f"SELECT * {before} JSON_TABLE(j, '$[*]' COLUMNS(x INT PATH '$')) AS jt"
        assert analyser_for(server, "utf8mb4")(sql).on_session is SessionEffect.CLEAN

    @pytest.mark.parametrize(
        "expression",
        ["json_table(1)", "json_table('$' , columns (2))", "json_table(1 + columns (2))", "json_table((1), 2)"],
    )
    def test_as_a_stored_function_of_mariadbs(self, expression):
        sql = f"SELECT 1, {expression} FROM t, JSON_TABLE(j, '$' COLUMNS(x INT PATH '$')) AS jt"
        assert analyser_for("10.11.0-MariaDB", "utf8mb4")(sql).on_session is SessionEffect.DIRTY


def test_the_worst_of_several_counts():
    assert analyse("SELECT 1; SET @a = 1; XA START 'a'; SELECT 2").on_session is SessionEffect.UNSALVAGEABLE


def test_a_long_text_is_analysed_alike():
    padding = " " * LONGEST_REMEMBERED
    assert analyse(f"SELECT{padding}1").on_session is SessionEffect.CLEAN
    assert analyse(f"SELECT{padding}@a := 1").on_session is SessionEffect.DIRTY


@given(st.text())
def test_what_a_string_says_does_not_matter(text):
    literal = text.replace("\\", "\\\\").replace("'", "''").replace("%", "%%")
    assert analyse(f"SELECT a FROM t WHERE b = '{literal}'").on_session is SessionEffect.CLEAN


@given(st.text(alphabet=st.characters(exclude_characters="\n")), st.sampled_from(["-- {}\n", "# {}\n"]))
def test_what_a_comment_says_does_not_matter(text, comment):
    assert analyse(f"SELECT 1 {comment.format(text)} + 1").on_session is SessionEffect.CLEAN
    # (A server runs some comments: their words count if the statement is dirty anyway, as "XA" does.)
    assert analyse(f"SELECT 1 {comment.format(text)} + @a").on_session is not SessionEffect.CLEAN


PIECES = ["'", '"', "`", "\\", "/*", "*/", "/*!", "--", "#", "\n", "\x01", "\u2003", "\xa0", ";", " ", "a", "(", ")", "%s"]


@given(st.lists(st.sampled_from(PIECES)))
def test_no_wrapping_hides_a_user_variable_from_the_server_and_from_us_alike(pieces):
    """Whatever stands before it: where the analyse sees the variable as text, so does a server in either SQL mode."""
    sql = "SELECT 1 " + "".join(pieces) + " @a"
    if analyse(sql).on_session is SessionEffect.CLEAN:
        assert all(is_inert(sql, backslash_escapes=mode) for mode in (True, False))


def is_inert(sql: str, *, backslash_escapes: bool) -> bool:
    """A reader of MySQL's own rules, one character at a time: whether ``@`` stands only in strings and comments."""
    i = 0
    while i < len(sql):
        if sql[i] in "'\"`":
            quote, i = sql[i], i + 1
            while i < len(sql) and sql[i] != quote:
                i += 2 if backslash_escapes and quote != "`" and sql[i] == "\\" else 1
            i += 1
        elif sql.startswith("/*", i) and not sql.startswith("/*!", i):
            end = sql.find("*/", i + 2)
            i = len(sql) if end < 0 else end + 2
        elif sql[i] == "#" or (sql.startswith("--", i) and (sql[i + 2 : i + 3] <= " " or i + 2 == len(sql))):
            end = sql.find("\n", i)
            i = len(sql) if end < 0 else end
        elif sql[i] == "@":
            return False
        else:
            i += 1
    return True
