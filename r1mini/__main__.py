"""`python -m r1mini`: the R1 recipe (recipe/stages.py)."""

import sys

from r1mini.config import run_script
from r1mini.recipe.stages import PRESETS, Config, __doc__, main

if __name__ == "__main__":
    sys.argv[0] = "python -m r1mini"
    run_script(main, Config, PRESETS, __doc__)
