"""Infrastructure: files, signals, ranks, devices, time limits."""
