"""What every room stands on: errors, digests, events, processes."""
