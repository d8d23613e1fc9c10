"""The whole pipeline of R1. Read `stages.py`."""
