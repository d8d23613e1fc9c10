"""One step's groups: problems, G completions of each, their rewards. [R1 §2.2.1] [DAPO §3.2]

A problem's completions are scored in threads while the next problem's are sampled.
"""

from collections.abc import Sequence

from r1mini import tasks
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.data.problems import problem_at
from r1mini.infra import distributed
from r1mini.infra.device import autocast
from r1mini.model.transformer import Transformer
from r1mini.records import Group, Problem, Rollout
from r1mini.rewards.runner import Rewards, group_rewards, score_async, worker_pool
from r1mini.rl.config import GRPOConfig
from r1mini.sampler.sampler import sample
from r1mini.sampler.sampling import SamplingParams


def collect_groups(
    cfg: GRPOConfig,
    policy: Transformer,
    tokenizer: Tokenizer,
    data: Sequence[Problem],
    rewards: Rewards,
    step: int,
    spent: int = 0,
) -> tuple[list[Group], list[Group]]:
    """(the groups to learn from, all groups sampled for them).

    A group whose rewards are all equal is replaced by one of another problem, up to `resample`
    times [DAPO §3.2], within `--sample-budget`, of which `spent` completions are used.
    """
    policy = distributed.gather_model(policy)
    groups: dict[int, Group] = {}
    drawn: list[Group] = []
    wanted = list(range(cfg.problems))
    for attempt in range(cfg.resample + 1):
        fresh = problems_of_step(cfg, data, step, attempt)
        problems = [fresh[n] for n in wanted]
        new = sample_groups(cfg, policy, tokenizer, problems, rewards, step, attempt)
        drawn += new
        for n, group in zip(wanted, new):
            if attempt == 0 or not group.has_zero_variance:
                groups[n] = group
        wanted = [n for n, group in groups.items() if group.has_zero_variance]
        if cfg.sample_budget:
            left = cfg.sample_budget - spent - len(drawn) * cfg.completions
            wanted = wanted[: max(0, left) // cfg.completions]
        if not wanted:
            break
    return list(groups.values()), drawn


def problems_of_step(
    cfg: GRPOConfig, data: Sequence[Problem], step: int, attempt: int = 0
) -> list[Problem]:
    """The problems of a file, or made by the tasks: a function of (seed, step, attempt), so a
    resumed run neither repeats nor skips one."""
    seed = f"{cfg.seed} attempt {attempt}" if attempt else cfg.seed
    indices = range(step * cfg.problems, (step + 1) * cfg.problems)
    if data:
        return [problem_at(data, seed, index) for index in indices]
    names = [cfg.tasks[index % len(cfg.tasks)] for index in indices]
    return [tasks.problem(name, seed, index, "train") for name, index in zip(names, indices)]


def sample_groups(
    cfg: GRPOConfig,
    policy: Transformer,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    rewards: Rewards,
    step: int,
    attempt: int,
) -> list[Group]:
    """A scored group of each problem. Each rank samples its share; all ranks get all groups."""
    part = distributed.rank_slice(len(problems))
    local, pending = problems[part], []

    def start_scoring(n: int, rollouts: list[Rollout]) -> None:
        prompt_tokens = len(rollouts[0].prompt_ids)
        max_length = policy.config.max_completion(cfg.max_new_tokens, prompt_tokens)
        scoring = score_async(
            local[n], rollouts, rewards.functions, pool, max_completion_len=max_length
        )
        pending.append(scoring)

    with worker_pool() as pool, autocast(policy.device, cfg.bf16):
        rollouts = sample(
            policy,
            tokenizer,
            [problem.prompt for problem in local],
            cfg.completions,
            SamplingParams(cfg.max_new_tokens, cfg.temperature),
            seed=cfg.seed,
            step=step,
            attempt=attempt,
            first_prompt=part.start,
            max_rows=cfg.sampler_rows,
            progress=f"step {step} sampling" if cfg.progress else None,
            on_finished=start_scoring,
        )
        scores = [scoring.result() for scoring in pending]
    groups = []
    results = distributed.all_gather(list(zip(rollouts, scores)))
    for problem, (members, values) in zip(problems, results):
        totals = group_rewards(problem, values, rewards.weights)
        groups.append(Group(problem, members, values, totals))
    return groups
