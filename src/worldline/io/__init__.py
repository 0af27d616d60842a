"""Borders: video files, scenes on disk, weights."""
