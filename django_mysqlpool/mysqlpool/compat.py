"""Names of others that are private and have no public equivalent.

Each is looked for when this module is imported, so that a release that lacks one is told of by name when the process
starts. SQLAlchemy's are in ``pool/sqlalchemy_names.py``, and PyMySQL's are looked for when that is loaded.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from operator import methodcaller
from types import ModuleType
from typing import Any

from asgiref.sync import SyncToAsync, ThreadSensitiveContext
from django.conf import LazySettings, settings
from django.core.exceptions import ImproperlyConfigured


def look_for(owner: object, *names: str, of: str) -> list[Any]:
    """Get private attributes.

    :param owner: the module or class that has them
    :param names: the attributes
    :param of: the distribution and its version, for the message
    :raises ImproperlyConfigured: if one is missing
    """
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        place = getattr(owner, "__name__", owner)
        raise ImproperlyConfigured(
            f"django_mysqlpool does not know {of}: {place} has no {', '.join(missing)}. "
            "Install a release that docs/compatibility.md names, or report this."
        )
    return [getattr(owner, name) for name in names]


# asgiref

if sys.version_info >= (3, 11):
    LentThreadContext = ThreadSensitiveContext
else:  # asgiref accepts an executor since 3.13, which needs Python 3.11
    (_executors,) = look_for(SyncToAsync, "context_to_thread_executor", of="asgiref")

    class LentThreadContext(ThreadSensitiveContext):
        """A context in which thread-sensitive code runs in an executor's thread."""

        def __init__(self, executor: Executor) -> None:
            super().__init__()
            self._lent = executor

        async def __aenter__(self) -> ThreadSensitiveContext:
            await super().__aenter__()  # type: ignore[no-untyped-call]
            _executors[self] = self._lent
            return self


def called_in_thread(call: Any) -> Any:
    """The function without arguments that ``sync_to_async`` has an executor call; ``None`` if that can't be told."""
    child = call.args[-1] if type(call) is partial and call.args else None
    return child.func if type(child) is partial and not (child.args or child.keywords) else None


# Django: an access to its settings passes a method in Python, and another one if a setting is missing.

look_for(LazySettings, "_wrapped", of="Django")


def settings_object() -> Any:
    """The object that ``django.conf.settings`` has its attributes from, once it is configured."""
    return settings._wrapped  # type: ignore[misc]


def closers_of(response: Any) -> list[Any]:
    """The functions that a response's ``close()`` calls; one that is none, if that can't be told."""
    return getattr(response, "_resource_closers", [None])


def replace_thread_sharing_lock(wrapper: Any, lock: threading.RLock) -> None:
    """Give a wrapper another lock for the number of its sharers, which it looks at in each ``close()``.

    (Of a Django that has none nothing is replaced.)
    """
    if hasattr(wrapper, "_thread_sharing_lock"):
        wrapper._thread_sharing_lock = lock


# Python

#: Tells the event loop that runs in this thread, or ``None``. The public function raises an exception, which is slow.
get_running_loop: Callable[[], Any]
(get_running_loop,) = look_for(asyncio, "_get_running_loop", of="this Python")
#: The threads that run now, by their idents: what ``threading.current_thread()`` asks, and takes its time for.
active_threads: dict[int, threading.Thread]
(active_threads,) = look_for(threading, "_active", of="this Python")
look_for(threading.RLock(), "_is_owned", of="this Python")
#: Tells if the calling thread holds a lock; ``threading.Condition`` asks the same.
is_owned: Callable[[threading.RLock], bool] = methodcaller("_is_owned")


def has_ended(thread: threading.Thread) -> bool:
    """True if a thread does not run any more, or not yet.

    ``is_alive()`` is not to be relied on. Up to Python 3.12, an exception of a signal's handler in the middle of it, or of
    ``join()``, marks a running thread as ended for good (since https://github.com/python/cpython/issues/89437). Of a
    greenlet's thread, or one that Python did not start, it always says that it is alive, or raises.
    """
    return active_threads.get(thread.ident) is not thread  # type: ignore[arg-type]  # (None, if it was not started)


def is_broken(executor: ThreadPoolExecutor) -> Any:
    """The reason why an executor is broken, its initializer for instance; false: it is not."""
    return executor._broken


def is_shut_down(executor: ThreadPoolExecutor) -> bool:
    """True if an executor takes no more work."""
    return executor._shutdown


def note_initializer_failed(executor: ThreadPoolExecutor) -> None:
    """Break an executor, as one of its threads does whose initializer has failed."""
    executor._initializer_failed()


# PyMySQL, whose connections are looked at when the first one is open

#: The method that sends all that is sent.
PYMYSQL_SENDER = "_execute_command"
_PYMYSQL = ("_sock", "_result", "_read_timeout", "_write_timeout", PYMYSQL_SENDER, "_read_ok_packet")


def check_pymysql(module: ModuleType, connection: Any) -> None:
    """Look for the private names of a connection of PyMySQL's.

    :raises ImproperlyConfigured: if one is missing
    """
    missing = [name for name in _PYMYSQL if not hasattr(connection, name)]
    if missing:
        version = getattr(module, "VERSION_STRING", "")
        raise ImproperlyConfigured(
            f"django_mysqlpool does not know PyMySQL {version}: its connections have no {', '.join(missing)}."
        )


def pymysql_sender(connection: Any) -> Callable[[int, Any], Any]:
    """Sends a command of the protocol."""
    return getattr(connection, PYMYSQL_SENDER)  # type: ignore[no-any-return]


def pymysql_read_ok(connection: Any) -> None:
    """Read the answer to a command that has no rows."""
    connection._read_ok_packet()


def pymysql_descriptor(connection: Any) -> int:
    """Its socket's."""
    return connection._sock.fileno()  # type: ignore[no-any-return]


def pymysql_result(connection: Any) -> Any:
    """The last result, which is unread in part or not."""
    return connection._result


def pymysql_timeouts(connection: Any) -> tuple[float | None, float | None]:
    """Seconds that it may read, and write."""
    return connection._read_timeout, connection._write_timeout


def set_pymysql_timeouts(connection: Any, read: float | None, write: float | None) -> None:
    """Have it read and write for so many seconds at most from now on."""
    connection._read_timeout, connection._write_timeout = read, write
