"""What diffusers does not have, and nothing it has."""
