"""The warnings about connections that were never returned: the right place, once, with a count, and nothing untrue."""

from __future__ import annotations

import logging
import re
import sys
import threading
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.db import connections
from django.test import TestCase

from django_mysqlpool.mysqlpool.pool import reports, stacks
from tests.helpers import eventually, holds, status_of, tell_all

pytestmark = [pytest.mark.python, pytest.mark.asgiref, pytest.mark.mode]


def forget(alias: str, what: str | None = None) -> None:
    """Leave a connection out, in a thread that ends."""
    own = connections[alias]
    _kept.append(own)
    if what == "transaction":
        own.set_autocommit(False)
    with own.cursor() as cursor:
        cursor.execute("SET @a = 1" if what == "dirt" else "SELECT 1")


_kept: list = []


@pytest.fixture
def told(caplog):
    """The warnings about forgotten connections, each place in the code as if it had never forgotten one."""
    reports._places.clear()
    stacks.memory.keeps_all = False

    def messages(at_least: int = 0) -> list[str]:
        """What has been told; what was said is told as the maintenance thread does it, which may be doing it just now."""
        tell_all()
        texts = [record.getMessage() for record in caplog.records if "never given back" in record.getMessage()]
        if len(texts) < at_least:
            eventually(messages, lambda texts: len(texts) >= at_least)
            return messages()
        return texts

    yield messages
    _kept.clear()


def in_thread(function, *args, name=None) -> None:
    thread = threading.Thread(target=function, args=args, name=name)
    thread.start()
    thread.join(30)


class TestForgotten:
    """Connections that their threads never returned."""

    def all_are_back(self, wrapper) -> None:
        eventually(lambda: status_of(wrapper)["out"], lambda out: out == 0)

    @holds
    def test_after_a_test_case_of_djangos(self, make_alias, told):
        """It puts a method of its own around ``ensure_connection``, for good."""
        wrapper = make_alias()

        class Case(TestCase):
            databases = frozenset({wrapper.alias})

        patched = Case.ensure_connection_patch_method()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("django.db.backends.base.base.BaseDatabaseWrapper.ensure_connection", patched)
            in_thread(forget, wrapper.alias)
        self.all_are_back(wrapper)
        (message,) = told(1)
        assert re.search(rf"{re.escape(__file__)}:\d+, in forget", message)

    @holds
    @pytest.mark.parametrize(("what", "is_told"), [(None, False), ("transaction", True), ("dirt", True)])
    def test_a_rollback_is_told_of_only_where_something_was_open(self, make_alias, told, what, is_told):
        wrapper = make_alias()
        in_thread(forget, wrapper.alias, what)
        self.all_are_back(wrapper)
        (message,) = told(1)
        assert ("what it left open is rolled back" in message) is is_told

    @holds
    def test_nothing_is_open_in_what_another_thread_is_just_closing(self, make_alias):
        wrapper = make_alias()
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
        lease = wrapper.lease
        lease.session.observed.restore(lease.session.connection)
        assert not reports._left_something_open(lease)
        lease.invalidate("lost")
        wrapper.close()

    @holds
    def test_nothing_is_open_where_nothing_was_sent(self, make_alias, told):
        wrapper = make_alias()
        alias = wrapper.alias

        def connect() -> None:
            _kept.append(connections[alias])
            connections[alias].set_autocommit(False)

        in_thread(connect)
        self.all_are_back(wrapper)
        (message,) = told(1)
        assert "rolled back" not in message

    @holds
    def test_a_place_is_told_of_once_and_then_with_a_count(self, make_alias, told, monkeypatch):
        now = [1000.0]
        monkeypatch.setattr(reports, "time", SimpleNamespace(monotonic=lambda: now[0]))
        wrapper = make_alias(pool={"pool_size": 5, "max_overflow": 0})
        for number in range(12):
            in_thread(forget, wrapper.alias, name=f"t{number}")
        self.all_are_back(wrapper)
        in_thread(forget, wrapper.alias, "transaction")  # connects in another line
        self.all_are_back(wrapper)
        first, other = told(2)
        assert "It is" not in first + other
        reports.tell_forgotten()
        assert len(told()) == 2
        now[0] += reports.FIRST_PAUSE
        reports.tell_forgotten()
        assert told(3)[2].endswith(" It is number 12 from there.")
        # The next pause is twice as long, and nothing is said where nothing has been forgotten.
        in_thread(forget, wrapper.alias, name="t12")
        self.all_are_back(wrapper)
        now[0] += reports.FIRST_PAUSE
        reports.tell_forgotten()
        assert len(told()) == 3
        now[0] += reports.FIRST_PAUSE
        for _ in range(2):
            reports.tell_forgotten()
        (last,) = told(4)[3:]
        assert last.endswith(" It is number 13 from there.")

    @holds
    def test_the_place_is_kept_of_a_threads_first_checkouts_and_of_all_once_one_was_missed(self, make_alias, told):
        alias = make_alias().alias

        def be_careful(times: int) -> None:
            for _ in range(times):
                with closing(connections[alias]) as own:
                    own.ensure_connection()
            forget(alias)

        def warnings_after(times: int) -> list[str]:
            before = len(told())
            in_thread(be_careful, times)
            self.all_are_back(connections[alias])
            reports._places.clear()
            return told(before + 1)[before:]

        (soon,) = warnings_after(stacks.FIRST - 1)
        assert re.search(rf"{re.escape(__file__)}:\d+, in forget", soon)
        (late,) = warnings_after(stacks.FIRST)
        assert late.endswith(". Where it was checked out is not known; of the next one it will be told.")
        assert "in forget" not in late
        (next_one,) = warnings_after(stacks.FIRST)
        assert re.search(rf"{re.escape(__file__)}:\d+, in forget", next_one)

    @holds
    def test_all_are_kept_if_leaks_are_looked_for(self, make_alias):
        wrapper = make_alias(pool={"leak_after": 3600})
        for _ in range(stacks.FIRST + 1):
            wrapper.close()
            wrapper.ensure_connection()
        assert wrapper.lease.stack

    def test_the_memory_of_places_is_bounded(self, told):
        code = [(compile("", f"place {number}", "exec"), 1) for number in range(3 * reports.PLACES)]
        thread = threading.current_thread()
        for entry in code:
            reports.forgotten(SimpleNamespace(alias="a", stack=(entry,), thread=thread, statement=None))
        assert len(reports._places) == reports.PLACES


