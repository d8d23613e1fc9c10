"""`python -m r1mini`: the R1 recipe, stage after stage (recipe.py)."""

import sys

from r1mini.config import run
from r1mini.recipe import PRESETS, Config, __doc__, main

if __name__ == "__main__":
    sys.argv[0] = "python -m r1mini"
    run(main, Config, PRESETS, __doc__)
