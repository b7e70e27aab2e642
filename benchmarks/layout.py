"""``python -m benchmarks.layout SEED MODULE ...``: run a module whose objects lie elsewhere in memory for each seed.

Python has a cache of the attributes of classes. The place of an attribute in it follows from the address of its name and
from the number of classes that were used before. Two attributes with one place cost a request half a percent of its
instructions. Even the length of a path decides which two these are, so only means over several seeds can be compared.
"""

from __future__ import annotations

import random
import runpy
import sys

#: Python keeps short strings of like lengths together.
LENGTHS = range(7, 48, 8)
MOST_STRINGS = 500
MOST_CLASSES = 300


def shift(seed: int) -> list[object]:
    """Move the objects that are made from now on.

    :param seed: decides how far
    :returns: the objects that take their former places; keep them
    """
    numbers = random.Random(seed)
    strings = [f"{number:0{length}}" for length in LENGTHS for number in range(numbers.randrange(MOST_STRINGS))]
    classes = [type("Used", (), {"attribute": None}) for _ in range(numbers.randrange(MOST_CLASSES))]
    for used in classes:
        _ = used().attribute  # type: ignore[attr-defined]
    return [strings, classes]


if __name__ == "__main__":
    shifted = shift(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
