"""How fast r1mini is, beside the machine's limits and TRL: `python -m r1mini.bench`."""
