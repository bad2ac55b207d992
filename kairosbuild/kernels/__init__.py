"""Kernels and their modules: what they say of themselves, how they fit together, how they are compiled."""
