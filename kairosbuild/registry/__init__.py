"""OCI registries: push, pull, and the cache they hold."""
