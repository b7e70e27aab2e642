"""When ``discard_on_error`` is imported, and what is said where that fails; what it decides, test_faults has."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from django.core.checks import run_checks
from django.db import DatabaseError

from django_mysqlpool.mysqlpool.backend.settings import pool_options
from tests.helpers import backend_pid, tell_all

pytestmark = pytest.mark.django

# The hook of the tests below is in a module that imports models, as any may.
HOOKED_SITE = """
    import sys
    from pathlib import Path
    from django.conf import settings

    HERE = Path(__file__).parent
    sys.path.insert(0, str(HERE))
    settings.configure(
        INSTALLED_APPS=["hooked"],
        DATABASES={{"default": {{
            "ENGINE": "django_mysqlpool.backends.mysqlpool",
            "HOST": "127.0.0.1",
            "PORT": {port},
            "OPTIONS": {{"pool": {{"discard_on_error": "hooked.hooks.discard"}}}},
        }}}},
    )
    import django
    django.setup()
    from django.core.checks import run_checks
    print([message.id for message in run_checks(tags=["compatibility"]) if "discard" in message.msg])
"""


class TestDiscardOnError:
    def test_may_need_models(self, tmp_path):
        """Options are read while the first model is made, for the length of its table's name."""
        (tmp_path / "hooked").mkdir()
        (tmp_path / "hooked/__init__.py").write_text("")
        (tmp_path / "hooked/models.py").write_text(
            "from django.db import connection, models\n"
            "assert connection.pool_options.discard_on_error\n"
            "class Thing(models.Model):\n    class Meta:\n        app_label = 'hooked'\n"
        )
        (tmp_path / "hooked/hooks.py").write_text("from .models import Thing\ndef discard(error, alias): ...\n")
        (tmp_path / "site.py").write_text(textwrap.dedent(HOOKED_SITE.format(port=1)))
        command = [sys.executable, str(tmp_path / "site.py")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[1])
        assert (done.stdout, done.stderr) == ("[]\n", "")

    @pytest.mark.parametrize(
        ("path", "why"),
        [
            ("tests.missing.hook", "ModuleNotFoundError: No module named 'tests.missing'"),
            ("nothing", "ImportError: nothing doesn't look like a module path"),
            ("tests.test_discard_on_error.missing", "ImportError: "),
            ("django.VERSION", "TypeError: it is not a function but"),
            ("tests.broken_module.hook", "ZeroDivisionError: "),
        ],
    )
    def test_is_checked(self, make_alias, path, why, monkeypatch, tmp_path):
        (tmp_path / "broken_module.py").write_text("1 / 0\n")
        monkeypatch.setattr("tests.__path__", [*sys.modules["tests"].__path__, str(tmp_path)])
        alias = make_alias(pool={"discard_on_error": path}).alias
        (message,) = (m for m in run_checks() if m.id == "django_mysqlpool.E001")
        assert message.is_serious()
        assert f"'{alias}'" in message.msg
        assert repr(path) in message.msg
        assert why in message.msg

    def test_that_can_not_be_imported_is_told_of_once(self, make_alias, caplog):
        wrapper = make_alias(pool={"discard_on_error": "tests.missing.hook"})
        for _ in range(3):
            with wrapper.cursor() as cursor, pytest.raises(DatabaseError):
                cursor.execute("no statement")
        wrapper.close()  # the log is written where nothing is in the middle of anything
        tell_all()
        assert caplog.text.count("discard_on_error can't be imported, and is not heeded: tests.missing.hook") == 1
        assert backend_pid(wrapper)

    @pytest.mark.filterwarnings("ignore:Accessing the database during app initialization")
    def test_while_applications_load_it_is_tried_again(self, make_alias, caplog, monkeypatch):
        wrapper = make_alias(pool={"discard_on_error": "tests.late.hook"})

        def fail() -> None:
            with wrapper.cursor() as cursor, pytest.raises(DatabaseError):
                cursor.execute("no statement")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("django.apps.apps.ready", False)
            wrapper.ensure_connection()
            fail()
        seen = []
        module = type(sys)("tests.late")
        module.hook = lambda error, alias: seen.append(alias)
        monkeypatch.setitem(sys.modules, "tests.late", module)
        fail()
        assert seen == [wrapper.alias]
        assert "discard_on_error" not in caplog.text

    def test_equal_paths_are_equal_options(self):
        entry = {"OPTIONS": {"pool": {"discard_on_error": "shop.hooks.discard"}}, "CONN_MAX_AGE": 0}
        assert pool_options("one", entry) == pool_options("two", entry)
