"""`gs://`: which version of an object is there, and an upload that replaces that one alone.

`pipeline.object_store` imports it; its errors are those of Google's client.
"""

from base64 import b64decode
from typing import Any, BinaryIO, cast

from apache_beam.io.gcp.gcsio import parse_gcs_path
from google.api_core.exceptions import NotFound, PreconditionFailed

from pipeline.object_version import Version, absent


def version(system: Any, url: str) -> Version | None:
    """What is there by Beam's `system`; its tag is the generation."""
    blob = _blob(system, url)
    try:
        blob.reload()
    except NotFound:
        return None
    md5 = b64decode(blob.md5_hash).hex() if blob.md5_hash else None
    return Version(str(blob.generation), blob.size, md5)


def read(system: Any, url: str) -> bytes:
    """The whole object."""
    try:
        content: bytes = _blob(system, url).download_as_bytes(raw_download=True)
    except NotFound as error:
        raise absent(url) from error
    return content


def upload(system: Any, path: str, url: str, replaces: Version | None) -> bool:
    """As `pipeline.object_store.upload`; nothing is there before its last request."""
    generation = int(replaces.tag) if replaces else 0  # 0: there is none
    try:
        _blob(system, url).upload_from_filename(
            path,
            content_type="application/octet-stream",
            if_generation_match=generation,
            checksum="md5",
        )
    except PreconditionFailed:
        return False
    return True


def open_read(system: Any, url: str, block: int | None) -> BinaryIO:
    """As `pipeline.object_store.open_read`; by default Beam asks for 16 MiB at a time."""
    given = {} if block is None else {"read_buffer_size": block}
    return cast(BinaryIO, system._gcsIO().open(url, "rb", **given))


def _blob(system: Any, url: str) -> Any:
    bucket, name = parse_gcs_path(url)
    return system._gcsIO().client.bucket(bucket).blob(name)
