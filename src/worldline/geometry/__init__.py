"""Pure tensor functions: poses, cameras, point maps, ray maps, scene flow, closed-form fits, normalisations."""
