"""The same work done by transformers and TRL, where they are installed.

Their best ordinary settings: transformers' default attention and key-value cache; TRL's trainers
without gradient checkpointing (which trades time for memory) and without logs. Steps are those of
TRL's own `train`. Left out: vLLM.
"""

import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from importlib import metadata, util

import torch
from torch import Tensor

from r1mini.bench.timing import Run, Runs
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.checkpoint.weights import config_json
from r1mini.infra.device import autocast
from r1mini.model.transformer import Transformer


def versions() -> dict[str, str]:
    return {
        name: metadata.version(name) for name in ("transformers", "trl") if util.find_spec(name)
    }


def to_transformers(ours: Transformer, stop_ids: frozenset[int]):
    """A transformers model with the same weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    ends = {"eos_token_id": sorted(stop_ids), "pad_token_id": 0}
    config = AutoConfig.for_model(**config_json(ours, stop_ids) | ends)
    model = AutoModelForCausalLM.from_config(config, dtype=ours.lm_head.weight.dtype)
    model.load_state_dict(ours.state_dict())
    return model.to(ours.device).eval()


def decode(
    model, prompts_BT: Tensor, new_tokens: int, rows: int, stop_ids: frozenset[int], runs: Runs
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
        )
        ends_BT = torch.isin(sampled_BT[:, batch_BT.shape[1] :], stop).int()
        count += int((ends_BT.cumsum(-1) == ends_BT).sum())  # up to the first end, included
    return count


@torch.inference_mode()
def prefill(model, tokens_BT: Tensor, runs: Runs) -> int:
    model(tokens_BT, use_cache=True, logits_to_keep=1)
    return tokens_BT.numel()


def with_fused_head(ours: Transformer, stop_ids: frozenset[int]):
    """As TRL's trainers prepare it: the logits are computed in chunks of the vocabulary."""
    from trl.trainer.utils import add_fused_lm_head

    model = to_transformers(ours, stop_ids)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


def logprobs(model, tokens_BT: Tensor, bf16: bool, runs: Runs) -> int:
    with autocast(tokens_BT.device, bf16):
        output = model(tokens_BT, labels=tokens_BT, fused_lm_head=True)
    (-output.log_probs.sum()).backward()
    model.zero_grad(set_to_none=True)
    return tokens_BT.numel()


def grpo(prompts: list[str], reward: Callable, completions: int, new_tokens: int) -> dict:
    """Arguments of `train`."""
    from trl import GRPOConfig, GRPOTrainer

    class Trainer(GRPOTrainer):
        def _generate_and_score_completions(self, *args):
            output = super()._generate_and_score_completions(*args)
            self.runs.mark()
            self.runs.amounts.append(int(output["completion_mask"].sum()))
            return output

    return {
        "trainer_class": partial(Trainer, reward_funcs=reward),
        "config_class": GRPOConfig,
        "columns": {"prompt": prompts},
        "per_device_train_batch_size": len(prompts) * completions,
        "beta": 0.0,
        "num_generations": completions,
        "max_completion_length": new_tokens,
    }


def sft(rows: list[list[int]]) -> dict:
    """Arguments of `train`."""
    from trl import SFTConfig, SFTTrainer

    class Trainer(SFTTrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            self.runs.losses.append(float(loss.detach()))
            self.runs.amounts.append(sum(map(len, rows)))
            return loss

    return {
        "trainer_class": Trainer,
        "config_class": SFTConfig,
        "columns": {"input_ids": rows, "labels": rows},
        "per_device_train_batch_size": len(rows),
        "max_length": None,
    }


def train(
    ours: Run,
    model: Transformer,
    tokenizer: Tokenizer,
    trainer_class: Callable,
    config_class: Callable,
    columns: dict[str, list],
    **settings,
) -> list[Runs]:
    """Like `alternate`, but inside TRL's `train`: each of its steps is followed by one of ours."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback

    our_runs, trl_runs = Runs(model.device), Runs(model.device)

    class Alternate(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            trl_runs.begin()

        def on_step_end(self, *args, **kwargs):
            trl_runs.end()
            our_runs.measure(ours)

    warnings.filterwarnings("ignore", category=FutureWarning)  # of TRL's own use of transformers
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            to_transformers(model, tokenizer.stop_ids),
            processing_class=PreTrainedTokenizerFast(
                tokenizer_object=tokenizer.backend, eos_token="<end>", pad_token="w0"
            ),
            args=config_class(
                output_dir=folder,
                use_cpu=model.device.type == "cpu",
                gradient_checkpointing=False,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **settings,
            ),
            train_dataset=Dataset.from_dict(columns),
            callbacks=[Alternate()],
        )
        trainer.runs = trl_runs
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [our_runs, trl_runs]
