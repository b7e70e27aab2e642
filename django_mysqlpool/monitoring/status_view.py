"""The process files of a host, for a terminal and for machines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .process_files import Process
from .terminal import Bar, Element, Heading, Note, Table

_HEADERS = (
    "pid",
    "program",
    "pool",
    "out, idle, cap",
    "out",
    "idle",
    "cap",
    "waiting",
    "timeouts",
    "pins",
    "longest holder",
)


def view(folder: Path, processes: Sequence[Process], unreadable: int) -> list[Element]:
    """The processes of a folder, one line for each of their pools.

    :param folder: where they were read
    :param processes: what was read
    :param unreadable: how many files could not be
    """
    elements: list[Element] = [Heading(f"{time.strftime('%H:%M:%S')}, {len(processes)} processes in {folder}")]
    rows = [_row(process, name, pool) for process in processes for name, pool in sorted(process.pools.items())]
    if rows:
        elements.append(Table(_HEADERS, [*rows, *_sums(processes)]))
    elements += [
        Note(
            "warning",
            f"Process {process.pid} has not written for {process.age:.0f} s, with {process.open} connections open.",
            "It hangs, is stopped, or can't write here any more: look into its log.",
        )
        for process in processes
        if process.is_silent
    ]
    elements += [
        Note("info", f"process {process.pid}, {name}: {sentence}")
        for process in processes
        for name, pool in sorted(process.pools.items())
        for sentence in pool["advice"]
    ]
    if unreadable:
        elements.append(
            Note("warning", f"{unreadable} files belong to another user.", "Run this as the user of the site, or as root.")
        )
    if not processes and not unreadable:
        elements.append(
            Note("info", "No process has written here.", "A process writes from its first connection on, until its last.")
        )
    return elements


def _row(process: Process, name: str, pool: dict[str, Any]) -> tuple[Any, ...]:
    return (
        process.pid or "",
        process.program,
        name,
        Bar(pool["out"], pool["idle"], pool["cap"]),
        pool["out"],
        pool["idle"],
        "no limit" if pool["cap"] is None else pool["cap"],
        pool["waiting"],
        pool["timeouts"] + pool["refusals"],
        sum(pool["pins"].values()),
        format_holder(pool["holders"][0]) if pool["holders"] else "",
    )


def _sums(processes: Sequence[Process]) -> list[tuple[Any, ...]]:
    """A line for each pool that several processes have."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for process in processes:
        for name, pool in process.pools.items():
            by_name.setdefault(name, []).append(pool)
    return [
        _row(
            Process(0, 0, f"all {len(pools)}", 0.0, {}, False, None),
            name,
            {
                **{key: sum(pool[key] for pool in pools) for key in ("out", "idle", "waiting", "timeouts", "refusals")},
                "cap": None if any(pool["cap"] is None for pool in pools) else sum(pool["cap"] for pool in pools),
                "pins": {"all": sum(sum(pool["pins"].values()) for pool in pools)},
                "holders": [],
            },
        )
        for name, pools in sorted(by_name.items())
        if len(pools) > 1
    ]


def format_holder(holder: dict[str, Any]) -> str:
    """Who has had a connection for how long."""
    work = f", {holder['work']}" if holder.get("work") else ""
    return f"{holder['seconds']:.1f} s, {holder['thread']}{work}"


def as_data(folder: Path, processes: Sequence[Process], unreadable: int) -> dict[str, Any]:
    """The same for machines."""
    listed = [
        {**{key: value for key, value in asdict(process).items() if key != "answer"}, "is_silent": process.is_silent}
        for process in processes
    ]
    return {"folder": str(folder), "unreadable": unreadable, "processes": listed}
