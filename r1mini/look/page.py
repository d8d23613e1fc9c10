"""Writes the page: chooses what fits, and embeds it in the template as JSON.

Text from models is data. It is embedded in a script element that browsers do not run, with every
character escaped that could end the element, and the page inserts it as text only.
"""

import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from r1mini.look.data import read_run
from r1mini.look.recipes import read_held_out, read_recipe
from r1mini.look.sources import Folders

TEMPLATE = Path(__file__).with_name("template.html")
MARKER = "__DATA__"  # in the template, where the data goes
HELD_OUT_SHARE = 0.25  # of the size, for held-out problems
TOKENS_SHARE = 0.5  # of what is left, for groups with tokens
Item = tuple[int, int, Any]  # its source, its position there, itself
# "<" could end the script element or open a comment; the others end a line in JavaScript, have no
# UTF-8 encoding, or are invisible and would make the file hard to read.
ESCAPED = re.compile("[<\u2028\u2029\ufeff\x7f-\x9f\ud800-\udfff]")


def read_all(folders: Folders) -> dict[str, Any]:
    """All that the page shows, before anything is left out for its size."""
    recipes = folders.recipes.items()
    return {
        "runs": [read_run(label, folder) for label, folder in folders.runs.items()],
        "recipes": [read_recipe(name, recipe, folders.runs) for name, recipe in recipes],
        "heldOut": [problems for named in recipes for problems in read_held_out(*named)],
    }


def embedded_json(value: Any) -> str:
    r"""JSON that is harmless inside a script element, and that UTF-8 can encode.

    >>> print(embedded_json("</script>"))
    "\u003c/script>"
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def page_html(data: Mapping[str, Any]) -> str:
    before, after = TEMPLATE.read_text(encoding="utf-8").split(MARKER)
    return before + embedded_json(data) + after


def within_size(data: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The same data, with only as many groups and held-out problems as fit into `size` bytes.

    Which ones is a function of the data: every step keeps about as many groups as any other, and
    every task as many problems. ValueError if metrics and settings alone are too large.
    """
    runs = [run | {"groups": []} for run in data["runs"]]
    held_out = [problems | {"problems": []} for problems in data["heldOut"]]
    chosen = {**data, "runs": runs, "heldOut": held_out}
    left = size - byte_size(page_html(chosen))
    if left < 0:
        raise ValueError(
            f"--megabytes {size / 1e6:g}: metrics and settings alone need "
            f"{(size - left) / 1e6:.1f}; raise it, or name fewer runs"
        )
    problems = numbered(part["problems"] for part in data["heldOut"])
    kept, used = choose(problems, HELD_OUT_SHARE * left, lambda p: (p[0], p[2]["task"]))
    for index, _, problem in kept:
        held_out[index]["problems"].append(problem)
    groups = numbered(run["groups"] for run in data["runs"])
    groups = with_tokens_within(groups, TOKENS_SHARE * (left - used))
    for index, _, group in choose(groups, left - used, step_of)[0]:
        runs[index]["groups"].append(group)
    return chosen


def numbered(sources: Iterable[Sequence[Any]]) -> list[Item]:
    """
    >>> numbered(["ab", "c"])
    [(0, 0, 'a'), (0, 1, 'b'), (1, 0, 'c')]
    """
    return [(i, j, value) for i, source in enumerate(sources) for j, value in enumerate(source)]


def with_tokens_within(groups: Sequence[Item], size: float) -> list[Item]:
    """The same groups; only so many have their tokens as fit, evenly over the steps."""
    with_tokens = [group for group in groups if "perToken" in group[2]]
    kept = {group[:2] for group in choose(with_tokens, size, step_of)[0]}
    return [item if item[:2] in kept else (*item[:2], without_tokens(item[2])) for item in groups]


def without_tokens(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "perToken"}


def step_of(item: Item) -> tuple[int, int]:
    return item[0], item[2]["step"]


def choose(
    items: Iterable[Item], size: float, part: Callable[[Item], Any]
) -> tuple[list[Item], int]:
    """The items (source, position, value) that fit, in their order, and their size in bytes.

    A fixed hash orders the items of each part (a step, a task), after those that have tokens. The
    first item of every part comes before the second of any.
    """
    ranks: dict[Any, int] = {}
    ranked = []
    for item in sorted(items, key=lambda item: ("perToken" not in item[2], hash_of(item))):
        rank = ranks[part(item)] = ranks.get(part(item), -1) + 1
        ranked.append((rank, item))
    kept, used = [], 0
    for _, item in sorted(ranked, key=lambda pair: pair[0]):  # stable: by hash within a rank
        needed = byte_size(embedded_json(item[2])) + 1
        if used + needed <= size:
            kept.append(item)
            used += needed
    return sorted(kept, key=lambda item: item[:2]), used


def hash_of(item: Item) -> tuple[int, int, int]:
    return zlib.crc32(f"{item[0]} {item[1]}".encode()), item[0], item[1]


def byte_size(text: str) -> int:
    return len(text.encode())
