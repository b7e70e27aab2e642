"""The process files of a host, for a terminal and for machines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .process_files import Process
from .terminal import Bar, Element, Heading, Note, Table, counted

#: Holders that are shown, the longest; and processes whose advice is.
MOST_HOLDERS, MOST_ADVICE = 5, 5

_HEADERS = ("pid", "program", "out, idle, cap", "out", "idle", "cap", "waiting", "timeouts", "pins")
_HOLDER_HEADERS = ("seconds", "pid", "request or task", "thread", "last statement")


def view(folder: Path, processes: Sequence[Process], unreadable: int) -> list[Element]:
    """The processes of a folder, a table for each pool.

    :param folder: where they were read
    :param processes: what was read
    :param unreadable: how many files could not be
    """
    elements: list[Element] = [
        Heading(f"{time.strftime('%H:%M:%S')}, {counted(len(processes), 'process', 'processes')} in {folder}")
    ]
    for name in sorted({name for process in processes for name in process.pools}):
        those = [process for process in processes if name in process.pools]
        rows: list[Sequence[Any]] = [_row(process.pid, process.program, process.pools[name]) for process in those]
        if len(those) > 1:
            rows.append(_sum([process.pools[name] for process in those]))
        elements.append(Table(_HEADERS, rows, name))
    holders = _holders(processes)
    if holders:
        elements.append(Table(_HOLDER_HEADERS, holders, "longest holders"))
    return [*elements, *_notes(processes, unreadable)]


def _holders(processes: Sequence[Process]) -> list[Sequence[Any]]:
    held = [(holder, process.pid) for process in processes for pool in process.pools.values() for holder in pool["holders"]]
    held.sort(key=lambda pair: -pair[0]["seconds"])
    return [
        (f"{holder['seconds']:.1f}", pid, holder["work"] or "", holder["thread"], holder["last_statement"] or "none yet")
        for holder, pid in held[:MOST_HOLDERS]
    ]


def _notes(processes: Sequence[Process], unreadable: int) -> Iterator[Note]:
    for process in processes:
        if process.is_silent:
            yield Note(
                "warning",
                f"Process {process.pid} has not written for {process.age:.0f} s, with {process.open} connections open.",
                "It hangs, is stopped, or can't write here any more: look into its log.",
            )
    advice = [
        Note("info", f"process {process.pid}, {name}: {sentence}")
        for process in processes
        for name, pool in sorted(process.pools.items())
        for sentence in pool["advice"]
    ]
    yield from advice[:MOST_ADVICE]
    if len(advice) > MOST_ADVICE:
        yield Note("info", f"Further {len(advice) - MOST_ADVICE} pools have advice, too: --json has it all.")
    if unreadable:
        yield Note("warning", f"{unreadable} files belong to another user.", "Run this as the site's user, or as root.")
    if not processes and not unreadable:
        yield Note("info", "No process has written here.", "A process writes from its first connection on, until its last.")


def _row(pid: int | str, program: str, pool: dict[str, Any]) -> tuple[Any, ...]:
    return (
        pid,
        program,
        Bar(pool["out"], pool["idle"], pool["cap"], pool["waiting"]),
        pool["out"],
        pool["idle"],
        "no limit" if pool["cap"] is None else pool["cap"],
        pool["waiting"],
        pool["timeouts"] + pool["refusals"],
        sum(pool["pins"].values()),
    )


def _sum(pools: Sequence[dict[str, Any]]) -> tuple[Any, ...]:
    """The row of all processes together."""
    total: dict[str, Any] = {
        key: sum(pool[key] for pool in pools) for key in ("out", "idle", "waiting", "timeouts", "refusals")
    }
    total["cap"] = None if any(pool["cap"] is None for pool in pools) else sum(pool["cap"] for pool in pools)
    total["pins"] = {"all": sum(sum(pool["pins"].values()) for pool in pools)}
    return _row("", f"all {len(pools)}", total)


def as_data(folder: Path, processes: Sequence[Process], unreadable: int) -> dict[str, Any]:
    """The same for machines."""
    listed = [
        {**{key: value for key, value in asdict(process).items() if key != "answer"}, "is_silent": process.is_silent}
        for process in processes
    ]
    return {"folder": str(folder), "unreadable": unreadable, "processes": listed}
