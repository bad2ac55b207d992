"""Keys to sign and verify with, and the forms of signatures that firmware and kernels take."""
