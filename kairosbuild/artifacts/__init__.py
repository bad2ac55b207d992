"""What the kinds of boot artifacts share: an image's stack in its boot form, boot entries, partition tables."""
