"""The same by transformers and TRL, where they are installed, for [bench.py](bench.py) to measure beside r1mini.

Their best ordinary settings: transformers' default attention and key-value cache; TRL's trainers without gradient
checkpointing, which trades time for memory, and without logs. Steps are those of TRL's own `train`. Left out: vLLM.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from r1mini.config import autocast
from r1mini.measure import UNTIMED, Run, Runs, Stopwatch
from r1mini.model import Transformer
from r1mini.tokenizer import Tokenizer
from r1mini.weights import config_json


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("transformers", "trl") if importlib.util.find_spec(name)}


def model(ours: Transformer, stops: frozenset[int]):
    """transformers' own, with the same weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    weight = ours.lm_head.weight
    fields = {**config_json(ours, stops, weight.dtype), "eos_token_id": sorted(stops), "pad_token_id": 0}
    found = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields), dtype=weight.dtype)
    found.load_state_dict(ours.state_dict())
    return found.to(weight.device).eval()


def decode(model, prompts_BT: Tensor, new_tokens: int, rows: int, stops: frozenset[int], watch: Stopwatch) -> int:
    """Batch after batch: each runs until its longest row is done."""
    count, stop = 0, torch.tensor(sorted(stops), device=prompts_BT.device)
    for part_BT in prompts_BT.split(rows):
        made_BT = model.generate(part_BT, attention_mask=torch.ones_like(part_BT), do_sample=True, temperature=1.0, top_k=0,
                                 top_p=1.0, max_new_tokens=new_tokens, eos_token_id=sorted(stops), pad_token_id=0)
        ends_BT = torch.isin(made_BT[:, part_BT.shape[1]:], stop).int()
        count += int((ends_BT.cumsum(-1) == ends_BT).sum())  # up to the first end, and with it
    return count


@torch.inference_mode()
def prefill(model, tokens_BT: Tensor, watch: Stopwatch) -> int:
    model(tokens_BT, use_cache=True, logits_to_keep=1)
    return tokens_BT.numel()


def with_fused_head(model):
    """As TRL's trainers make it: the vocabulary is worked through in parts."""
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


def logprobs(model, tokens_BT: Tensor, bf16: bool, watch: Stopwatch) -> int:
    with autocast(tokens_BT.device, bf16):
        found = model(tokens_BT, labels=tokens_BT, fused_lm_head=True)
    (-found.log_probs.sum()).backward()
    model.zero_grad(set_to_none=True)
    return tokens_BT.numel()


def settings(folder: str, rows: int, repeats: int, device: torch.device, bf16: bool, rate: float) -> dict[str, Any]:
    """What both trainers share."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of TRL's own use of transformers
    return {"output_dir": folder, "per_device_train_batch_size": rows, "max_steps": repeats + UNTIMED, "learning_rate": rate,
            "bf16": bf16, "use_cpu": device.type == "cpu", "gradient_checkpointing": False, "save_strategy": "no",
            "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}


def words(tokenizer: Tokenizer):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, eos_token="<end>", pad_token="w0")


def grpo(mine: Run, policy: Transformer, tokenizer: Tokenizer, prompts: Sequence[str], completions: int, new_tokens: int, *,
         repeats: int, device: torch.device, **how) -> list[Runs]:
    """Rewards are the completions' numbers in their groups: never equal, and nothing to compute."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model(policy, tokenizer.stop_ids), processing_class=words(tokenizer),
            reward_funcs=lambda completions, **_: [float(i % trainer.num_generations) for i in range(len(completions))],
            args=GRPOConfig(**settings(folder, len(prompts) * completions, repeats, device, **how), beta=0.0,
                            num_generations=completions, max_completion_length=new_tokens),
            train_dataset=Dataset.from_dict({"prompt": list(prompts)}))
        return in_turns(trainer, mine, device, 0)


def sft(mine: Run, start: Transformer, tokenizer: Tokenizer, rows: Sequence[Sequence[int]], losses: list[float], *,
        repeats: int, device: torch.device, **how) -> list[Runs]:
    """`losses` receives that of each step."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    class Trainer(SFTTrainer):
        def compute_loss(self, *given, **named):
            loss = super().compute_loss(*given, **named)
            losses.append(float(loss.detach()))
            return loss

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model(start, tokenizer.stop_ids), processing_class=words(tokenizer),
                          args=SFTConfig(**settings(folder, len(rows), repeats, device, **how), max_length=None),
                          train_dataset=Dataset.from_dict({"input_ids": list(rows), "labels": list(rows)}))
        return in_turns(trainer, mine, device, sum(map(len, rows)))


def in_turns(trainer, mine: Run, device: torch.device, amount: float) -> list[Runs]:
    """As measure.py's, where theirs is TRL's own `train`: after each of its steps it waits for one of ours. `amount` is the
    tokens of its step, where they are not sampled."""
    from transformers import PrinterCallback, TrainerCallback

    ours, theirs, step = Runs(), Runs(), ExitStack()
    sampling = getattr(trainer, "_generate_and_score_completions", None)
    now = {"amount": amount}

    class Turns(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            now["watch"] = step.enter_context(theirs.measured(state.global_step, device))

        def on_step_end(self, args, state, control, **_):
            step.close()
            with ours.measured(state.global_step - 1, device) as watch:
                made = mine(watch)
            if state.global_step > UNTIMED:
                ours.amounts.append(made)
                theirs.amounts.append(now["amount"])

    def sampled(*given):
        with now["watch"].lap("sampling"):
            found = sampling(*given)
        now["amount"] = int(found["completion_mask"].sum())
        return found

    if sampling:
        trainer._generate_and_score_completions = sampled
    trainer.add_callback(Turns())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    for laps in theirs.laps:
        if sampling:
            laps["learner"] = tuple(whole - part for whole, part in zip(laps["all"], laps["sampling"]))
    return [ours, theirs]
