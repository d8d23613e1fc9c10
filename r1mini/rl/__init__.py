"""GRPO. Read `grpo.py` first."""
