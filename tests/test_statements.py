"""The judgement of statements: from a list of what is harmless, and of nothing else."""

from __future__ import annotations

import pytest
from django.db import transaction
from django.db.models import Count, F, Q, Sum, Window
from django.db.models.functions import Coalesce, Concat, ExtractYear, Lower, Now, Rank, TruncMonth
from hypothesis import given
from hypothesis import strategies as st

from django_mysqlpool.mysqlpool.statements import LONGEST_REMEMBERED, Verdict, judge
from tests.shop.models import Account

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
    "¿",
    None,
    7,
]
UNSALVAGEABLE = ["XA START 'a'", "xa end 'a'", "SELECT 1; XA COMMIT 'a'", "/* c */ XA RECOVER"]
UNSALVAGEABLE += ["SET ROLE reader", "set /* c */ role none", "SELECT 1; SET ROLE DEFAULT", "/*!80000 SET ROLE r */"]
UNSALVAGEABLE += ["SET SESSION AUTHORIZATION u"]


@pytest.mark.parametrize("sql", CLEAN)
def test_harmless(sql):
    assert judge(sql).verdict is Verdict.CLEAN


@pytest.mark.parametrize("sql", DIRTY)
def test_not_known_to_be_harmless(sql):
    assert judge(sql).verdict is Verdict.DIRTY


@pytest.mark.parametrize("sql", UNSALVAGEABLE)
def test_beyond_a_reset(sql):
    assert judge(sql).verdict is Verdict.UNSALVAGEABLE


def test_the_worst_of_several_counts():
    assert judge("SELECT 1; SET @a = 1; XA START 'a'; SELECT 2").verdict is Verdict.UNSALVAGEABLE


def test_a_long_text_is_judged_alike():
    padding = " " * LONGEST_REMEMBERED
    assert judge(f"SELECT{padding}1").verdict is Verdict.CLEAN
    assert judge(f"SELECT{padding}@a := 1").verdict is Verdict.DIRTY


QUERIES = {
    "filter": Account.objects.filter(Q(name__icontains="a") | ~Q(balance__in=[1, 2])),
    "annotate": Account.objects.values("name").annotate(n=Count("pk"), s=Coalesce(Sum("balance"), 0)).order_by("-n"),
    "functions": Account.objects.annotate(c=Concat(Lower("name"), "name"), y=ExtractYear(Now()), m=TruncMonth(Now())),
    "window": Account.objects.annotate(rank=Window(Rank(), partition_by="name", order_by=F("balance").desc())),
    "subquery": Account.objects.filter(pk__in=Account.objects.filter(balance__gt=3).values("pk")),
    "union": Account.objects.filter(pk=1).union(Account.objects.filter(pk=2), all=True),
    "for update": Account.objects.select_for_update(skip_locked=True).filter(pk=1),
    "explain": Account.objects.filter(name__regex="^a"),
}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_what_the_orm_writes_is_harmless(query):
    with transaction.atomic():  # select_for_update() wants one
        sql, _ = query.query.sql_with_params()
    assert judge(sql).verdict is Verdict.CLEAN, sql


@given(st.text())
def test_what_a_string_says_does_not_matter(text):
    literal = text.replace("\\", "\\\\").replace("'", "''").replace("%", "%%")
    assert judge(f"SELECT a FROM t WHERE b = '{literal}'").verdict is Verdict.CLEAN


@given(st.text(alphabet=st.characters(exclude_characters="\n")), st.sampled_from(["-- {}\n", "# {}\n"]))
def test_what_a_comment_says_does_not_matter(text, comment):
    assert judge(f"SELECT 1 {comment.format(text)} + 1").verdict is Verdict.CLEAN
    assert judge(f"SELECT 1 {comment.format(text)} + @a").verdict is Verdict.DIRTY


PIECES = ["'", '"', "`", "\\", "/*", "*/", "/*!", "--", "#", "\n", "\x01", "\u2003", "\xa0", ";", " ", "a", "(", ")", "%s"]


@given(st.lists(st.sampled_from(PIECES)))
def test_no_wrapping_hides_a_user_variable_from_the_server_and_from_us_alike(pieces):
    """Whatever stands before it: where the judge sees the variable as text, so does a server in either SQL mode."""
    sql = "SELECT 1 " + "".join(pieces) + " @a"
    if judge(sql).verdict is Verdict.CLEAN:
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
