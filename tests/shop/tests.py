"""Run by ``manage.py test --parallel 2`` in a test of this project's; four classes, so that two workers have work."""

from django.db import connection
from django.test import TestCase, TransactionTestCase

from django_mysqlpool import pool_status

from .models import Account


class _Shared:
    def test_a_clone_is_used(self):
        Account.objects.create(name="only here")
        self.assertEqual(Account.objects.count(), 1)
        name = connection.settings_dict["NAME"]
        self.assertRegex(name, r"^test_.*_[12]$")
        self.assertTrue(any(pool.endswith(f"/{name}") for pool in pool_status()))


class FirstTest(_Shared, TestCase):
    pass


class SecondTest(_Shared, TestCase):
    pass


class ThirdTest(_Shared, TransactionTestCase):
    pass


class FourthTest(_Shared, TransactionTestCase):
    pass
