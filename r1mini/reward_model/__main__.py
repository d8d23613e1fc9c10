"""`python -m r1mini.reward_model`: trains a reward model (training.py)."""

import sys

from r1mini.config import run_script
from r1mini.infra.distributed import distributed_main
from r1mini.reward_model.training import Config, __doc__, main

if __name__ == "__main__":
    sys.argv[0] = "python -m r1mini.reward_model"
    run_script(distributed_main(main), Config, description=__doc__)
