"""Train every checkpoint that is embedded in the package, one after the other: the same as `worldline train NAME`.

python tools/train_embedded.py --out runs --minutes 9            # a chunk; call it again until nothing is left
python tools/train_embedded.py --out runs --minutes 9 --device cuda --fraction 10 --only flow-mini motioncrafter-mini

Data are made on the fly, on the device. Every folder holds the loss curve, the checkpoint it resumes from bit for bit,
and in the end the weights with recipe, seed and git revision in the JSON beside them. Exit code 3: something is left.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from worldline import api

EMBEDDED = ("flow-mini", "motioncrafter-mini", "geo4d-mini", "more4d-mini")
LEFT_OVER = 3


def main(argv: list[str] | None = None) -> int:
    """Train what is not finished yet; the minutes are shared by all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="a folder per checkpoint is made in here")
    parser.add_argument("--minutes", type=float, help="stop after this time, with a checkpoint")
    parser.add_argument("--only", nargs="+", choices=EMBEDDED, default=EMBEDDED, help="some of them, in this order")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--fraction", type=float, default=1.0, help="factor on each recipe's steps")
    options = parser.parse_args(argv)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    started = time.monotonic()
    for name in options.only:
        left = None
        if options.minutes is not None:
            left = options.minutes - (time.monotonic() - started) / 60
            if left <= 0:
                return LEFT_OVER
        folder, device = options.out / name, options.device
        weights = api.train(name, folder, minutes=left, resume=True, device=device, fraction=options.fraction)
        if weights is None:
            return LEFT_OVER
        sys.stdout.write(f"{name}: {weights}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
