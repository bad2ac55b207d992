"""Where bytes from outside come from: mirrors, verified downloads, distribution metadata."""
