"""MotionCrafter: world point maps and scene flow in one feed-forward pass."""
