"""Points and cameras to pictures."""
