"""MoRe4D: one picture becomes a moving world, seen along any camera path (arXiv 2512.05044)."""
