"""What the options of other pools are called here: for people who come from one, or look at its documentation."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: How long a connection may live, how long a checkout may wait, and so on; without signs and capitals, as in ``_plain()``.
#: The names are those of SQLAlchemy's ``create_engine()``, psycopg_pool, HikariCP, django-db-connection-pool, DBUtils,
#: asyncpg and Go's database/sql.
_OPTIONS = {
    "timeout": "pooltimeout connectiontimeout acquiretimeout checkouttimeout maxwait wait waittimeout",
    "recycle": "poolrecycle maxlifetime maxage maxconnlifetime connmaxlifetime maxconnectionage",
    "idle_timeout": "maxidle maxidletime idletimeoutms connmaxidletime maxinactiveconnectionlifetime",
    "ping_after": "keepalivetime keepalive validationinterval check checkinterval ping",
    "pre_ping": "poolpreping prepings testonborrow",
    "pool_size": "size maxidleconns maxcached poolmaxsize",
    "min_idle": "minsize minimumidle minconn mincached minpoolsize",
    "use_lifo": "pooluselifo lifo",
    "max_overflow": "overflow poolmaxoverflow",
    "leak_after": "leakdetectionthreshold",
    "max_waiting": "maxqueue maxwaiters queuesize",
    "reset": "poolresetonreturn resetsession",
    "release": "poolmode",
}
#: A limit that is one number elsewhere is the sum of two here.
_LIMIT = "'pool_size', with 'max_overflow': 0"
_ADVICE = {
    **{name: f"'{option}'" for option, names in _OPTIONS.items() for name in names.split()},
    **dict.fromkeys(("maxsize", "maximumpoolsize", "maxpoolsize", "maxconnections", "maxopenconns", "maxconn"), _LIMIT),
}


def _plain(name: object) -> str:
    return "".join(sign for sign in str(name).lower() if sign.isalnum())


def suggest(word: object, known: Iterable[str]) -> str:
    """Suggest what may be meant by an unknown word: another pool's name for an option, or the nearest known word.

    :returns: a sentence with a space before it; nothing if there is nothing to suggest
    """
    advice = _ADVICE.get(_plain(word))
    if advice is not None:
        return f" Here that is {advice}."
    # Other pools have their options in capitals.
    by_lower_case = {one.lower(): one for one in known}
    matches = difflib.get_close_matches(str(word).lower(), by_lower_case, n=1)
    return f" Did you mean {by_lower_case[matches[0]]!r}?" if matches else ""
