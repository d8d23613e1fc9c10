"""See inside training runs: `python -m r1mini.look RUN [RUN...]` writes one HTML file.

RUN is the folder of a run of train_grpo.py, of a recipe, or of a recipe's seeds. The page needs no
network and no server; a run that is still training can be looked at, too.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from r1mini.config import option, run_script, validate
from r1mini.infra import files
from r1mini.look.page import page_html, read_all, within_size
from r1mini.look.sources import find_folders


@dataclass(frozen=True)
class Config:
    runs: tuple[str, ...] = option(
        (), "folders of RL runs, of recipes, or of a recipe's seeds", positional=True
    )
    out: str = option("look.html", "the HTML file to write")
    megabytes: float = option(
        8.0,
        "size of the file at most; groups and held-out problems that do not fit are left out",
        bounds="0.5 <= x",
    )


def main(cfg: Config) -> Path:
    validate(cfg)
    out = Path(cfg.out)
    if not out.parent.is_dir() or out.is_dir():
        raise ValueError(f"--out {out}: must be a file in a folder that exists")
    data = within_size(read_all(find_folders(cfg.runs)), round(cfg.megabytes * 1e6))
    files.write_text(out, page_html(data))
    print(out)
    return out


if __name__ == "__main__":
    sys.argv[0] = "python -m r1mini.look"
    run_script(main, Config, description=__doc__)
