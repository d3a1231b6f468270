"""The main program of a worker process of the local runner: Beam's own, tied to its command.

It ends when its command ends, however that ends: the command holds the other end of this process's
stdin, which closes then. What a terminal sends at Ctrl-C goes to the command alone.
"""

import logging
import os
import signal
import sys
import threading


def main() -> None:
    """Work until the command is done with this process, or gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_command, name="end with command", daemon=True).start()

    # Beam tells each of its steps, and every optional client that is not installed.
    for name in (None, "apache_beam"):
        logging.getLogger(name).setLevel(logging.ERROR)

    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)


def _end_with_command() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
