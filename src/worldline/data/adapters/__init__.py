"""One small file per dataset: its layout and encodings to Scene4D clips."""
