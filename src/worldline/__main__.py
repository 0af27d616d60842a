"""`python -m worldline` is the `worldline` command."""

import sys

from worldline.cli import main

sys.exit(main())
