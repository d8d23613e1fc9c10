"""Sample from a checkpoint: answer prompts, chat, evaluate, or make SFT rows by rejection sampling.

python sample.py --model runs/r1/r1                                       chat in the terminal
python sample.py --model runs/r1/r1 --prompt "Make 24 from 3, 5, 9."
python sample.py --model runs/r1/r1 --prompts problems.jsonl --out answers.jsonl
python sample.py --model runs/r1/r1 --eval --out runs/eval.json
python sample.py --model Qwen2.5-0.5B --preset gsm8k --data test.jsonl --out runs/gsm8k.json
python sample.py --model runs/r1/dev2 --reject --out runs/rows.jsonl      [R1 §2.3.3]
"""

from pathlib import Path

import torch

from r1mini import checkpoint
from r1mini.checkpoint.chat_template import load_chat_template
from r1mini.config import run_script
from r1mini.evaluation import jobs
from r1mini.evaluation.answer import answer
from r1mini.evaluation.config import PRESETS, SampleConfig, check
from r1mini.infra.device import pick_device
from r1mini.sampler.sampling import SamplingParams

Config = SampleConfig


def main(cfg: SampleConfig) -> dict:
    """Returns the figures of `--eval`, or the counts of `--reject`."""
    check(cfg)
    device = pick_device(cfg.device, cfg.threads)
    if cfg.out:
        jobs.check_writable(Path(cfg.out))
        if cfg.eval:
            jobs.check_writable(jobs.completions_path(Path(cfg.out)))
    dtype = torch.bfloat16 if cfg.bf16 else torch.float32
    model, tokenizer = checkpoint.load(cfg.model, device, dtype)
    template = load_chat_template(cfg.model, cfg.template)
    tokenizer = template.adapt_tokenizer(tokenizer)
    params = SamplingParams(cfg.max_new_tokens, cfg.temperature, cfg.top_k, cfg.top_p, cfg.min_p)
    session = jobs.Session(cfg, model, tokenizer, template, params)
    if not (cfg.eval or cfg.reject):
        answer(session)
        return {}
    run = jobs.run_evaluation if cfg.eval else jobs.run_rejection
    return run(session, jobs.problem_sets(session))


if __name__ == "__main__":
    run_script(main, Config, PRESETS, __doc__)
