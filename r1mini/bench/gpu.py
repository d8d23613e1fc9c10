"""Everything that docs/speed.md needs from a CUDA GPU: `python -m r1mini.bench.gpu --out runs/gpu`.

The parts run one after another, each in a process of its own and within a time limit. What a part
prints is in OUT/PART.log; the summary, OUT/gpu.md, has its command, its time and its last lines. A
part that has finished is not run again, so the measurement can go on another day.
"""

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from r1mini import checkpoint
from r1mini.bench.__main__ import SHAPES as BENCH_SHAPES
from r1mini.bench.__main__ import machine, random_model, word_tokenizer
from r1mini.bench.memory import SHAPES
from r1mini.config import option, run_script, validate
from r1mini.infra import files
from r1mini.infra.device import pick_device

TINY_SHAPE = BENCH_SHAPES["1m"]
LAST_LINES = 40  # of a part's output, in the summary
TINY = (
    "--shapes embedded --repeats 1 --new-tokens 4 --prompt-tokens 8 --problems 2 --completions 2 "
    "--batch 1 --no-compare"
)
DECODE = "--shapes 1.5b --what decode prefill --repeats 2 --no-compare"
STEP = (
    "--shapes 0.5b --what grpo --problems 16 --completions 16 --prompt-tokens 128 "
    "--new-tokens 256 --learner-tokens 32768 --repeats 2"
)
GRPO = "train_grpo.py --no-progress --show 0 --optimizer adamw --bf16"


@dataclass(frozen=True)
class Part:
    """Commands after `python`. {out} is the folder of the results, {device} the device."""

    limit: int  # seconds
    commands: tuple[str, ...]
    tiny: tuple[str, ...]  # the same with shapes for a rehearsal on a CPU


def bench(flags: str, tiny: str) -> Part:
    command = "-m r1mini.bench --device {device} --bf16"
    return Part(300, (f"{command} {flags}",), (f"-m r1mini.bench --device {{device}} {tiny}",))


def memory(shape: str, flags: str) -> Part:
    """The peak in the dry run beside the estimate, which every run on a GPU prints."""
    run = f"{GRPO} --model {{out}}/{shape} --data {{out}}/{shape}/rows.jsonl --device {{device}}"
    limits = "--reward accuracy --steps 1 --problems 2 --completions 8 --max-new-tokens 1024"
    tiny = "--reward accuracy --steps 1 --problems 2 --completions 2 --max-new-tokens 4"
    write = "-m r1mini.bench.gpu --write {} --out {{out}}/" + shape
    return Part(
        240,
        (write.format(shape), f"{run} --out {{out}}/run-{shape} {limits} {flags}"),
        (write.format("tiny"), f"{run} --out {{out}}/run-{shape} {tiny} {flags}"),
    )


PARTS = {
    "tests": Part(
        180, ("-m pytest -q -m gpu tests",), ("-m pytest -q -k gpu tests/test_config.py",)
    ),
    "decode": bench(f"{DECODE} --batch 1 16 64 256", f"{TINY} --what decode prefill"),
    "decode-compiled": bench(f"{DECODE} --compile --batch 1 16 64 256", f"{TINY} --what decode"),
    "grpo": bench(STEP, f"{TINY} --what grpo"),
    "grpo-compiled": bench(f"{STEP} --compile --no-compare", f"{TINY} --what grpo"),
    "learner": bench(
        "--shapes 1.5b --what sft logprobs --learner-tokens 32768 --repeats 2 --no-compare",
        f"{TINY} --what sft",
    ),
    "memory-0.5B": memory("0.5B", "--learner-tokens 8192"),
    "memory-1.5B": memory("1.5B", "--learner-tokens 8192"),
    "memory-7B": memory("7B", "--learner-tokens 8192 --lora-rank 16 --gradient-checkpointing"),
    "recipe": Part(
        600,
        ("-m r1mini --device {device} --out {out}/r1",),
        ("-m r1mini --preset quick --device {device} --out {out}/r1 --stages dev1",),
    ),
    "bases": Part(
        600,
        tuple(
            f"train_sft.py --preset {name} --device {{device}} --out {{out}}/{name}"
            for name in ("student-base", "base")
        ),
        (
            "train_sft.py --preset student-base --rows 40 --device {device} "
            "--out {out}/student-base",
        ),
    ),
}


