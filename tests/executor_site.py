"""The documentation's line: the tests' site with a ``PooledThreadPoolExecutor`` as its event loop's default executor."""

from django_mysqlpool.threading_utils import PooledExecutorASGI
from tests.asgi import application as django_application

application = PooledExecutorASGI(django_application, thread_name_prefix="pooled")
