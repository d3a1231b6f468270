"""Tar shards at `http://` and `https://`, from a server that sends ranges of bytes, or does not."""

import io
import os
import random
import re
import ssl
import subprocess
import sys
import tarfile
import time
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread

import pytest
import tar_set
from forked_process import ForkedProcess

from pipeline import files, http_file
from pipeline.errors import SettingsError
from pipeline.photo_bytes import part, read_photo
from pipeline.sources import read_examples
from pipeline.store.names import commit_file
from pipeline.store.verify import verify

BACKLIGHT = [sys.executable, "-c", "from pipeline.cli import main; main()"]
SECONDS = 120  # for a process to end, on a busy machine
BRACES = "train-{000..001}.tar"
CONTENT = random.Random(0).randbytes(100_000)


class Handler(BaseHTTPRequestHandler):
    """Sends parts of the files of its `WebServer`, or fails as its next fault says."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "WebServer"

    def do_GET(self) -> None:
        self.server.requests += 1
        with self.server.lock:
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        time.sleep(self.server.delay)
        with self.server.lock:
            self.server.at_once -= 1
        usual = "none" if self.server.sends_ranges else "whole"
        fault = self.server.faults.popleft() if self.server.faults else usual
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert wanted
        first, last = int(wanted[1]), int(wanted[2])
        content = self.server.files.get(self.path, b"")
        body = content[first : last + 1]
        stated = f"bytes {first}-{first + len(body) - 1}/{len(content)}"
        match fault:
            case "broken off":
                self.close_connection = True
            case "cut":
                self._answer(206, body[: len(body) // 2], {"Content-Range": stated}, len(body))
                self.close_connection = True
            case "short":
                half = body[: len(body) // 2]
                stated = f"bytes {first}-{first + len(half) - 1}/{len(content)}"
                self._answer(206, half, {"Content-Range": stated})
            case "other range":
                self._answer(206, body, {"Content-Range": f"bytes 7-{6 + len(body)}/100000"})
            case "none" if place := self.server.redirects.get(self.path):
                self._answer(302, b"there", {"Location": place})
            case "whole" if self.path in self.server.files:
                self._answer(200, content)
            case "none" if self.path not in self.server.files:
                self._answer(404, b"no such file")
            case "none" if not body:
                self._answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            case "none":
                self.server.sent += len(body)
                self._answer(206, body, {"Content-Range": stated})
            case _:
                self._answer(int(fault), b"...")

    def _answer(
        self, code: int, body: bytes, headers: dict[str, str] | None = None, size: int | None = None
    ) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


class WebServer(ThreadingHTTPServer):
    """Files and redirects by path, how the next requests fail, and what was asked and sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/set/0.tar": CONTENT}
        self.redirects: dict[str, str] = {}
        self.sends_ranges = True
        self.faults: deque[str] = deque()
        self.requests = self.sent = self.at_once = self.most_at_once = 0
        self.delay = 0.0
        self.lock = Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/set"

    def handle_error(self, *_: object) -> None:
        """A client hangs up where it does not want the rest."""


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_file, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(http_file, "_led_to", {})


def read(url: str) -> bytes:
    return files.read_bytes(f"{url}/0.tar")


def test_a_file_at_a_url_reads_and_seeks_as_one_in_memory(server: WebServer) -> None:
    draw, expected = random.Random(1), io.BytesIO(CONTENT)
    with files.open_read(f"{server.url}/0.tar", 1000) as file:
        for _ in range(100):
            whence = draw.choice((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END))
            offset = draw.randrange(len(CONTENT)) if whence == os.SEEK_SET else draw.choice((0, 9))
            assert file.seek(offset, whence) == expected.seek(offset, whence)
            count = draw.choice((0, 1, 512, 5000, 200_000))
            assert file.read(count) == expected.read(count)
        file.seek(10)
        assert file.read() == CONTENT[10:]
    assert read(server.url) == CONTENT
    server.files["/set/0.tar"] = b""
    assert read(server.url) == b""


def test_a_part_is_one_request_for_its_bytes(server: WebServer) -> None:
    assert read_photo(part(f"{server.url}/0.tar", 512, 9000)) == CONTENT[512:9512]
    assert (server.requests, server.sent) == (1, 9000)
    with pytest.raises(OSError, match="the file ends before byte 100100"):
        read_photo(part(f"{server.url}/0.tar", 99_900, 200))


