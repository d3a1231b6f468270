"""Breaking a command at every request to an object store, and running it again.

    with BrokenRequests(at=17, fault="no answer"):
        generate(config, "s3://bucket/out")     # its 17th request to the bucket gets no answer

Both stores' clients send their requests by urllib3, which is where they are broken. As in
`crash_points`, the end of a process is that nothing of it reaches the store any more.
"""

import hashlib
import io
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote

import urllib3
from crash_points import Outcome, Step

from pipeline.store.commit import committed

BUCKET = "backlight-test"
FAULTS = ("exit before", "exit after", "refused", "no answer", "answer lost", "body cut")
"""`exit before`, `exit after`: the process ends before the request arrives, or before its answer.
`refused`: 403. After the rest the clients try again: the request does not arrive, or its answer
does not, or half of what was asked for arrives."""

_LONGEST_SLEEP = 0.01  # seconds that a client waits before it tries again


class EndedProcess(BaseException):
    """The process is no more: nothing of it reaches the store."""


class BrokenRequests:
    """Counts the requests to the bucket, and breaks the one with number `at` (from 0), if any.

    Attributes:
        requests: the methods of the requests so far.
        paths: the names of the objects that were asked for.
    """

    def __init__(self, at: int | None = None, fault: str = "") -> None:
        self.requests: list[str] = []
        self.paths: list[str] = []
        self._at, self._fault = at, fault
        self._is_ended = False

    def __enter__(self) -> "BrokenRequests":
        send, sleep = urllib3.HTTPConnectionPool.urlopen, time.sleep

        def urlopen(pool: Any, method: str, url: str, *rest: Any, **given: Any) -> Any:
            def sent() -> Any:
                return send(pool, method, url, *rest, **given)

            # Google's client asks for the bucket itself now and then, for its own ends.
            is_ours = BUCKET in url and f"/b/{BUCKET}?" not in url
            if is_ours:
                self.paths.append(unquote(url.partition("?")[0]).rpartition("/")[2])
            return self._pass(method, sent) if is_ours else sent()

        self._patches = [
            patch.object(urllib3.HTTPConnectionPool, "urlopen", urlopen),
            patch("time.sleep", lambda seconds: sleep(min(seconds, _LONGEST_SLEEP))),
        ]
        for each in self._patches:
            each.start()
        return self

    def __exit__(self, *error: object) -> None:
        for each in self._patches:
            each.stop()

    def _pass(self, method: str, sent: Callable[[], Any]) -> Any:
        if self._is_ended:
            raise EndedProcess
        number = len(self.requests)
        self.requests.append(method)
        if number != self._at:
            return sent()
        if self._fault == "refused":
            return urllib3.HTTPResponse(io.BytesIO(), status=403, preload_content=False)
        answer = None if self._fault in ("exit before", "no answer") else sent()
        if self._fault.startswith("exit"):
            self._is_ended = True
            raise EndedProcess
        if answer is None or self._fault == "answer lost":
            if answer:
                answer.drain_conn()
            reset = ConnectionResetError("broken by a test")
            raise urllib3.exceptions.ProtocolError("Connection aborted.", reset)
        return _cut(answer)


def _cut(answer: Any) -> Any:
    """An answer that says how long it is, and has half of it."""
    content = answer.read(decode_content=False)
    headers = {"Content-Length": str(len(content)), **answer.headers}
    return urllib3.HTTPResponse(
        io.BytesIO(content[: len(content) // 2]),
        headers,
        answer.status,
        preload_content=False,
        request_method="GET",
    )


def requests_of(step: Step, out: str) -> list[str]:
    """The methods of the undisturbed command's requests; it leaves its output in `out`."""
    step.prepare(out)
    with BrokenRequests() as counting:
        step.command(out)
    return counting.requests


def hashed(contents: dict[str, bytes]) -> dict[str, str]:
    """What two equal outputs have in common: every file, but of commit records only their names."""
    return {
        key: "" if key.startswith("_meta/shards/") else hashlib.sha256(content).hexdigest()
        for key, content in contents.items()
    }


def outcome_of_request(
    step: Step,
    out: str,
    contents: Callable[[], dict[str, str]],
    at: int,
    method: str,
    fault: str,
    expected: dict[str, str],
) -> Outcome:
    """Break the command at request `at`, run it again, and compare with `expected` contents."""
    step.prepare(out)
    ended = ""
    try:
        with BrokenRequests(at, fault):
            step.command(out)
    except (Exception, EndedProcess) as error:
        ended = type(error).__name__
    began = time.perf_counter()
    step.command(out)
    seconds = time.perf_counter() - began
    lost = step.maps - sum(record.maps for record in committed(out))
    return Outcome(step.name, method, fault, ended, lost, contents() == expected, seconds)
