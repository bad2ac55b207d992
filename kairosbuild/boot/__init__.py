"""What a machine needs to start from layers: verity, initrd, UKI, disk, and the emulator that tries it."""
