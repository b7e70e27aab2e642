"""Runs a program that must not outlive the process it is for, however hard that one is killed.

    python lifeline.py --owner PID [--remove FOLDER] -- PROGRAM ARGUMENT...

This process becomes the program, so that its process id is the program's. A watcher beside it ends
the program when the owner is gone, and removes the folder. (Linux' own means, PR_SET_PDEATHSIG, is
bound to the *thread* that started the program, sends one signal and no second one, and can't tidy
up.)
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

GRACE_SECONDS = 10
LOOK_SECONDS = 0.5


def tied(command: Sequence[str], remove: Path | None = None) -> list[str]:
    """The command line that runs ``command`` for as long as the calling process lives."""
    folder = [f"--remove={remove}"] if remove else []
    return [sys.executable, __file__, f"--owner={os.getpid()}", *folder, "--", *command]


def watch(owner: psutil.Process, program: psutil.Process, remove: Path | None) -> None:
    """Wait for the end of either; where it was the owner's, end the program's process group."""
    while is_alive(owner):
        if not is_alive(program):
            return
        time.sleep(LOOK_SECONDS)
    program.terminate()
    psutil.wait_procs([program], timeout=GRACE_SECONDS)
    if remove:
        shutil.rmtree(remove, ignore_errors=True)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def is_alive(process: psutil.Process) -> bool:
    """An ended process that nobody waits for is a zombie, and still "running" to psutil."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def be_the_watcher(owner: psutil.Process, program: psutil.Process, remove: Path | None) -> None:
    """Leave the program alone: it must neither have to reap this process nor share its files."""
    if os.fork():
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    try:
        watch(owner, program, remove)
    finally:
        os._exit(0)


def main() -> None:
    """Start the watcher, then become the program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--owner", type=int, required=True)
    parser.add_argument("--remove", type=Path)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    try:
        owner = psutil.Process(arguments.owner)
    except psutil.NoSuchProcess:
        sys.exit("lifeline: the process that wanted this program is gone")
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    program = psutil.Process()
    watcher = os.fork()
    if watcher == 0:
        be_the_watcher(owner, program, arguments.remove)
    os.waitpid(watcher, 0)
    os.execvp(arguments.command[0], arguments.command)


if __name__ == "__main__":
    main()