def test_planning_asks_for_the_headers_and_no_photo(server: WebServer) -> None:
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as file:
        for number in range(10):
            for name, content in ((f"{number}.cls", b"3"), (f"{number}.jpg", CONTENT)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    server.files["/set/1.tar"] = shard.getvalue()
    examples = read_examples("webdataset", f"{server.url}/1.tar")
    assert [example.labels for example in examples] == [("3",)] * 10
    assert server.sent < 60_000  # of a megabyte
    assert server.requests < 20


def test_shards_are_planned_several_at_once_and_in_order(server: WebServer) -> None:
    shards = {}
    for shard in range(6):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as file:
            for number in range(5):
                member = tarfile.TarInfo(f"{shard}-{number}.jpg")
                member.size = 9000
                file.addfile(member, io.BytesIO(CONTENT))
        shards[f"/set/{shard}.tar"] = content.getvalue()
    server.files = shards
    server.delay = 0.02
    examples = read_examples("webdataset", f"{server.url}/{{0..5}}.tar")
    assert [e.image_id for e in examples] == [f"{s}-{n}" for s in range(6) for n in range(5)]
    assert server.most_at_once > 3


@pytest.mark.parametrize("fault", ["500", "503", "429", "broken off", "cut"])
def test_what_may_pass_is_tried_again(server: WebServer, fault: str) -> None:
    server.faults += [fault] * 3
    assert read(server.url) == CONTENT
    server.faults += [fault] * 4
    with pytest.raises(OSError, match=rf"{server.url}/0\.tar: .*, 4 times"):
        read(server.url)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("403", "403 Forbidden, and no credentials are sent"),
        ("401", "401 Unauthorized, and no credentials are sent"),
        ("400", "400 Bad Request"),
        ("other range", "bytes 7-7/100000 where bytes 0-0 were asked for"),
    ],
)
def test_what_will_not_pass_is_told_at_once(server: WebServer, fault: str, told: str) -> None:
    server.faults.append(fault)
    with pytest.raises(SettingsError, match=rf"0\.tar: .*{told}"):
        read_examples("webdataset", f"{server.url}/0.tar")
    assert server.requests == 1


def test_a_server_without_ranges_sends_files_from_their_beginning(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.sends_ranges = False
    assert read(server.url) == CONTENT
    assert read_photo(part(f"{server.url}/0.tar", 512, 9000)) == CONTENT[512:9512]
    with files.open_read(f"{server.url}/0.tar", 1000) as file:
        assert file.read(1500) == CONTENT[:1500]
        assert file.seek(0, os.SEEK_END) == len(CONTENT)
        assert file.read() == b""
    server.faults += ["cut"]
    assert read(server.url) == CONTENT
    monkeypatch.setattr(http_file, "_SKIPPED_BYTES", 500)
    with pytest.raises(OSError, match="200 OK to a request for a range, so that no part can be"):
        read_photo(part(f"{server.url}/0.tar", 512, 9000))
    assert read(server.url) == CONTENT


def sign(server: WebServer, query: str) -> None:
    """Have the URL of the file redirect once to a folder, and from there to its storage."""
    server.files = {f"/storage/{query}": CONTENT}
    server.redirects = {
        "/set/0.tar": "cached/0.tar",
        "/set/cached/0.tar": f"{server.url.removesuffix('/set')}/storage/{query}",
    }


def test_a_redirect_is_followed_and_asked_for_once(server: WebServer) -> None:
    sign(server, "a%2Fb?sig=1+2/3=&name=a%20b")
    for start in (0, 512, 5000):
        assert read_photo(part(f"{server.url}/0.tar", start, 100)) == CONTENT[start : start + 100]
    assert server.requests == 5
    assert read(server.url) == CONTENT
    server.redirects = {}
    assert files.exists(f"{server.url}/0.tar")
    server.files = {}
    assert not files.exists(f"{server.url}/0.tar")


def test_a_place_that_is_not_valid_any_more_is_asked_for_again(server: WebServer) -> None:
    sign(server, "x?sig=1")
    with files.open_read(f"{server.url}/0.tar", 512) as file:
        assert file.read(100) == CONTENT[:100]
        sign(server, "x?sig=2")
        file.seek(50_000)
        assert file.read(100) == CONTENT[50_000:50_100]
    server.files["/set/0.tar"] = CONTENT
    server.redirects = {}
    server.faults += ["503"]
    assert read(server.url) == CONTENT


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("http://me:secret@127.0.0.1:9/x?secret", "answer from its redirect http://127.0.0.1:9/x "),
        ("/gone?secret", r"its redirect http://127\.0\.0\.1:\d+/gone answers 404"),
        ("/set/0.tar", "0.tar redirects more than 10 times"),
        ("ftp://host/x#secret", "redirects to ftp://host/x, which is not https:// or http://"),
        ("http://[else", "redirects to .*, which is no URL"),
    ],
)
def test_a_redirect_that_leads_nowhere_is_told_without_secrets(
    server: WebServer, place: str, told: str
) -> None:
    server.redirects = {"/set/0.tar": place}
    with pytest.raises(OSError, match=told) as refused:
        read(server.url)
    assert "secret" not in str(refused.value)


