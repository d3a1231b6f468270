"""A `flat://` object store in memory: Beam's FileSystem without folders and without rename."""

import io
from typing import ClassVar

from apache_beam.io.filesystem import CompressionTypes, FileMetadata, FileSystem


class FlatStore(FileSystem):
    objects: ClassVar[dict[str, bytes]] = {}
    written: ClassVar[list[str]] = []

    @classmethod
    def scheme(cls):
        return "flat"

    def join(self, basepath, *paths):
        return "/".join((basepath.rstrip("/"), *paths))

    def split(self, path):
        return tuple(path.rsplit("/", 1))

    def has_dirs(self):
        return False

    def mkdirs(self, path):
        raise NotImplementedError("an object store has no folders")

    def rename(self, source_file_names, destination_file_names):
        raise NotImplementedError("an object store has no rename")

    def copy(self, source_file_names, destination_file_names):
        raise NotImplementedError

    def _list(self, dir_or_prefix):
        for path, content in sorted(self.objects.items()):
            if path.startswith(dir_or_prefix):
                yield FileMetadata(path, len(content))

    def create(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        return _Upload(path)

    def open(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        if path not in self.objects:
            raise FileNotFoundError(path)
        return io.BytesIO(self.objects[path])

    def exists(self, path):
        return path in self.objects

    def size(self, path):
        return len(self.objects[path])

    def metadata(self, path):
        return FileMetadata(path, len(self.objects[path]))

    def last_updated(self, path):
        raise NotImplementedError

    def checksum(self, path):
        raise NotImplementedError

    def delete(self, paths):
        for path in paths:
            del self.objects[path]

    def report_lineage(self, path, unused_lineage):
        pass


class _Upload(io.BytesIO):
    """The object is there once the upload is closed, as on GCS and S3."""

    def __init__(self, path):
        super().__init__()
        self._path = path

    def close(self):
        if not self.closed:
            FlatStore.objects[self._path] = self.getvalue()
            FlatStore.written.append(self._path)
        super().close()
