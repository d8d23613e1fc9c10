"""One HTML file that shows training runs: `python -m r1mini.look` (docs/look.md)."""
