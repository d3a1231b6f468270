"""What the launcher of the flex template starts: it turns flat flags into `backlight generate`.

The parameters of `metadata.json` are settings of the run; every other flag is Beam's.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

# The service runs the job when this program has ended; flags of the launcher come later and win.
BEAM = ("--runner=DataflowRunner", "--sdk_location=container", "--no_wait_until_finish")


def command(flags: Sequence[str]) -> list[str]:
    """`--out=OUT --root=R --region=G` → `generate --root=R OUT -- … --region=G`."""
    metadata = json.loads((Path(__file__).parent / "metadata.json").read_text())
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for parameter in metadata["parameters"]:
        parser.add_argument(f"--{parameter['name']}", required=not parameter.get("isOptional"))
    given, beam_flags = parser.parse_known_args(flags)
    settings = {name: value for name, value in vars(given).items() if value}
    out = settings.pop("out")
    named = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    return ["generate", *named, out, "--", *BEAM, *beam_flags]


if __name__ == "__main__":
    from pipeline.cli import main

    sys.argv[1:] = command(sys.argv[1:])
    main()
