"""The idea: nodes, kinds, keys, and why something would be rebuilt."""
