"""A reward model as a reward: scores the answers to general prompts. [R1 §2.3.4]

R1 scores helpfulness on what the reader sees, and harmlessness on the whole completion. Problems
that rules judge get None, as general prompts get from the rules. The text is rendered and tokenized
anew for the reward model, whose tokenizer and chat template may differ from the policy's.
"""

import hashlib
import json
from collections.abc import Callable, Sequence

import torch

from r1mini import checkpoint
from r1mini.checkpoint.chat_template import load_chat_template
from r1mini.checkpoint.weights import read_config
from r1mini.data.preferences import Tokens, answer_template, encode_reply
from r1mini.model.reward_model import RewardModel
from r1mini.records import Problem, Rollout
from r1mini.rewards.completion import is_general, visible_answer
from r1mini.rewards.runner import Rewards, check_terms, load_rewards
from r1mini.training.logprobs import collate
from r1mini.training.micro_batches import by_prompt
from r1mini.training.scores import row_scores


class ModelReward:
    """Collects the completions of a step, and scores them together when the first is asked for."""

    def __init__(self, name: str, folder: str, scores_thinking: bool = False):
        """Reads the tokenizer and the template; `load` reads the weights."""
        self.name, self.folder = f"--reward {name}={folder}", folder
        if not checkpoint.resolve(folder).is_dir():
            raise ValueError(f"{self.name}: no such folder")
        if checkpoint.is_adapter(folder):
            raise ValueError(f"{self.name}: a LoRA adapter: {checkpoint.MERGE_IT}")
        self.scores_thinking = scores_thinking
        self.config = read_config(checkpoint.resolve(folder) / "config.json")
        self.template = answer_template(load_chat_template(folder))
        self.tokenizer = self.template.adapt_tokenizer(checkpoint.load_tokenizer(folder))
        self.model: RewardModel | None = None
        self.batch: dict[Tokens, float | None] = {}  # completions that wait for their scores

    def load(self, device: torch.device, bf16: bool, tokens: int = 4096) -> None:
        """Reads the weights. `tokens`: of a forward pass."""
        self.tokens = tokens
        dtype = torch.bfloat16 if bf16 else torch.float32
        self.model, _ = checkpoint.load(self.folder, device, dtype, kind=RewardModel)

    def enqueue(
        self, problem: Problem, rollouts: Sequence[Rollout]
    ) -> Callable[[], list[float | None]]:
        """A function that returns the scores of these completions."""
        if not is_general(problem):
            return lambda: [None] * len(rollouts)
        rows, batch = [self.encode(problem, rollout) for rollout in rollouts], self.batch
        batch.update(dict.fromkeys(rows))

        def result() -> list[float | None]:
            if batch is self.batch:  # not yet scored
                batch.update(self.score(list(batch)))
                self.batch = {}
            return [batch[row] for row in rows]

        return result

    def encode(self, problem: Problem, rollout: Rollout) -> Tokens:
        """The token ids of prompt and answer, for this model. ValueError if they are too long."""
        prompt, text = problem.prompt_and_completion(rollout)
        text = text if self.scores_thinking else visible_answer(text)
        if problem.messages:
            prompt, text = list(problem.messages), [{"role": "assistant", "content": text}]
        context = self.config.max_position_embeddings
        try:
            segments = encode_reply(prompt, text, self.tokenizer, self.template, context)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}; prompt {problem.prompt[:60]!r}") from None
        return tuple(map(tuple, segments))

    @torch.inference_mode()
    def score(self, rows: Sequence[Tokens]) -> dict[Tokens, float]:
        """The score of each row. ValueError if one is not a finite number."""
        scores = {}
        for chosen in by_prompt(rows, self.tokens):
            part = [rows[b] for b in chosen]
            scores_B = row_scores(self.model, collate(part).to(self.model.device))
            if not scores_B.isfinite().all():
                raise ValueError(f"{self.name}: a score is not a finite number")
            scores |= zip(part, scores_B.tolist())
        return scores


def open_rewards(text: str, score_thinking: Sequence[str]) -> Rewards:
    """The rewards of a `--reward`. Its reward models still have to be loaded."""
    return load_rewards(text, lambda name, file: ModelReward(name, file, name in score_thinking))


def load_reward_models(rewards: Rewards, device: torch.device, bf16: bool, tokens: int) -> None:
    """`tokens`: of a forward pass."""
    for reward in rewards.functions.values():
        if isinstance(reward, ModelReward):
            reward.load(device, bf16, tokens)


def reward_models_fingerprint(text: str) -> dict[str, str]:
    """A hash of the names, sizes and times of the reward models' files; {} without any."""
    folders = [term.folder for term in check_terms(text, ()) if term.folder]
    content = json.dumps([checkpoint.weights_fingerprint(folder) for folder in folders])
    digest = hashlib.sha256(content.encode()).hexdigest()
    return {"reward_models_sha256": digest} if folders else {}


def parameter_bytes(folder: str, bf16: bool) -> int:
    """The memory of a reward model's weights."""
    config = read_config(checkpoint.resolve(folder) / "config.json")
    with torch.device("meta"):
        model = RewardModel(config)
    return sum(p.numel() for p in model.parameters()) * (2 if bf16 else 4)
