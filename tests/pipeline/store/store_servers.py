"""`s3://` and `gs://` as servers in this process: moto's, and the emulator of Google's storage.

The emulator takes no notice of the generation that an upload should replace, so `_conditional`
adds that, as Google documents it: 412 unless the object has this generation, 0 for none.
"""

import json
import logging
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

BUCKET = "backlight-test"


class StoreServer:
    """A bucket: what is in it, and who asks.

    Attributes:
        url: of the bucket.
    """

    url: str

    def contents(self, prefix: str) -> dict[str, bytes]:
        """Key below the prefix -> content, by the store's own client."""
        raise NotImplementedError

    def put(self, folder: Path, prefix: str) -> str:
        """Upload all files below a folder; returns its URL."""
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.put_bytes(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"{self.url}/{prefix}"

    def put_bytes(self, key: str, content: bytes) -> None:
        raise NotImplementedError

    def fill(self, prefix: str, source: Path | None) -> None:
        """Have below the prefix what is in `source`, and nothing else."""
        for key in self.contents(prefix):
            self.delete(f"{prefix}/{key}")
        if source:
            self.put(source, prefix)

    def delete(self, key: str) -> None:
        raise NotImplementedError


class _Amazon(StoreServer):
    url = f"s3://{BUCKET}"

    def __init__(self) -> None:
        import boto3

        self._client = boto3.client("s3")
        self._client.create_bucket(Bucket=BUCKET)

    def contents(self, prefix: str) -> dict[str, bytes]:
        pages = self._client.get_paginator("list_objects_v2")
        return {
            entry["Key"].removeprefix(f"{prefix}/"): self._client.get_object(
                Bucket=BUCKET, Key=entry["Key"]
            )["Body"].read()
            for page in pages.paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
            for entry in page.get("Contents", ())
        }

    def put_bytes(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=key)


class _Google(StoreServer):
    url = f"gs://{BUCKET}"

    def __init__(self) -> None:
        from google.cloud import storage

        self._client = storage.Client.create_anonymous_client()

    def contents(self, prefix: str) -> dict[str, bytes]:
        found = self._client.list_blobs(BUCKET, prefix=f"{prefix}/")
        return {blob.name.removeprefix(f"{prefix}/"): blob.download_as_bytes() for blob in found}

    def put_bytes(self, key: str, content: bytes) -> None:
        self._client.bucket(BUCKET).blob(key).upload_from_string(content)

    def delete(self, key: str) -> None:
        self._client.bucket(BUCKET).delete_blob(key)


@contextmanager
def amazon(patch: pytest.MonkeyPatch) -> Iterator[StoreServer]:
    """`s3://`, for this process and those that it starts."""
    server = pytest.importorskip("moto.server", reason=HOW).ThreadedMotoServer("localhost", 0)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server.start()
    host, port = server.get_host_and_port()
    patch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_ACCESS_KEY_ID", "made-up")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "made-up")
    yield _Amazon()
    server.stop()


@contextmanager
def google(patch: pytest.MonkeyPatch) -> Iterator[StoreServer]:
    """`gs://`, for this process and those that it starts."""
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason=HOW)
    pytest.importorskip("google.cloud.storage", reason=HOW)
    patch.setattr(emulator, "HANDLERS", _conditional(emulator))
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    server = emulator.create_server("localhost", port, in_memory=True, default_bucket=BUCKET)
    server.start()
    patch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
    tokens = ThreadingHTTPServer(("localhost", 0), _Tokens)
    Thread(target=tokens.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        account = Path(folder) / "account.json"
        account.write_text(_made_up_account(f"http://localhost:{tokens.server_port}"))
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
        yield _Google()
    tokens.shutdown()
    server.stop()


class _Tokens(BaseHTTPRequestHandler):
    """Without credentials Google's client looks for a machine of Google's for half a minute."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"access_token": "-", "expires_in": 3600, "token_type": "Bearer"})
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode())


def _made_up_account(token_uri: str) -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    account = {"type": "service_account", "project_id": "project", "private_key_id": "1"}
    mail = "nobody@project.iam.gserviceaccount.com"
    rest = {"private_key": pem.decode(), "client_email": mail, "token_uri": token_uri}
    return json.dumps({**account, **rest})


HOW = "run `uv run --group object-stores pytest tests/pipeline/store/test_object_stores.py`"
SERVERS = {"s3": amazon, "gs": google}


def _conditional(emulator: Any) -> tuple[Any, ...]:
    """The emulator's routes, with uploads that heed `ifGenerationMatch`."""
    insert = emulator.objects.insert

    def conditional_insert(request: Any, response: Any, storage: Any, **rest: Any) -> None:
        if expected := request.query.get("ifGenerationMatch"):
            try:
                described = request.data.get("meta", request.data)
                bucket = request.params["bucket_name"]
                found = storage.get_file_obj(bucket, described["name"])["generation"]
            except emulator.objects.NotFound:
                found = "0"
            if found != expected[0]:
                response.status = HTTPStatus.PRECONDITION_FAILED
                response["Content-type"] = "application/json"
                response.write(json.dumps({"error": {"message": "conditionNotMet"}}))
                return
        insert(request, response, storage, **rest)

    return tuple(
        (path, {m: conditional_insert if h is insert else h for m, h in handlers.items()})
        for path, handlers in emulator.HANDLERS
    )
