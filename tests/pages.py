"""Reads the documentation's pages, for tests that compare them with what they describe."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"


def section(page: str, heading: str) -> str:
    """The text below a heading, up to the next one of its level."""
    text = (DOCS / page).read_text()
    (found,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return found


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of a section's table, without its head; code is without backquotes."""
    lines = [line for line in section(page, heading).splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def block(page: str, heading: str, language: str) -> str:
    """The code of a section in a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", section(page, heading), re.DOTALL | re.MULTILINE)
    return found
