"""Training of the flow stage that parallax and alignment use (`worldline.flow`); nothing reconstructs with it alone."""
