"""Speed of r1mini, next to the machine's limits and TRL: `python -m r1mini.bench`."""
