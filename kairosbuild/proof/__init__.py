"""What a published digest is made of, who says so, and whether that is good enough."""
