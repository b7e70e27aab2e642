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

    def serve(_: int) -> tuple[str, float]:
        begin, answer = time.monotonic(), "served"
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT SLEEP(0.002)")
        except DatabaseError as error:
            answer = str(error)
        finally:
            connection.close()
        return answer, time.monotonic() - begin

    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(threads) as executor:
        answers, times = zip(*executor.map(serve, range(requests)), strict=True)
    print(json.dumps({"answers": Counter(answers), "longest": max(times), "mean": sum(times) / len(times)}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
