"""A file at a URL of which a reader asks for ranges of bytes, by whichever client."""

import io
import os
from abc import abstractmethod
from typing import Any


class RangedFile(io.RawIOBase):
    """A seekable, read-only file; a subclass says how large it is, and asks for its parts."""

    _position = 0

    @abstractmethod
    def size(self) -> int:
        """The bytes of the file."""

    @abstractmethod
    def part(self, first: int, count: int) -> bytes:
        """Up to `count` bytes from byte `first`, at least one before the end; none after it."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = self.size() if whence == os.SEEK_END else self._position * (whence == os.SEEK_CUR)
        self._position = max(0, begin + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        content = self.part(self._position, len(buffer))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def readall(self) -> bytes:
        parts = []
        while content := self.part(self._position, self.size() - self._position):
            self._position += len(content)
            parts.append(content)
        return b"".join(parts)
