"""Many windows, one world: observations of overlapping windows become cameras, depth, points and scene flow."""
