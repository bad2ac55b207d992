"""Layers, indexes, merging, images and layouts as the OCI image specification defines them."""