def test_a_file_that_is_not_there_is_no_other_failure(server: WebServer) -> None:
    assert not files.exists(f"{server.url}/1.tar")
    with pytest.raises(FileNotFoundError, match="404"):
        files.read_bytes(f"{server.url}/1.tar")
    with pytest.raises(SettingsError, match=r"1 of the 2 shards of \{0\.\.1\}\.tar are not in"):
        read_examples("webdataset", f"{server.url}/{{0..1}}.tar")


def test_a_file_that_is_replaced_while_it_is_read_is_not_mixed(server: WebServer) -> None:
    with files.open_read(f"{server.url}/0.tar", 512) as file:
        file.read(10)
        server.files["/set/0.tar"] = CONTENT + b"more"
        file.seek(50_000)
        with pytest.raises(OSError, match="was replaced while it was read"):
            file.read(10)


@pytest.mark.parametrize("root", ["", "/*.tar", "/{a,b*}.tar"])
def test_nothing_is_listed(server: WebServer, root: str) -> None:
    with pytest.raises(SettingsError, match=r"cannot be listed.*name the files"):
        read_examples("webdataset", f"{server.url}{root}")


def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(SettingsError, match=r"127\.0\.0\.1:9/x\.tar: no answer .*4 times"):
        read_examples("webdataset", "http://127.0.0.1:9/x.tar")


@pytest.mark.parametrize("url", ["http:///x.tar", "https://host:99999/x.tar", "https://[host/x"])
def test_a_url_without_a_place_is_told(url: str) -> None:
    with pytest.raises(SettingsError, match="is no URL"):
        files.expanded(url)


def test_https_is_read_where_the_certificate_is_trusted(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    with pytest.raises(OSError, match=r"0\.tar: its certificate is not trusted \(self-signed"):
        read(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert read(url) == CONTENT
    server.redirects = {"/set/0.tar": "http://127.0.0.1/0.tar"}
    with pytest.raises(
        OSError, match=r"redirects to http://127\.0\.0\.1/0\.tar, which is not https://$"
    ):
        read(url)


def generate(root: str, out: Path | str) -> tuple[int, str]:
    """The command in a process; its exit code and what it prints."""
    arguments = (
        *("generate", "--source", "webdataset", "--root", root, "--model", "tiny_network:tiny"),
        *("--input-size", "32", "--layers", "late", "--methods", "grad_cam", "--roles", "label"),
        *("--max-error-rate", "0.5", "--shard-size", "3", str(out)),
    )
    process = ForkedProcess([*BACKLIGHT, *arguments])
    said = "".join(text or "" for text in process.communicate(SECONDS))
    return process.returncode or 0, said


def maps(out: Path) -> dict[str, bytes]:
    """The files of a run, without those that hold timings or paths."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for folder in ("maps", "images", "errors")
        for path in (out / folder).rglob("*.parquet")
    }


@pytest.mark.slow
def test_a_run_of_shards_at_a_url_is_that_of_shards_on_a_disk(
    server: WebServer, tmp_path: Path
) -> None:
    local = tar_set.draw_shards(tmp_path / "set")
    server.files = {f"/set/{path.name}": path.read_bytes() for path in local.iterdir()}
    here, far = tmp_path / "here", tmp_path / "far"
    assert generate(f"{local}/{BRACES}", here)[0] == 0
    code, said = generate(f"{server.url}/{BRACES}", far)
    assert code == 0, said
    assert "1 member left out: the shard ends within it (train-001.tar: 7.jpg)" in said
    assert "1 images failed" in said
    assert maps(far) == maps(here)
    (far / commit_file(1)).unlink()
    code, said = generate(f"{server.url}/{BRACES}", far)
    assert code == 0, said
    assert "1 of 3 shards are missing" in said
    assert maps(far) == maps(here)
    assert verify(str(far)) == []


def test_an_out_at_a_url_of_the_web_is_one_line(server: WebServer, tmp_path: Path) -> None:
    local = tar_set.draw_shards(tmp_path / "set")
    code, said = generate(str(local), f"{server.url}/out")
    assert code == 2, said
    assert "Traceback" not in said
    assert f"cannot reach {server.url}/out" in said
    assert "https:// is only read" in said


def test_a_server_that_sends_less_than_asked_for_is_asked_for_the_rest(server: WebServer) -> None:
    server.faults.extend(["none", "short", "short"])
    with files.open_read(f"{server.url}/0.tar") as file:
        assert file.read() == CONTENT
