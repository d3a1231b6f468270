"""Files at `https://` and `http://` URLs, read by requests for ranges of bytes (RFC 9110, 14).

`pipeline.files` imports this module when it meets such a URL. Web servers have no listings, and
nothing is written there. No credentials are sent: a URL stands in the plan and in messages, so one
with a user, a password or a query is refused. Redirects are followed, as from a hub to its storage,
and what they have in a query is told nowhere.
"""

import errno
import io
import os
import re
import ssl
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import BinaryIO, cast
from urllib.parse import quote, urljoin, urlsplit

from pipeline.errors import SettingsError
from pipeline.ranged_file import RangedFile

_TRIES = 4
_PAUSE_SECONDS = 0.5  # before the second try; each later one waits twice as long
_TIMEOUT_SECONDS = 60
_READ_BYTES = 1 << 20
_SKIPPED_BYTES = 16 << 20  # of a file whose server sends no ranges, before those that are wanted
_MOST_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
_REFUSED = (400, 401, 403, 404, 410)
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_KEPT = "/%:@!$&'()*+,;=~?"  # beside letters and digits: what is quoted stays as it is


def check_url(url: str) -> None:
    """Check that a URL names a file and nothing that may be secret.

    Raises:
        SettingsError: it has a user, a password, a query or a fragment; they are not repeated.
    """
    try:
        parts = urlsplit(url.strip())
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        has_host = False
    if not has_host:
        raise SettingsError(f"{_named(url)} is no URL: it needs a host, and a port below 65536")
    if parts.username is not None or parts.query or parts.fragment or url.rstrip().endswith("?"):
        raise SettingsError(
            f"{_named(url)} was given with a user, or with a part after ? or #, which would stand "
            "in the plan and may be secret: leave it out, or fetch the file"
        )


def open_read(url: str, block: int | None = None) -> BinaryIO:
    """A seekable binary file; `block` as in `pipeline.files.open_read`.

    Nothing is asked before the first read or the first seek from the end, which raise:

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read, or no part of it far from its beginning.
        SettingsError: see `check_url`.
    """
    check_url(url)
    return cast(BinaryIO, io.BufferedReader(_Ranges(url), block or _READ_BYTES))


def read_bytes(url: str) -> bytes:
    """The whole file; raises as a read of `open_read` does."""
    with open_read(url) as file:
        return file.read()


def exists(url: str) -> bool:
    """Whether the file is there; one request.

    Raises:
        OSError: the server does not say, or refuses.
        SettingsError: see `check_url`.
    """
    try:
        with open_read(url) as file:
            file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        return False
    return True


def is_folder(url: str) -> bool:
    """Always: a web server does not tell folders, and anything may lie below.

    Raises:
        SettingsError: see `check_url`.
    """
    check_url(url)
    return True


def matching(pattern: str) -> list[str]:
    """Raises SettingsError: nothing is listed here."""
    raise _no_listing(pattern)


def below(folder: str) -> Iterator[str]:
    """Raises SettingsError: nothing is listed here."""
    raise _no_listing(folder)


def _no_listing(url: str) -> SettingsError:
    scheme = urlsplit(url.strip()).scheme
    return SettingsError(
        f"{_named(url)} cannot be listed, as nothing can at {scheme}://: name the files, such as "
        f"--source webdataset --root '{scheme}://host/train-{{000..012}}.tar', or fetch them"
    )


_led_to: dict[str, str] = {}
"""Where URLs redirected to, so that it is not asked again for every photo of a shard."""


class _PassingError(Exception):
    """What may not happen again: another try is worth it."""


