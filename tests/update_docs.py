"""Line numbers in the docs: README's line counts, and the excerpts of docs/grpo_step.md and of the
study guide's lessons.

`python tests/update_docs.py` renews them; tests/test_readme.py checks that nothing is left to do.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README, STEP = ROOT / "README.md", ROOT / "r1mini/docs/grpo_step.md"
LESSONS = sorted((ROOT / "r1mini/docs/guide").glob("*.md"))
COUNT = re.compile(r"^(\| \[([\w/.]+\.py)\]\([\w/.]+\) \| )\d+(?= \|)", re.MULTILINE)
EXCERPT = re.compile(
    r"\[([\w/.]+\.py):\d+\]\(([\w/.]+\.py)#L\d+\)\n\n```python\n(.*?)```", re.DOTALL
)


def with_counts(text: str) -> str:
    """README with the number of lines of each file of its reading list."""
    return COUNT.sub(lambda match: match[1] + str(len(lines(ROOT / match[2]))), text)


def with_line_numbers(text: str, page: Path = STEP) -> str:
    """The page's text with the line at which each excerpt begins. ValueError if the source has no
    such lines."""

    def numbered(match: re.Match) -> str:
        name, link, excerpt = match.groups()
        source, wanted = lines(page.parent / link), excerpt.splitlines()
        for start in range(len(source)):
            if dedented(source[start : start + len(wanted)]) == wanted:
                place = f"[{name}:{start + 1}]({link}#L{start + 1})"
                return f"{place}\n\n```python\n{excerpt}```"
        raise ValueError(f"{page.name}: {name} does not have these lines:\n{excerpt}")

    return EXCERPT.sub(numbered, text)


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def dedented(block: list[str]) -> list[str]:
    """Without the white space that the first line begins with."""
    indent = len(block[0]) - len(block[0].lstrip())
    return [line[indent:] for line in block]


if __name__ == "__main__":
    README.write_text(with_counts(README.read_text(encoding="utf-8")), encoding="utf-8")
    for page in (STEP, *LESSONS):
        text = page.read_text(encoding="utf-8")
        page.write_text(with_line_numbers(text, page), encoding="utf-8")
