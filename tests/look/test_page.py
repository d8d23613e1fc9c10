"""The command, and the page in a headless Chromium."""

import json
import re
import shutil
import time

import pytest

from r1mini.look.__main__ import Config, main
from r1mini.look.page import TEMPLATE, read_all
from r1mini.look.sources import find_folders

from .browser import CHROMIUM, DRIVER, browser
from .conftest import rollout, token_row, write_run
from .test_data import HOSTILE

KEY_SECONDS = 2.0  # generous: the machine may be busy
needs_browser = pytest.mark.skipif(
    not (CHROMIUM.exists() and DRIVER.exists()), reason="no Chromium or chromedriver"
)


def write_evaluation(folder, name, rewarded):
    figures = {"problems": 2, "samples": 2, "pass@1": 0.5, "pass@1_se": 0.1, "pass@2": 0.5}
    figures |= {"cons@2": 0.5, "format": 1.0, "language": None, "length": 10.0, "truncated": 0.0}
    figures |= {"unparsed": 0.0, "entropy": 0.1}
    (folder / f"{name}.json").write_text(json.dumps({"countdown": figures, "mean": figures}))
    rows = [
        {
            **{"task": "countdown", "prompt": f"Held-out {n}\n", "sample": sample, "tokens": 3},
            **{"completion": f"{name} answers {n}", "answer": "1", "finished": True},
            "rewards": {"accuracy": rewarded, "format": 1.0, "language": None, "code": None},
        }
        for n in range(2)
        for sample in range(2)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def recipe(tmp_path):
    """A recipe that is still running: two RL runs with hostile text, and three evaluations."""
    root = tmp_path / "recipe"
    hostile = list(HOSTILE.values())
    rows = [
        rollout(step, n, g, hostile[(g + 4 * n) % 6], task="<b>task</b>")
        for step in range(3)
        for n in range(2)
        for g in range(4)
    ]
    for row in rows[:4]:  # all rewards of the first group are equal
        row |= {"reward": 1.0, "advantage": 0.0, "completion": "needle 你好"}
        row["rewards"] = {"accuracy": 1.0, "format": 1.0, "language": 0.5}
    rows[7]["finished"] = False
    for name in ("r1-zero", "r1"):
        write_run(root / name, rows, steps=3, learning_rate=0.0)
    (root / "eval").mkdir()
    for name in ("base", "r1-zero", "r1"):
        write_evaluation(root / "eval", name, float(name != "base"))
    return root


def test_the_command_writes_one_file_and_prints_its_path(recipe, script, tmp_path):
    out = tmp_path / "look.html"
    code, printed, _ = script("r1mini/look/__main__.py", recipe, "--out", out)
    assert (code, printed.strip()) == (0, str(out))
    text = out.read_text(encoding="utf-8")
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    code, _, error = script("r1mini/look/__main__.py", tmp_path / "none", "--out", out)
    assert code == 2 and f"RUN {tmp_path / 'none'}: no such folder" in error
    code, _, error = script("r1mini/look/__main__.py", recipe, "--out", tmp_path / "no/look.html")
    assert code == 2 and "must be a file in a folder that exists" in error


def test_the_template_never_makes_markup_from_text():
    template = TEMPLATE.read_text(encoding="utf-8")
    for name in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "srcdoc",
    ):
        assert name not in template
    assert "default-src 'none'" in template  # the browser refuses requests


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_contrast(theme):
    """At least 4.5 to 1, as WCAG 2 asks for."""
    style = re.findall(r":root.*?{(.*?)}", TEMPLATE.read_text(encoding="utf-8"), re.DOTALL)[theme]
    colours = dict(re.findall(r"--([\w-]+): #(\w+);", style))

    def luminance(name):
        parts = [int(colours[name][i : i + 2], 16) / 255 for i in (0, 2, 4)]
        parts = [x / 12.92 if x < 0.04 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    lines = [f"c{i}" for i in range(8)]
    pairs = [(text, "bg") for text in ("text", "muted", "accent", "good", "bad", "warn", *lines)]
    pairs += [(text, "panel") for text, _ in pairs] + [("on-accent", "accent")]
    pairs += [("text", name) for name in colours if re.fullmatch(r"[pns]\d|mark", name)]
    for text, background in pairs:
        low, high = sorted([luminance(text), luminance(background)])
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, background)


