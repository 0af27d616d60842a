"""Looking at scenes."""