SITE = next(path for path in sys.path if path.endswith("site-packages"))
DJANGO = str(Path(sys.modules["django"].__file__).parent)
STANDARD = str(Path(logging.__file__).parents[1])
OURS = str(Path(reports.__file__).parents[1])
#: What is innermost in each stack, the innermost first.
CHECKOUT = [f"{OURS}/mysqlpool/wrapper.py", f"{DJANGO}/db/backends/base/base.py", f"{DJANGO}/utils/asyncio.py"]


def stack_of(*files: str) -> stacks.Stack:
    """A stack of functions ``f`` in these files, each at line 7; ``file|name`` for another name."""
    stack = []
    for file in files:
        path, _, name = file.partition("|")
        name = name or "f"
        code = compile("\n" * 6 + ("x = 1" if name == "<module>" else f"def {name}(): x = 1"), path, "exec")
        code = code if name == "<module>" else code.co_consts[0]
        stack.append((code, next(begin for begin, _, line in code.co_lines() if line == 7)))
    return tuple(stack)


class TestThePlace:
    """Where a checkout happened: in the user's own code, if there is any."""

    @pytest.mark.parametrize(
        ("files", "place"),
        [
            (["/srv/shop/views.py", f"{STANDARD}/threading.py"], "/srv/shop/views.py"),
            ([f"{DJANGO}/test/testcases.py", f"{DJANGO}/db/models/query.py", "/srv/shop/tests.py"], "/srv/shop/tests.py"),
            (
                [f"{STANDARD}/contextlib.py", "/srv/shop/jobs.py", f"{STANDARD}/concurrent/futures/thread.py"],
                "/srv/shop/jobs.py",
            ),
            ([f"{SITE}/sentry_sdk/integrations/django/__init__.py", f"{DJANGO}/db/x.py", "/srv/a.py"], "/srv/a.py"),
            (
                [f"{SITE}/rest_framework/views.py", "/srv/shop/api.py", f"{DJANGO}/core/handlers/base.py"],
                "/srv/shop/api.py",
            ),
            ([f"{SITE}/django_q/worker.py", f"{STANDARD}/multiprocessing/process.py"], f"{SITE}/django_q/worker.py"),
            (
                [f"{SITE}/django_q/worker.py", f"{DJANGO}/core/management/__init__.py", "/srv/manage.py|main"],
                f"{SITE}/django_q/worker.py",
            ),
            ([f"{SITE}/apscheduler/x.py", f"{STANDARD}/threading.py", "/srv/run.py|<module>"], f"{SITE}/apscheduler/x.py"),
            (["/srv/run.py|<module>"], "/srv/run.py"),
            (["/srv/tests/test_a.py", f"{SITE}/_pytest/python.py", f"{SITE}/pluggy/_callers.py"], "/srv/tests/test_a.py"),
            (["/srv/tests/test_a.py", f"{STANDARD}/unittest/case.py", f"{DJANGO}/test/runner.py"], "/srv/tests/test_a.py"),
            (["/srv/django/db/views.py"], "/srv/django/db/views.py"),
            (
                [f"{DJANGO}/contrib/sessions/backends/db.py", f"{STANDARD}/threading.py"],
                f"{DJANGO}/contrib/sessions/backends/db.py",
            ),
            ([f"{OURS}/threading_utils/work.py", "/srv/a.py"], "/srv/a.py"),
            (["<frozen runpy>", "/srv/a.py"], "/srv/a.py"),
            (
                [f"{DJANGO}/contrib/x.py", f"{DJANGO}/core/management/__init__.py|call_command", "/srv/job.py"],
                "/srv/job.py",
            ),
            (["/usr/lib/python3/dist-packages/lib/x.py", "/srv/a.py|<module>"], "/usr/lib/python3/dist-packages/lib/x.py"),
            ([f"{STANDARD}/threading.py"], CHECKOUT[0]),
        ],
        ids=range(18),
    )
    def test_is_named(self, files, place):
        assert stacks.format_place(stack_of(*CHECKOUT, *files)).startswith(f"{place}:7, in ")

    def test_the_lines_are_those_of_the_frames(self):
        def two_of_ours(number: int = 1) -> stacks.Stack:
            return two_of_ours(number - 1) if number else stacks.stack_of_caller()

        def told() -> tuple[str, int]:
            return (
                stacks.format_stack(two_of_ours()),
                sys._getframe().f_lineno - 1,
            )

        text, line = told()
        mine = f'File "{__file__}", line '
        assert [part.split(",")[0] for part in text.split(mine)[1:]] == [str(line + 4), str(line)]

    def test_of_a_stack_of_nothing_but_machinery(self):
        assert stacks.format_stack(stack_of(*CHECKOUT))

    def test_a_told_stack_ends_with_the_code_that_asked(self):
        told = stacks.format_stack(stack_of(*CHECKOUT, f"{DJANGO}/test/testcases.py", f"{SITE}/lib/x.py", "/srv/a.py"))
        assert [line.split('"')[1] for line in told.splitlines()] == ["/srv/a.py", f"{SITE}/lib/x.py"]
