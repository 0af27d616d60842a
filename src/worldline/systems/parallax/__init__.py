"""Parallax: cameras, depth and motion from optical flow alone, no weights."""
