"""Worldline: a video or a picture in, a 4D scene out."""

from __future__ import annotations

__version__ = "0.1.0.dev0"
