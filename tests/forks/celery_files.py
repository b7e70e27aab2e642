"""Celery's queue and results in files that appear whole: its own readers, now and then, find one that is being written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery.backends.filesystem import FilesystemBackend
from kombu.transport import filesystem


class Channel(filesystem.Channel):
    """Writes a message in a folder of its own process' (``data_folder_out``) and moves it to the readers."""

    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:
        super()._put(queue, payload, **kwargs)
        for message in Path(self.data_folder_out).iterdir():
            message.rename(Path(self.data_folder_in, message.name))


class Transport(filesystem.Transport):
    Channel = Channel


class Backend(FilesystemBackend):
    def set(self, key: bytes, value: Any) -> None:
        super().set(key + b".part", value)
        Path(os.fsdecode(self._filename(key + b".part"))).rename(os.fsdecode(self._filename(key)))
