"""Videos -> training samples of moving pictures: dense tracks of a first frame, a caption, quality gates, a report."""
