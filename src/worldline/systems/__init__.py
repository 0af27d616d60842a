"""The systems: each observes windows of a video, the alignment joins them."""
