"""r1mini: DeepSeek-R1's training pipeline from scratch, small enough to read."""
