"""What outlives a run: blobs, action records, locks, leases, garbage collection."""
