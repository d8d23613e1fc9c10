"""The whole R1 pipeline. Read `stages.py`."""
