"""One file per kind of node, and the table of them."""
