"""What runs on the booted machine."""
