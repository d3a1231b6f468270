"""Amounts as a person reads them."""


def in_bytes(count: float) -> str:
    """`154 MB`; the units are powers of 1,000."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def in_time(seconds: float) -> str:
    """`42 s`, `3.5 min`, `7.1 h`."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    if seconds < 6000:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:,.3g} h"
