"""Train every checkpoint that is embedded in the package, one after the other: the same as `worldline train NAME`.

python tools/train_embedded.py --out runs --minutes 9            # a chunk; call it again until nothing is left
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from worldline.cli import train

EMBEDDED: dict[str, Callable[..., object]] = dict(train.arguments)
"""Name of a system -> arguments of its training command."""


def main(argv: list[str] | None = None) -> int:
    """Train what is not finished yet; the minutes are shared by all systems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="a folder per system is made in here")
    parser.add_argument("--minutes", type=float, help="stop after this time, with a checkpoint")
    parser.add_argument("--only", choices=sorted(EMBEDDED), help="one system")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--fraction", type=float, default=1.0, help="part of each recipe's steps to do")
    options = parser.parse_args(argv)
    started = time.monotonic()
    for name in [options.only] if options.only else sorted(EMBEDDED):
        left = None
        if options.minutes is not None:
            left = options.minutes - (time.monotonic() - started) / 60
            if left <= 0:
                break
        arguments = EMBEDDED[name](
            out=options.out / name,
            minutes=left,
            resume=True,
            threads=options.threads,
            fraction=options.fraction,
        )
        train.run(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
