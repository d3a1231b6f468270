"""What two equal runs have in common: the bytes of their files."""

import hashlib
from pathlib import Path


def hashes(out: Path) -> dict[str, str]:
    """SHA-256 of every file but the commit records, whose timings differ."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file() and path.parent.name != "shards"
    }
