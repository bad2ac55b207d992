"""Benchmarks: each runs ours and the peer in the same run and prints the ratio."""