@dataclass(frozen=True)
class Config:
    out: str = option("runs/gpu", "folder for the results")
    parts: tuple[str, ...] = option(tuple(PARTS), "what to measure", choices=tuple(PARTS))
    device: str = option("auto", "auto, cpu or cuda[:n]")
    tiny: bool = option(False, "tiny shapes, to rehearse on a CPU")
    write: str = option(
        "",
        "only write a model of this shape with random weights to --out",
        choices=("", "tiny", *SHAPES),
    )


def main(cfg: Config) -> None:
    validate(cfg)
    out = Path(cfg.out)
    device = pick_device(cfg.device, 1)
    if cfg.write:
        return write_random_model(cfg.write, out, device)
    if device.type == "cpu" and not cfg.tiny:
        raise ValueError(f"--device {cfg.device}: these shapes need a GPU; --tiny rehearses them")
    files.prepare_folder(out)
    results = files.read_json(out / "gpu.json") if (out / "gpu.json").is_file() else {}
    for name in cfg.parts:
        if results.get(name, {}).get("exit") == 0:
            continue
        results[name] = run_part(PARTS[name], name, cfg, out)
        results[name]["machine"] = machine(device)
        files.write_json(out / "gpu.json", results)
        (out / "gpu.md").write_text("\n".join(summary(results, out)), encoding="utf-8")
        print(f"{name}: exit {results[name]['exit']}, {results[name]['seconds']:.0f} s", flush=True)
    print(f"{out}/gpu.md")


def run_part(part: Part, name: str, cfg: Config, out: Path) -> dict:
    """Its commands, one after another, until one fails or the time is over (exit code 124)."""
    start, code, commands = time.monotonic(), 0, []
    with open(out / f"{name}.log", "w", encoding="utf-8") as log:
        for command in part.tiny if cfg.tiny else part.commands:
            commands.append(command.format(out=out, device=cfg.device))
            left = part.limit - (time.monotonic() - start)
            argv = [sys.executable, *shlex.split(commands[-1])]
            try:
                code = subprocess.run(argv, stdout=log, stderr=log, timeout=left).returncode
            except subprocess.TimeoutExpired:
                code = 124
            if code:
                break
    return {"exit": code, "seconds": time.monotonic() - start, "commands": commands}


def summary(results: dict, out: Path) -> Iterator[str]:
    for name, result in results.items():
        info = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
        yield f"## {name}\n\n{info}; exit {result['exit']}, {result['seconds']:.0f} s\n\n```"
        yield from (f"python {command}" for command in result["commands"])
        yield "```\n"
        lines = (out / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        yield from (line if line.startswith("|") else f"    {line}" for line in lines[-LAST_LINES:])
        yield ""


def write_random_model(shape: str, folder: Path, device: torch.device) -> None:
    """A model folder with a tokenizer of words, and problems for it: prompts of 128 words."""
    config = TINY_SHAPE if shape == "tiny" else SHAPES[shape]
    end = config.vocab_size - 1
    model = random_model(config, 0, device).to(torch.bfloat16)
    checkpoint.save(folder, model, word_tokenizer(end, [end]))
    prompts = (" ".join(f"w{i}" for i in range(number, number + 128)) for number in (0, 1))
    files.write_rows(
        folder / "rows.jsonl", [{"problem": prompt, "answer": "1"} for prompt in prompts]
    )


if __name__ == "__main__":
    sys.argv[0] = "python -m r1mini.bench.gpu"
    run_script(main, Config, description=__doc__)
