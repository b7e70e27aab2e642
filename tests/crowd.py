"""A process of a crowd: ``python -m tests.crowd THREADS REQUESTS`` serves its share and tells how it went, as JSON.

Its database is in the environment, as the tests' site has it. Each thread waits for a line on standard input first, so that
all the processes begin together.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import django


def main() -> None:
    """Serve the requests in threads, each of which gives its connection back after each request."""
    threads, requests = map(int, sys.argv[1:])
    django.setup()
    from django.db import DatabaseError, connection

    answers: Counter[str] = Counter()

    def serve(_: int) -> float:
        begin = time.monotonic()
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT SLEEP(0.002)")
        except DatabaseError as error:
            answers[str(error)] += 1
        else:
            answers["served"] += 1
        finally:
            connection.close()
        return time.monotonic() - begin

    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(threads) as executor:
        times = list(executor.map(serve, range(requests)))
    print(json.dumps({"answers": answers, "longest": max(times), "mean": sum(times) / len(times)}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
