"""Settings of a site that reports to Sentry: errors, with the statements before them, and traces."""

import os

import sentry_sdk
from sentry_sdk.integrations.django import DjangoIntegration

from tests.settings import *  # noqa: F403

sentry_sdk.init(
    dsn=os.environ["MYSQLPOOL_TEST_SENTRY_DSN"],
    traces_sample_rate=1.0,
    integrations=[DjangoIntegration(db_transaction_spans=True)],
)
