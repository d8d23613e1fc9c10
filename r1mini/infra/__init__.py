"""What is not about models: files, signals, ranks, devices, time limits."""
