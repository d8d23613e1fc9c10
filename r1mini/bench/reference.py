"""The same work done by transformers and TRL, where they are installed.

Their best ordinary settings: transformers' default attention and key-value cache; TRL's trainers
without gradient checkpointing (which trades time for memory) and without logs. Steps are those of
TRL's own `train`. Left out: vLLM.
"""

import importlib.metadata
import importlib.util
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from r1mini.bench.timing import UNTIMED, Run, Runs, Stopwatch
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.checkpoint.weights import config_json
from r1mini.infra.device import autocast
from r1mini.model.transformer import Transformer


def versions() -> dict[str, str]:
    return {
        name: importlib.metadata.version(name)
        for name in ("transformers", "trl")
        if importlib.util.find_spec(name)
    }


def to_transformers(ours: Transformer, stop_ids: frozenset[int]):
    """A transformers model with the same weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    weight = ours.lm_head.weight
    fields = config_json(ours, stop_ids)
    fields |= {"eos_token_id": sorted(stop_ids), "pad_token_id": 0}
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=weight.dtype)
    model.load_state_dict(ours.state_dict())
    return model.to(weight.device).eval()


def decode(
    model,
    prompts_BT: Tensor,
    new_tokens: int,
    rows: int,
    stop_ids: frozenset[int],
    watch: Stopwatch,
) -> int:
    """Batch after batch: each runs until its longest row is done."""
    count, stop = 0, torch.tensor(sorted(stop_ids), device=prompts_BT.device)
    for batch_BT in prompts_BT.split(rows):
        sampled_BT = model.generate(
            batch_BT,
            attention_mask=torch.ones_like(batch_BT),
            do_sample=True,
            top_k=0,  # the default is 50
            max_new_tokens=new_tokens,
            eos_token_id=sorted(stop_ids),
            pad_token_id=0,
        )
        ends_BT = torch.isin(sampled_BT[:, batch_BT.shape[1] :], stop).int()
        count += int((ends_BT.cumsum(-1) == ends_BT).sum())  # up to the first end, included
    return count


@torch.inference_mode()
def prefill(model, tokens_BT: Tensor, watch: Stopwatch) -> int:
    model(tokens_BT, use_cache=True, logits_to_keep=1)
    return tokens_BT.numel()


def with_fused_head(model):
    """As TRL's trainers prepare it: the logits are computed in chunks of the vocabulary."""
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


def logprobs(model, tokens_BT: Tensor, bf16: bool, watch: Stopwatch) -> int:
    with autocast(tokens_BT.device, bf16):
        output = model(tokens_BT, labels=tokens_BT, fused_lm_head=True)
    (-output.log_probs.sum()).backward()
    model.zero_grad(set_to_none=True)
    return tokens_BT.numel()


def trainer_settings(
    folder: str, rows: int, model: Transformer, *, repeats: int, bf16: bool, rate: float
) -> dict:
    """The settings that both trainers share."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of TRL's own use of transformers
    return {
        "output_dir": folder,
        "per_device_train_batch_size": rows,
        "max_steps": repeats + UNTIMED,
        "learning_rate": rate,
        "bf16": bf16,
        "use_cpu": model.lm_head.weight.is_cpu,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def to_fast_tokenizer(tokenizer: Tokenizer):
    from transformers import PreTrainedTokenizerFast

    backend = tokenizer.backend
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="w0")


def grpo(
    ours: Run,
    policy: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    completions: int,
    new_tokens: int,
    **options,
) -> list[Runs]:
    """A completion's reward is its index in its group: rewards are never equal and cost nothing."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def rewards(completions, **_) -> list[float]:
        return [float(i % trainer.num_generations) for i in range(len(completions))]

    with tempfile.TemporaryDirectory() as folder:
        rows = len(prompts) * completions
        trainer = GRPOTrainer(
            to_transformers(policy, tokenizer.stop_ids),
            processing_class=to_fast_tokenizer(tokenizer),
            reward_funcs=rewards,
            args=GRPOConfig(
                **trainer_settings(folder, rows, policy, **options),
                beta=0.0,
                num_generations=completions,
                max_completion_length=new_tokens,
            ),
            train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
        )
        return alternate(trainer, ours, policy, 0)


def sft(
    ours: Run,
    model: Transformer,
    tokenizer: Tokenizer,
    rows: Sequence[Sequence[int]],
    losses: list[float],
    **options,
) -> list[Runs]:
    """Appends the loss of each step to `losses`."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    class Trainer(SFTTrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            losses.append(float(loss.detach()))
            return loss

    with tempfile.TemporaryDirectory() as folder:
        settings = trainer_settings(folder, len(rows), model, **options)
        trainer = Trainer(
            to_transformers(model, tokenizer.stop_ids),
            processing_class=to_fast_tokenizer(tokenizer),
            args=SFTConfig(**settings, max_length=None),
            train_dataset=Dataset.from_dict({"input_ids": list(rows), "labels": list(rows)}),
        )
        return alternate(trainer, ours, model, sum(map(len, rows)))


def alternate(trainer, ours: Run, model: Transformer, amount: float) -> list[Runs]:
    """Like timing.alternate, but inside TRL's `train`: each of its steps is followed by one of
    ours. `amount`: tokens of its step, if they are not sampled."""
    from transformers import PrinterCallback, TrainerCallback

    our_runs, trl_runs, step = Runs(), Runs(), ExitStack()
    device = model.lm_head.weight.device
    generate = getattr(trainer, "_generate_and_score_completions", None)
    current = {"amount": amount}

    class Alternate(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            current["watch"] = step.enter_context(trl_runs.measured(state.global_step, device))

        def on_step_end(self, args, state, control, **_):
            step.close()
            with our_runs.measured(state.global_step - 1, device) as watch:
                our_amount = ours(watch)
            if state.global_step > UNTIMED:
                our_runs.amounts.append(our_amount)
                trl_runs.amounts.append(current["amount"])

    def timed_generate(*args):
        with current["watch"].lap("sampling"):
            output = generate(*args)
        current["amount"] = int(output["completion_mask"].sum())
        return output

    if generate:
        trainer._generate_and_score_completions = timed_generate
    trainer.add_callback(Alternate())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    for laps in trl_runs.laps if generate else ():
        pairs = zip(laps["all"], laps["sampling"])
        laps["learner"] = tuple(total - sampling for total, sampling in pairs)
    return [our_runs, trl_runs]
