"""Rewards. Read `rules.py` first.

`rewards.accuracy` and all others of `REWARDS` have TRL's signature (see `trl_adapter.py`).
"""

from r1mini.rewards.open_r1 import (
    cosine,
    length,
    multiple_choice,
    reasoning_steps,
    repetition_penalty,
    soft_overlong_punishment,
    tag_count,
)
from r1mini.rewards.rules import accuracy, code, format, language
from r1mini.rewards.trl_adapter import Reward

REWARDS: dict[str, Reward] = {
    reward.__name__: reward
    for reward in (
        accuracy,
        format,
        language,
        code,
        multiple_choice,
        tag_count,
        reasoning_steps,
        repetition_penalty,
        cosine,
        length,
        soft_overlong_punishment,
    )
}
