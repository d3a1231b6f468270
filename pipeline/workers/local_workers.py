"""The worker processes of the local runner: started, watched and ended here.

Beam's own handler of worker processes waits forever for one that was killed. The one below takes
its place: when a process ends, all that Beam waits for from it fails, so that the pipeline ends
with an error and can be run again in the same command.
"""

import contextlib
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import grpc
from apache_beam.portability import python_urns
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    GrpcWorkerHandler,
    WorkerHandler,
)
from google.protobuf import json_format, text_format

from pipeline.workers.shard_notes import Process

_MODULE = "pipeline.workers.local_worker"
_STOP_SECONDS = 15.0
_ABORT_SECONDS = 0.2


@dataclass(frozen=True)
class LocalWorkers:
    """The worker processes of one pipeline, for as long as the block lasts."""

    _handlers: "list[_Handler]" = field(default_factory=list)

    def __enter__(self) -> "LocalWorkers":
        _current.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        _current.remove(self)

    def ended(self) -> dict[Process, str]:
        """Those that ended by themselves, or were ended because they hung, and how."""
        return {h.process: h.how for h in list(self._handlers) if h.how}

    def end(self, hung: Collection[Process], how: str) -> None:
        """End those of these that are workers of this pipeline."""
        for handler in list(self._handlers):
            if handler.process in hung:
                handler.how = handler.how or how
                handler.kill()

    def kill(self) -> None:
        """End all of them at once, and wait until they are gone."""
        for handler in list(self._handlers):
            handler.kill()

    def add(self, handler: "_Handler") -> None:
        """Have a worker among those of this pipeline."""
        self._handlers.append(handler)


_current: list[LocalWorkers] = []
"""Of the pipelines that run in this process; Beam starts the workers of the last."""


def kill_all() -> None:
    """End the worker processes of all pipelines of this process, at once."""
    for workers in list(_current):
        workers.kill()


class _Handler(GrpcWorkerHandler):
    """A worker process, as Beam handles workers.

    Attributes:
        process: it; set when it is started.
        how: how it ended, in words; empty where it has not, or was asked to.
    """

    def __init__(self, command: bytes, state: Any, provision_info: Any, grpc_server: Any) -> None:
        super().__init__(state, provision_info, grpc_server)
        self.how = ""
        self._is_asked = self._is_closed = False

    def start_worker(self) -> None:
        environment = {
            **os.environ,
            "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(
                self.control_api_service_descriptor()
            ),
            "LOGGING_API_SERVICE_DESCRIPTOR": text_format.MessageToString(
                self.logging_api_service_descriptor()
            ),
            "PIPELINE_OPTIONS": json_format.MessageToJson(
                self.provision_info.provision_info.pipeline_options
            ),
            "WORKER_ID": self.worker_id,
        }
        # Its stdin is never written to: its end tells the worker that this process has ended.
        self._popen = subprocess.Popen(
            [sys.executable, "-m", _MODULE], stdin=subprocess.PIPE, env=environment
        )
        self.process = (platform.node(), self._popen.pid)
        _current[-1].add(self)
        threading.Thread(target=self._watch, name="watch worker", daemon=True).start()

    def close(self) -> None:
        self._is_asked = self._is_closed = True
        self.control_conn.close()
        self._close_data()
        self.stop_worker()

    def stop_worker(self) -> None:
        try:
            self._popen.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it, and wait until it is gone."""
        self._is_asked = True
        self._popen.kill()
        self._popen.wait()

    def _watch(self) -> None:
        code = self._popen.wait()
        if not self._is_asked:
            self.how = (
                f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended ({code})"
            )
        if not self._is_closed:
            self._close_data()
        end = RuntimeError(f"worker process {self._popen.pid} has ended")
        while not self._is_closed:
            # Again and again, since Beam may ask more of it: even now, which stops this round.
            with contextlib.suppress(RuntimeError):
                self.control_conn.abort(end)
            time.sleep(_ABORT_SECONDS)

    def _close_data(self) -> None:
        # Beam raises here what ended its reader, where it saw the end of the worker first.
        with contextlib.suppress(grpc.RpcError):
            self.data_conn.close()


WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)(_Handler)
