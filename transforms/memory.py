"""Whether an exception says that there is too little memory, whoever raised it."""

import errno

_OF_THE_DEVICE = "OutOfMemoryError"  # torch's, by name: this module needs no torch
_OF_THE_HOST = "DefaultCPUAllocator"  # torch raises a bare RuntimeError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy, Arrow, torch or the system refused memory."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == _OF_THE_DEVICE
        or (isinstance(error, RuntimeError) and _OF_THE_HOST in str(error))
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    )
