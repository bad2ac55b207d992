"""kairosbuild: a content-addressed build graph for bootable OCI operating systems."""

__version__ = "0.1.0"
