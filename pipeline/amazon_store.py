"""`s3://` by one client: which version of an object is there, and an upload that replaces that one.

`pipeline.object_store` imports it; its errors are those of Amazon's client and of Beam. Beam makes
a client for every request, which takes 0.3 s of CPU each time, and tries ten minutes to reach a
store that is not there; Amazon's client tries again on its own.
"""

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, BinaryIO, Self, cast

from apache_beam.io.aws.clients.s3.boto3_client import Client
from apache_beam.io.aws.s3filesystem import S3FileSystem
from apache_beam.io.aws.s3io import S3IO, parse_s3_path
from apache_beam.io.filesystem import FileMetadata
from apache_beam.options.pipeline_options import PipelineOptions, S3Options
from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError

from pipeline.object_version import Version, absent
from pipeline.ranged_file import RangedFile

_TRIES = 3


class AmazonStore(S3FileSystem):
    """Beam's file system for `s3://`, with one client per process."""

    @classmethod
    def of(cls, options: PipelineOptions) -> Self:
        """By the S3 options of a pipeline."""
        return cls(options)

    @classmethod
    def scheme(cls) -> str:
        """None of Beam's, which looks for the class of a URL among all classes."""
        return "s3-by-one-client"

    def client(self) -> Client:
        """Beam's client."""
        return _client(os.getpid(), _given(self._options))

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        bucket, prefix = parse_s3_path(dir_or_prefix, object_optional=True)
        pages = self.client().client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", ()):
                yield FileMetadata(f"s3://{bucket}/{entry['Key']}", entry["Size"])

    def open(self, path: str, *_: object, **__: object) -> BinaryIO:
        found = version(self, path)
        if found is None:
            raise absent(path)
        return cast(BinaryIO, _Download(*_object(self, path), found))

    def exists(self, path: str) -> bool:
        return version(self, path) is not None

    def delete(self, paths: list[str]) -> None:
        failed = [e for e in S3IO(client=self.client()).delete_paths(paths).values() if e]
        if failed:
            raise OSError(f"{len(failed)} objects cannot be deleted: {failed[0]}")


@lru_cache
def _given(options: PipelineOptions) -> tuple[tuple[str, Any], ...]:
    """The options of the client. Beam parses all that it knows to tell them."""
    names = sorted(name for name in S3Options([]).get_all_options() if name.startswith("s3_"))
    found = options.view_as(S3Options)
    return tuple((name, getattr(found, name)) for name in names)


@lru_cache
def _client(process: int, options: tuple[tuple[str, Any], ...]) -> Client:
    return Client(dict(options))


def version(system: AmazonStore, url: str) -> Version | None:
    """What is there; its tag is the ETag."""
    client, place = _object(system, url)
    try:
        head = client.head_object(**place)
    except ClientError as error:
        if _status(error) == 404:
            return None
        raise
    tag: str = head["ETag"]
    # An MD5, unless it was uploaded in parts or is encrypted with a key of its own.
    known = re.fullmatch('"([0-9a-f]{32})"', tag)
    return Version(tag, head["ContentLength"], known[1] if known else None)


def read(system: AmazonStore, url: str) -> bytes:
    """The whole object."""
    client, place = _object(system, url)
    try:
        return _content(client, place)
    except client.exceptions.NoSuchKey as error:
        raise absent(url) from error


def upload(system: AmazonStore, path: str, url: str, replaces: Version | None) -> bool:
    """As `pipeline.object_store.upload`. The store takes up to 5 GiB."""
    client, place = _object(system, url)
    condition = {"IfMatch": replaces.tag} if replaces else {"IfNoneMatch": "*"}
    with open(path, "rb") as file:
        try:
            client.put_object(**place, Body=file, **condition)
        except ClientError as error:
            # 404: what it should replace is gone; 409: another upload ends at the same moment
            bucket = error.response.get("Error", {}).get("Code") == "NoSuchBucket"
            if _status(error) in (404, 409, 412) and not bucket:
                return False
            raise
    return True


class _Download(RangedFile):
    """One version of an object, by a request for each range: what replaces it is not mixed in."""

    def __init__(self, client: Any, place: dict[str, str], found: Version) -> None:
        self._client, self._place, self._found = client, place, found

    def size(self) -> int:
        return self._found.bytes

    def part(self, first: int, count: int) -> bytes:
        end = min(first + count, self._found.bytes)
        if end <= first:
            return b""
        asked = {"Range": f"bytes={first}-{end - 1}", "IfMatch": self._found.tag}
        return _content(self._client, {**self._place, **asked})


def _content(client: Any, asked: dict[str, str]) -> bytes:
    for tries_left in reversed(range(_TRIES)):
        try:
            content: bytes = client.get_object(**asked)["Body"].read()
            break
        except (HTTPClientError, IncompleteReadError):  # in the middle of the body
            if not tries_left:
                raise
    return content


def _object(system: AmazonStore, url: str) -> tuple[Any, dict[str, str]]:
    bucket, key = parse_s3_path(url)
    return system.client().client, {"Bucket": bucket, "Key": key}


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
