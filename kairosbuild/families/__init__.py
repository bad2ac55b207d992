"""One file per family of distributions: how its packages are resolved, installed and looked into."""