def test_evaluations_have_numbers_or_nothing(recipe):
    path = recipe / "eval/base.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]

    def read(**changes):
        path.write_text("".join(json.dumps(row | changes) + "\n" for row in rows))
        return read_all(find_folders([str(recipe)]))["heldOut"]

    (held_out,) = read(utility=None)
    assert "utilities" not in held_out["problems"][0]["answers"]["base"]
    with pytest.raises(ValueError, match="base.jsonl:1: tokens nan is not a finite number"):
        read(tokens=float("nan"))


def test_recipes_of_the_same_name_are_told_apart(recipe, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    shutil.copytree(recipe, tmp_path / "other/recipe")
    monkeypatch.chdir(tmp_path)
    data = read_all(find_folders(["recipe", "other/recipe", str(recipe)]))
    assert [held_out["label"] for held_out in data["heldOut"]] == ["recipe", "other/recipe"]
    links = [recipe["stages"]["r1"]["runs"] for recipe in data["recipes"]]
    assert [data["runs"][i]["label"] for (i,) in links] == ["recipe/r1", "other/recipe/r1"]


class Page:
    """Questions to the page."""

    def __init__(self, browser):
        self.browser, self.run = browser, browser.run

    def text(self, selector):
        """Empty while there is no such element: a view changes after the key's event."""
        script = "return document.querySelector(arguments[0])?.textContent ?? ''"
        return self.run(script, selector)

    def all(self, selector):
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        return self.run(script, selector)

    def choose(self, label, value):
        self.run(
            "const label = [...document.querySelectorAll('label')].find("
            "  e => e.firstChild.textContent === arguments[0]);"
            "const select = label.querySelector('select'); select.value = arguments[1];"
            "select.dispatchEvent(new Event('change'));",
            *(label, value),
        )

    def press(self, key, expected, selector):
        """Press a key and wait for an element's text."""
        self.browser.press(key)
        self.wait(expected, selector)

    def wait(self, expected, selector):
        """Fails if it takes too long."""
        start = time.monotonic()
        while expected not in self.text(selector):
            assert time.monotonic() - start < KEY_SECONDS, f"{expected}: {self.text(selector)}"


@pytest.fixture
def page(recipe, tmp_path):
    out = main(Config(runs=(str(recipe),), out=str(tmp_path / "look.html")))
    with browser(tmp_path / "profile") as driven:
        driven.open(out)
        yield Page(driven)
        assert set(driven.requested()) <= {out.as_uri(), "data:,"}
        assert driven.log("browser") == []
        assert driven.run("return window.alerted || null") is None


@needs_browser
def test_the_page_in_a_browser(page):
    page.run("window.alert = () => window.alerted = true")
    check_recipe_and_problems(page)
    check_curves(page)
    check_steps(page)
    check_filters(page)
    check_search(page)
    check_hostile_text(page)


def check_recipe_and_problems(page):
    assert "pass@1 0.50" in page.text("svg a[href='#steps/0']")
    assert "not finished yet" in page.text(".picture")
    page.press("4", "Held-out problems", "h2")
    assert page.all("#problem .card strong") == ["base", "R1-Zero", "R1: RL for all scenarios"]
    assert "✗ wrong" in page.all("#problem .card")[0] and "✓ right" in page.all("#problem .card")[2]
    page.press("j", "Held-out 1", "#problem .text")
    page.choose("Show", "lost")
    assert page.text("#problem-count") == "0 problems"


def check_curves(page):
    page.press("2", "Curves", "h2")
    assert len(page.all(".charts .panel")) == 4
    page.run("document.querySelector('.charts svg').focus()")
    page.press("ArrowRight", "step 0:", ".readout")
    page.press("ArrowRight", "step 1:", ".readout")
    page.run(  # a tap moves no pointer
        "document.querySelectorAll('.charts svg')[1].dispatchEvent("
        "new PointerEvent('pointerdown', {clientX: 0}))"
    )
    assert "step 0:" in page.all(".readout")[1]
    labels = page.run("return ticks(0.9311, 0.9335, 5).map(value => number(value, 6))")
    assert len(set(labels)) == len(labels) > 3
    page.run("document.activeElement.blur()")
    page.press("5", "the learning rate is 0", "main")


def check_steps(page):
    page.press("3", "step 0 of 2", "#step-label")
    page.press("ArrowRight", "step 1 of 2", "#step-label")
    assert "This step made no update" in page.text("#step-figures")
    page.press("ArrowRight", "step 2 of 2", "#step-label")
    assert "the learning rate is 0" in page.text("#step-figures")  # said at the last step
    page.press("ArrowLeft", "step 1 of 2", "#step-label")
    page.run(
        "const slider = document.getElementById('slider'); slider.value = 0;"
        "slider.dispatchEvent(new Event('input'));"
    )
    assert page.text("#step-label") == "step 0 of 2"
    page.press("j", "Problem 1 of step 0", "#group h3")
    assert page.all("#arithmetic .computed") == page.all("#arithmetic .logged")
    assert page.all("#arithmetic .logged")[1] == "0.8659"
    page.press("k", "every advantage is 0", "#group .note")


def check_filters(page):
    counts = {"equal": 1, "differ": 1, "mixed": 1, "cut": 1, "wrong": 1, "right": 2}
    counts |= {"corrected": 0, "tokens": 0, "": 2}
    for name, count in counts.items():
        page.choose("Show", name)
        assert page.text("#list-count").startswith(f"{count} group"), name
    page.choose("Show", "cut")
    assert page.all("#group .card .head > strong:first-child") == ["Completion 4"]
    page.choose("Show", "")
    page.choose("Completions by", "reward")
    page.choose("In", "1")
    assert page.text("#list-count") == "6 groups in all steps"
    page.choose("In", "0")


def check_search(page):
    page.browser.press("/")
    page.browser.press(*"needle")
    start = time.monotonic()
    while page.text("#list-count") != "1 group in all steps":
        assert time.monotonic() - start < KEY_SECONDS
    assert page.text("#group mark") == "needle"
    page.browser.press("Escape")
    page.run(
        "const search = document.getElementById('search'); search.value = '';"
        "search.dispatchEvent(new Event('input'));"
    )
    while page.text("#list-count") == "1 group in all steps":  # a search waits for more letters
        assert time.monotonic() - start < 10 * KEY_SECONDS


def check_hostile_text(page):
    page.run("openSteps(0, 1)")
    page.choose("Completions by", "sample")
    shown = page.all("#group .text")
    assert shown[1] == HOSTILE["script"] and shown[2] == HOSTILE["quotes"]
    assert "U+202E" in shown[3] and "שלום 你好" in shown[3]
    assert "U+2028" in shown[4] and "U+0000" in shown[4]
    page.browser.press("j")
    shown = page.all("#group .text")
    assert shown[1] == "U+D800 and U+DFFF"
    assert len(shown[2]) == 3000
    page.run("document.querySelector('#group .more').click()")
    assert len(page.all("#group .text")[2]) == 23_000
    assert "800,000 characters of this text are not in the page" in page.text("#group")
    widths = page.run("return [document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1]
    assert page.all("b") == []  # a task's name is text, too


@pytest.fixture
def token_page(tmp_path):
    """A run of two steps. Group 1 of step 0 has tokens, with hostile text among them, group 0 of
    step 1 has many, and its group 1 few or none."""
    text = "<think>1+2=3 ?4 no\n2+2=4 ?4 yes\n</think><answer>2+2</answer>"
    rows = [rollout(step, n, g, text) for step in range(2) for n in range(2) for g in range(4)]
    pieces = [*HOSTILE_PIECES, *text.split("2"), ""]
    for row in rows[4:8]:
        row |= {"completion": "".join(pieces), "tokens": len(pieces)}
        row["rewards"] = row["rewards"] | {"accuracy": row["reward"], "format": 0.0}
    for row in rows[8:12]:
        row |= {"completion": "<think>" + "ab " * 200, "tokens": 300}
    for row in rows[12:]:
        row |= {"completion": "<think>" * 2, "tokens": 2, "prompt": "\n\u202ea\u00adb\U000e0041"}
    rows[15] |= {"completion": "<think>", "tokens": 0}
    tokens = [token_row(0, 1, g, pieces) for g in range(4)]
    tokens += [token_row(1, 1, g, ["<think>", ""][: rows[12 + g]["tokens"]]) for g in range(4)]
    tokens += [token_row(1, 0, g, ["ab "] * 200) for g in range(4)]
    folder = write_run(tmp_path / "run", rows, tokens=tokens, minibatches=1)
    out = main(Config(runs=(str(folder),), out=str(tmp_path / "look.html")))
    with browser(tmp_path / "profile") as driven:
        driven.open(out)
        yield Page(driven)
        assert driven.log("browser") == []
        assert driven.run("return window.alerted || null") is None


HOSTILE_PIECES = ["<script>alert(1)</script>", "\u202eabc", "\ud800", "\ud83d", "\ufffd", "a\n"]


@needs_browser
def test_tokens_in_a_browser(token_page):
    page = token_page
    page.press("3", "step 0 of 1", "#step-label")
    assert "Problem 1 of step 0" in page.text("#group h3")  # the group with tokens goes first
    assert page.all(".tag") == ["tokens"]
    check_colours(page)
    check_figures(page)
    page.press("2", "Curves", "h2")
    page.press("3", "Problem 1 of step 0", "#group h3")  # as it was left
    page.choose("Show", "tokens")
    page.choose("In", "1")
    assert page.text("#list-count") == "3 groups in all steps"
    page.choose("Show", "corrected")
    assert page.text("#list-count") == "2 groups in all steps"
    assert len(page.all("#group .card")) == 2  # the right ones
    page.choose("Show", "")
    page.choose("In", "0")
    page.run("goToStep(0)")
    assert "(tags out of order, or text outside of them)" in page.text("#group .card")
    assert page.all("#arithmetic .weight") == ["1/72"] * 4
    page.press("ArrowRight", "Problem 0 of step 1", "#group h3")
    assert "The log has the first 200 of 300 tokens" in page.text("#group .card")
    assert page.text(".tokens") == "<think>" + "ab " * 150
    page.run("document.querySelector('.cards .more').click()")
    assert page.text(".tokens") == "<think>" + "ab " * 200
    assert len(page.all(".cards .more")) == 3
    page.press("j", "Problem 1 of step 1", "#group h3")
    assert page.all(".tokens") == ["<think><think>end"] * 3 + ["<think>"]
    assert page.all(".first")[1] == page.text("#group .text").strip() == "U+202EaU+00ADbU+E0041"
    page.run("document.querySelectorAll('.tokens')[3].focus()")
    page.browser.press("ArrowRight")  # without a token, this is the key for a step


@needs_browser
def test_focus_and_links(token_page):
    page = token_page
    page.run("document.querySelector('.list button').focus()")
    page.press("ArrowUp", "Problem 0 of step 0", "#group h3")
    page.press("ArrowDown", "Problem 1 of step 0", "#group h3")
    entry = "document.querySelectorAll('.list button')[1]"
    assert page.run(f"return document.activeElement === {entry}")
    page.run("document.getElementById('colour').focus()")
    for mode, label in {"logp": "90 % or more", "entropy": "below 0.05 nats"}.items():
        page.press("ArrowDown", label, "#scale")
        assert page.run("return document.activeElement.value") == mode  # drawn again, with focus
    page.run("document.activeElement.blur()")
    page.browser.press("/")
    page.browser.press("a", "Escape", "2")  # the search must not wait for a view that is gone
    page.press("3", "in all steps", "#list-count")
    page.run("location.hash = 'steps/0/1'")  # of one step, whatever the search was
    page.wait("step 1 of 1", "#step-label")
    assert page.text("#list-count") == "2 groups in this step"
    page.run("location.hash = 'diagnosis'")
    page.wait("Diagnosis", "h2")
    page.run("location.hash = 'toString'")
    page.wait("Steps of a run", "h2")


def check_colours(page):
    """Classes of the first completion's tokens, in each mode; and that each has a colour."""

    def classes(card=0):
        script = "return [...document.querySelectorAll('.tokens')[arguments[0]].children].map(e => e.className)"
        return [name.removeprefix("t").strip() for name in page.run(script, card)]

    count = len(page.all(".tokens:first-of-type .t")) // 4
    assert page.all("#scale > span")[0].strip() == "below −63 %"
    assert classes()[:3] == ["p2", "n2 clipped", ""]  # a negative advantage
    assert classes(1)[:3] == ["p2 clipped", "n2", ""]
    expected = {"logp": ["s1"] * 3, "entropy": ["s2"] * 3, "advantage": ["n2"] * 3}
    expected |= {"clip": ["p1", "n3 clipped", ""], "weight": ["s4"] * 3}
    for mode, names in expected.items():
        page.browser.press("c")
        assert page.run("return document.getElementById('colour').value") == mode
        assert classes()[:3] == names, mode
        assert len(page.all("#scale > span")) >= 4
    assert count == len(classes())
    page.browser.press("c")
    assert page.all(".tokens") == [] and len(page.all(".cards .text")) == 4
    page.browser.press("c")
    colours = page.run(
        "return ['p1', 'p2', 'p3', 'n1', 'n2', 'n3', 's1', 's2', 's3', 's4'].map(name => {"
        "  const span = document.querySelector('.t'); span.className = `t ${name}`;"
        "  return getComputedStyle(span).backgroundColor; })"
    )
    assert len(set(colours)) == 10


def check_figures(page):
    """Pointing, tapping and arrow keys show a token's numbers; text stays text."""
    page.run("window.alert = () => window.alerted = true")
    shown = page.all(".tokens:first-of-type .t")[:6]
    assert shown == [HOSTILE_PIECES[0], "U+202Eabc", "U+D800", "U+D83D", "\ufffd", "a\n"]
    assert page.all(".tokens .t .mark").count("end") == 4
    page.run("document.querySelector('.tokens').focus()")
    page.press("ArrowRight", "token 1 of", "#figure")
    assert "“<script>alert(1)</script>”" in page.text("#figure")
    page.press("ArrowRight", "token 2 of", "#figure")
    assert "U+202Eabc" in page.text("#figure")
    for part in (
        "sampled with probability 50 % (log −0.693), after the update 25 % (log −1.39)",
        "ratio 0.5: less likely; entropy 0.5 nats; advantage −0.866; weight in the loss 1/72; "
        "below the clip range: clipped",
    ):
        assert part in page.text("#figure")
    page.run("document.querySelectorAll('.tokens')[1].querySelector('.t').click()")
    assert "of completion 2" in page.text("#figure") and "more likely" in page.text("#figure")
    page.run(
        "document.querySelectorAll('.tokens')[2].lastChild.dispatchEvent("
        "new PointerEvent('pointerover', {bubbles: true}))"
    )
    assert "“end of the completion”" in page.text("#figure")
    assert page.text("#step-label") == "step 0 of 1"  # the arrow keys moved no step
    page.run("document.activeElement.blur()")


@needs_browser
def test_colours_follow_the_system_and_the_button(page):
    def background():
        return page.run("return getComputedStyle(document.body).backgroundColor")

    light = background()
    dark_mode = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.browser.devtools("Emulation.setEmulatedMedia", features=dark_mode)
    page.wait("Light", "#theme")
    dark = background()
    assert light == "rgb(255, 255, 255)" != dark
    page.run("theme.click()")
    assert background() == light and page.text("#theme") == "Dark"
    page.run("theme.click()")
    assert background() == dark


@needs_browser
def test_no_view_is_wider_than_a_phone(page):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.browser.devtools("Emulation.setDeviceMetricsOverride", **size)
    for name in ("recipe", "curves", "steps", "problems", "diagnosis"):
        page.run("go(arguments[0])", name)
        page.run("return 1")  # the view changes after this script's turn
        assert page.run("return document.documentElement.scrollWidth") <= 390, name
