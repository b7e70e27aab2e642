"""The tests. ``MYSQLPOOL_TEST_DRIVER=pymysql`` runs them with PyMySQL, in this process and in those that they start."""

import os

DRIVER = os.environ.get("MYSQLPOOL_TEST_DRIVER", "mysqlclient")
if DRIVER == "pymysql":
    import pymysql

    pymysql.install_as_MySQLdb()

#: The name of threads of the site's that may outlive their request.
OUTLIVES = "outlives its request"
