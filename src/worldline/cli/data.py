"""`worldline data`: datasets into one format, checked, counted, looked at, mixed; synthetic scenes; curation."""

from __future__ import annotations

import sys
from typing import Any

from worldline.cli import data_check, data_convert, data_curate, data_look

arguments: dict[str, Any] = {
    "convert": data_convert.Convert,
    "synthesize": data_convert.Synthesize,
    "check": data_check.Check,
    "stats": data_look.Stats,
    "view": data_look.ViewClip,
    "mix": data_look.Mix,
    "curate": data_curate.Curate,
}


def run(args: Any) -> int:
    """Hand over to the module that the sub-command's arguments are from; each says what its exit codes are."""
    return sys.modules[type(args).__module__].run(args)
