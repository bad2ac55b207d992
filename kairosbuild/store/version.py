"""The version of a store's layout, for those who name its folder without opening it."""

VERSION = "v1"
"""The folder below the store's own; another version lies beside it."""
