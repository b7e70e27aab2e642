"""The doctor's report as elements for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from django_mysqlpool.monitoring.terminal import Element, Facts, Heading, Note, Table

from .diagnosis import Diagnosis, Report
from .facts import AliasFacts
from .findings import Finding
from .sizing import Crew

#: Rows of the table of who uses connections; and processes whose advice is shown.
MOST_ROWS, MOST_ADVICE = 15, 5


def view(report: Report) -> list[Element]:
    """The report, alias by alias."""
    elements: list[Element] = [Facts([("workers, threads", format_crew(report.crew))])]
    for diagnosis in report.aliases:
        elements += _alias(diagnosis)
    if report.findings:
        elements += [Heading("settings"), *_without_repeats(report.findings)]
    return elements


def format_crew(crew: Crew) -> str:
    """Who uses the pools, in words."""
    if crew.workers is None and crew.threads is None:
        return "not known: give --workers and --threads"
    workers, threads = (number if number is not None else "?" for number in (crew.workers, crew.threads))
    hosts = f" on each of {crew.hosts} hosts" if crew.hosts > 1 else ""
    return f"{workers} processes{hosts} with {threads} threads each ({crew.source})"


def _alias(diagnosis: Diagnosis) -> Iterator[Element]:
    facts = diagnosis.facts
    yield Heading(f"{facts.alias}: {facts.pool.name if facts.pool else 'no pool'}")
    if facts.problem is not None:
        yield Facts([("connects", "no"), ("error", facts.problem.error)])
    else:
        yield _facts(facts)
        rows = [(users.user, users.host, users.connections, users.active) for users in facts.users]
        rest = len(rows) - MOST_ROWS
        title = "connections now, this one included" + (f" (and of {rest} more accounts and hosts)" if rest > 0 else "")
        yield Table(("user", "host", "connections", "active"), list(rows[:MOST_ROWS]), title)
    yield from map(_note, [finding for finding in diagnosis.findings if finding.id != "advice"])
    advice = [finding for finding in diagnosis.findings if finding.id == "advice"]
    yield from map(_note, advice[:MOST_ADVICE])
    if len(advice) > MOST_ADVICE:
        yield Note("info", f"Further {len(advice) - MOST_ADVICE} processes have advice, too: --json has it all.")
    proposal = diagnosis.proposal
    if proposal is not None:
        size = f'"pool": {{"pool_size": {proposal.pool_size}, "max_overflow": {proposal.max_overflow}}}'
        yield Note("proposal", f"{size}, at most {proposal.total} connections in all", proposal.why)


def _without_repeats(findings: list[Finding]) -> Iterator[Note]:
    """What is to change is said once, for all aliases of which it goes."""
    said = set()
    for finding in findings:
        note = _note(finding)
        if (finding.id, note.change) in said:
            note.change = ""
        said.add((finding.id, finding.change))
        yield note


def _note(finding: Finding) -> Note:
    number = f" ({finding.id})" if finding.id.startswith("django_mysqlpool.") else ""
    return Note(finding.level, finding.what + number, finding.change)


def _facts(facts: AliasFacts) -> Facts:
    pool, server, account, times, tls = facts.pool, facts.server, facts.account, facts.times, facts.tls
    assert pool is not None
    assert server is not None
    assert account is not None
    assert times is not None
    assert tls is not None
    shown = Facts()
    shown.add("connects", f"yes, to {facts.address}" if facts.address else "yes")
    shown.add("server", f"{server.version}, {server.host}:{server.port}" + ", read-only" * server.is_read_only)
    shown.add("TLS", f"{tls.version}, {tls.cipher}" if tls.cipher else "no: clear text")
    shown.add("round trip", format_time(times.round_trip))
    shown.add("connect", format_time(times.connect))
    shown.add("reset", "not possible: such a connection is closed" if times.reset is None else format_time(times.reset))
    size = "no pool_size" if pool.size is None else f"pool_size {pool.size}"
    cap = "no limit" if pool.cap is None else f"at most {pool.cap} connections a process"
    shown.add("pool", f"{pool.pool_class}, {size}, {cap}")
    shown.add("wait_timeout", f"{server.wait_timeout} s")
    refused = f", {server.refused_as_full} refused" if server.refused_as_full else ""
    shown.add(
        "max_connections",
        f"{server.max_connections} ({server.connections} now, at most {server.most_connections}{refused} since the start)",
    )
    limit = "no limit of its own" if account.max_connections is None else f"at most {account.max_connections} connections"
    hourly = "".join(f", {name} {value}" for name, value in account.hourly_limits.items())
    shown.add("account", f"{account.name}, {limit}{hourly}")
    return shown


def format_time(seconds: float) -> str:
    """In milliseconds."""
    return f"{seconds * 1000:.2f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
