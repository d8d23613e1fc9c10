"""Claims of the report, each as an experiment of minutes. Read `catalog.py`."""
