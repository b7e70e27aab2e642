"""``python -m benchmarks.layout SEED MODULE ...``: run a module, with what it makes elsewhere in memory for each seed.

Python finds attributes of a class by way of a cache, at a place that follows from where the attribute's name lies in
memory and from how many classes have been used before. Two that meet at one place cost a request half a percent of its
instructions. They meet or don't by the length of a path, so the mean over some seeds is what can be compared.
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
    """Move what is made from now on.

    :returns: what takes its former place, for as long as it is kept
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
