"""Rows to train on, from data files or from the embedded tasks."""