class _Ranges(RangedFile):
    """A file by a request for each range, over one connection that is kept.

    The place to which the URL redirects is asked until it refuses, since many are signed for some
    minutes. Then the URL is asked again.
    """

    def __init__(self, url: str) -> None:
        self._url = url.strip()
        self._place = _led_to.get(self._url, self._url)
        self._connection: HTTPConnection | None = None
        self._size: int | None = None
        self._tag: str | None = None

    def size(self) -> int:
        if self._size is None:
            self._asked(0, 1)
        return self._size or 0

    def part(self, first: int, count: int) -> bytes:
        if count <= 0 or (self._size is not None and first >= self._size):
            return b""
        return self._asked(first, count)

    def close(self) -> None:
        super().close()
        self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _go_to(self, place: str) -> None:
        self._disconnect()
        self._place = _led_to[self._url] = place

    def _asked(self, first: int, count: int) -> bytes:
        """Up to `count` bytes from byte `first`; none after the end."""
        reason = ""
        for number in range(_TRIES):
            if number:
                time.sleep(_PAUSE_SECONDS * 2 ** (number - 1))
            try:
                answer, body = self._sent(first, count)
                return self._content(answer, body, first, count)
            except _PassingError as error:
                self._go_to(self._url)
                reason = str(error)
        raise OSError(f"{self._url}: {reason}, {_TRIES} times; check it, or try again later")

    def _sent(self, first: int, count: int) -> tuple[HTTPResponse, bytes]:
        """The answer to a request, after redirects, and what it has of these bytes of the file."""
        answer, body = self._answered(first, count)
        if answer.status in _REFUSED and self._place != self._url:
            self._go_to(self._url)
            answer, body = self._answered(first, count)
        for _ in range(_MOST_REDIRECTS):
            location = answer.getheader("Location")
            if answer.status not in _REDIRECTS or not location:
                return answer, body
            self._go_to(self._followed(location.strip()))
            answer, body = self._answered(first, count)
        raise OSError(f"{self._url} redirects more than {_MOST_REDIRECTS} times; fetch the file")

    def _followed(self, location: str) -> str:
        """The place of a redirect; not from `https://` to what is not encrypted."""
        try:
            place = urljoin(self._place, location)
            has_host = bool(urlsplit(place).hostname)
        except ValueError:
            has_host = False
        if not has_host:
            raise OSError(f"{self._url} redirects to {_named(location)}, which is no URL")
        schemes = ("https", urlsplit(self._url).scheme)
        if urlsplit(place).scheme not in schemes:
            allowed = " or ".join(f"{scheme}://" for scheme in dict.fromkeys(schemes))
            raise OSError(f"{self._url} redirects to {_named(place)}, which is not {allowed}")
        return place

    def _answered(self, first: int, count: int) -> tuple[HTTPResponse, bytes]:
        """The answer of the present place to one request, as `_sent` gives it."""
        wanted = f"bytes={first}-{first + count - 1}"
        headers = {"Range": wanted, "Accept-Encoding": "identity", "User-Agent": "backlight"}
        body = b""
        try:
            if self._connection is None:
                self._connection = _connection(self._place)
            parts = urlsplit(self._place)
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            self._connection.request("GET", quote(path, safe=_KEPT), headers=headers)
            answer = self._connection.getresponse()
            if answer.status == HTTPStatus.PARTIAL_CONTENT:
                return answer, answer.read(count + 1)
            if _is_from_the_beginning(answer, first):
                answer.read(first)
                body = answer.read(count)
        except ssl.SSLCertVerificationError as error:
            raise OSError(
                f"{_named(self._place)}: its certificate is not trusted ({error.verify_message}); "
                "SSL_CERT_FILE names a file of certificates to trust"
            ) from error
        except (OSError, HTTPException, UnicodeError) as error:
            what = error.strerror if isinstance(error, OSError) else None
            reason = what or error or type(error).__name__
            raise _PassingError(f"no answer from {self._server()} ({reason})") from error
        self._disconnect()  # what else the server sends is not waited for
        return answer, body

    def _content(self, answer: HTTPResponse, body: bytes, first: int, count: int) -> bytes:
        """What an answer has of the file; raises what else it says."""
        answered = f"{self._server()} answers {answer.status} {answer.reason}"
        stated = (answer.getheader("Content-Range") or "").strip()
        match answer.status:
            case HTTPStatus.PARTIAL_CONTENT:
                part = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", stated)
                if not part or int(part[1]) != first or not 0 <= int(part[2]) - first < count:
                    raise OSError(
                        f"{self._url}: {self._server()} sends {stated or 'an unnamed range'} where "
                        f"bytes {first}-{first + count - 1} were asked for; fetch the file"
                    )
                if len(body) != int(part[2]) - first + 1:
                    raise _PassingError("the answer is cut off")
                self._check_same(int(part[3]), answer.getheader("ETag"))
                return body
            case HTTPStatus.OK if _is_from_the_beginning(answer, first):
                size = int(answer.getheader("Content-Length") or 0)
                if len(body) != max(0, min(count, size - first)):
                    raise _PassingError("the answer is cut off")
                self._check_same(size, answer.getheader("ETag"))
                return body
            case HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE if end := re.fullmatch(
                r"bytes \*/(\d+)", stated
            ):
                self._check_same(int(end[1]), self._tag)
                return b""
            case HTTPStatus.NOT_FOUND | HTTPStatus.GONE:
                raise FileNotFoundError(errno.ENOENT, answered, self._url)
            case status if status in _PASSING:
                raise _PassingError(answered)
            case HTTPStatus.OK:
                what = f"{answered} to a request for a range, so that no part can be read alone"
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                what = f"{answered}, and no credentials are sent"
            case _:
                what = answered
        raise OSError(f"{self._url}: {what}; give another URL, or fetch the file")

    def _server(self) -> str:
        redirects = self._place != self._url
        return f"its redirect {_named(self._place)}" if redirects else "the server"

    def _check_same(self, size: int, tag: str | None) -> None:
        if self._size is None:
            self._size, self._tag = size, tag
        elif (self._size, self._tag) != (size, tag):
            raise OSError(f"{self._url} was replaced while it was read; run the command again")


def _is_from_the_beginning(answer: HTTPResponse, first: int) -> bool:
    """Whether the whole file is sent, of a known size, and byte `first` is not far."""
    is_whole = answer.status == HTTPStatus.OK and answer.getheader("Content-Length") is not None
    return is_whole and first <= _SKIPPED_BYTES


def _connection(url: str) -> HTTPConnection:
    parts = urlsplit(url)
    host = str(parts.hostname)
    if parts.scheme == "https":
        context = ssl.create_default_context()
        return HTTPSConnection(host, parts.port, timeout=_TIMEOUT_SECONDS, context=context)
    return HTTPConnection(host, parts.port, timeout=_TIMEOUT_SECONDS)


def _named(url: str) -> str:
    """The URL, or a path, without what may be secret."""
    before, separator, rest = re.split(r"[?#]", url.strip(), maxsplit=1)[0].rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{before}{separator}{host.rpartition('@')[2]}{slash}{path}"
