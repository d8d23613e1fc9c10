r"""Parses the text of an answer, in LaTeX or plain, into a tree. Computes no value.

A tokenizer and a recursive-descent parser for a closed grammar. Text outside the grammar, or over a
limit on length, tokens, digits, depth or expensive operations, raises ParseError. Nothing is ever
executed.

The grammar, loosest binding first: answer = relations with `,` `;` `and` `or`; relation = unions
with `=` `<` `\in`…; union = quantities with `\cup`; quantity = currency, sum or ratio, unit; sum;
product; factor (a mixed number); power; value.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

# Limits on one text. Expensive operations are powers, factorials, roots and functions.
MAX_LENGTH, MAX_TOKENS, MAX_DEPTH, MAX_EXPENSIVE = 1000, 250, 20, 20
MAX_DIGITS = 40  # next to an irrational operation: too few to write a value to within TOLERANCE
# `sec` needs its backslash: `5 sec` are seconds.
FUNCTIONS = "sin cos tan cot csc exp ln log sec".split()


def aliases(rows: list[str]) -> dict[str, str]:
    """Maps each word of a row to the first word of the row."""
    lists = [row.split() for row in rows]
    return {word: words[0] for words in lists for word in words}


# Known without a backslash.
PLAIN_NAMES = aliases(["sqrt", r"\pi pi", r"\infty infinity inf", *FUNCTIONS[:-1]])
ALIASES = aliases(
    r"""* \cdot \times
/ \div
<= \le \leq \leqslant
>= \ge \geq \geqslant
< \lt
> \gt
^ **
\frac \dfrac \tfrac \cfrac
\binom \dbinom
% \%
$ \$
\neq \ne
\emptyset \varnothing
| \lvert \rvert \vert
\{ \lbrace
\} \rbrace
( \langle
) \rangle""".splitlines()
) | {"\\" + name: name for name in FUNCTIONS}
COMMANDS = (
    r"\frac \binom \sqrt \pi \infty \pm \mp \cup \emptyset \in \circ \neq \{ \} \\ "
    r"\begin{pmatrix} \end{pmatrix} \begin{bmatrix} \end{bmatrix}".split()
)
GREEK = (
    r"\alpha \beta \gamma \delta \theta \lambda \mu \omega \phi \rho \sigma \tau \varphi "
    r"\epsilon".split()
)
TEXT_COMMANDS = "text textbf textit textrm mathrm mathbf mathit mathbb mbox".split()
SCALES = {
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "percent": Fraction(1, 100),
}
UNITS = aliases(
    """mm millimeter millimetre 毫米|cm centimeter centimetre 厘米|m meter metre 米|
km kilometer kilometre 千米 公里|in inch inche|ft foot feet|yd yard|mi mile|mg milligram|g gram 克|
kg kilogram 千克 公斤|lb pound|oz ounce|ml mL milliliter millilitre|L l liter litre|s sec second 秒|
min minute 分钟|h hr hour 小时|day 天|week|month|year|dollar USD $|€ euro|£|元 yuan|cent|degree 度|
mph|rad radian|square sq|/ per|unit|cubic|个|人""".split("|")
)
UNITS_AFTER_DIGITS = "mm cm km kg mph".split()  # without a space; `5mi` is a product

UNICODE = str.maketrans("−–×·⋅÷\xa0", "--***/ ") | {
    ord(line[0]): f"{line[2:]} "
    for line in r"""≤ <=
≥ >=
± \pm
∓ \mp
π \pi
√ sqrt
∞ \infty
∪ \cup
∅ \emptyset
∈ \in
° ^\circ
θ \theta
≠ \neq""".splitlines()
}
TOKEN = re.compile(
    r"""
    (?P<space>(?:\s|~|\\[,;:!\s]
        |\\(?:quad|qquad|left|right|[bB]igg?[lr]?|displaystyle)(?![A-Za-z]))+)
  | (?P<letters>(?u:[^\W\d_]+))  # of any script; digits are ASCII only
  | (?P<number>
        (?:(?:[1-9]\d{0,2}(?:(?:\{,\}|,\\!|\\,)\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)
        (?:\\overline\{\d+\})?(?:[eE][+-]?\d+)?)
  | (?P<sign>\\(?:begin|end)\{[a-z]+\}|\\[A-Za-z]+|\\.|\*\*|<=|>=|[-+*/^()\[\]{}|,:;=<>!%$€£&_])""",
    re.VERBOSE | re.ASCII,
)
THOUSANDS = re.compile(r"(?<!\d,)[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)(?:\.\d+)?", re.ASCII)
SUBSCRIPT = re.compile(r"_(?:([A-Za-z0-9])|\{\s*([A-Za-z0-9]{1,8})\s*\})")
# Words whose case counts: CO is not Co. But NO and YES are no and yes.
MIXED_CASE = re.compile(r"(?!NO)[A-Z]{2}|\w*(?:[a-z][A-Z]|[A-Z]{2}[a-z])\w*")
CHEMICAL = re.compile(r"(?=.*\d)(?:[A-Z][a-z]?(?:_?\d+|_\{\d+\})?){2,}", re.ASCII)  # H_2O
DATE = re.compile(r"\d{4}([-/])\d\d?\1\d\d?|\d\d?([-/.])\d\d?\2\d{4}", re.ASCII)
PLAIN_GROUP = re.compile(r"\s*\{((?:\\[^{]|[^\\{}])*)\}")  # without braces inside
BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


class ParseError(ValueError):
    """The text is outside the grammar, or over a limit."""


class Token(NamedTuple):
    kind: str  # number, name (an unknown), word, sign or end
    text: str


class Node(NamedTuple):
    op: str
    args: tuple = ()


def tree(op: str, *args) -> Node:
    return Node(op, args)


def closing_brace(text: str, start: int) -> int:
    """The index of the brace that closes the one at `start`, or -1."""
    depth = 0
    for brace in BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return -1


@lru_cache(maxsize=64)  # is_prose and parse unwrap the same text
def unwrap(text: str) -> str:
    r"""Removes a full stop, and delimiters or a command like `\boxed{…}` around the whole text."""
    text = re.sub(r"\^\{\\degree\}|\^?\\degree", "°", text).translate(UNICODE)
    before = None
    while text != before:
        before = text
        text = text.strip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        if re.fullmatch(r"[A-Ha-h]\)", text):
            text = text[:1]
        for opening, closing in DELIMITERS.items():
            if text.startswith(opening) and text.endswith(closing):
                inner = text[len(opening) : -len(closing)]
                if inner.strip() and closing not in inner.replace(r"\$", ""):
                    text = inner
        command = re.match(r"\\(\w+)\s*\{", text)
        if command and command[1] in ("boxed", *TEXT_COMMANDS):
            if closing_brace(text, command.end() - 1) == len(text) - 1:
                text = text[command.end() : -1]
    return text


DELIMITERS = {"$$": "$$", "$": "$", "**": "**", r"\(": r"\)", r"\[": r"\]"}


def is_prose(text: str) -> bool:
    """Words only, without a mathematical sign. In prose every run of letters is a word."""
    text = unwrap(text[:MAX_LENGTH])
    if re.search(r"[0-9\\=+*/^|<>{}\[\]&!%$_]", text):
        return False
    return any(len(run) > 1 and run not in PLAIN_NAMES for run in re.findall(r"[^\W\d_]+", text))


def tokenize(text: str, prose: bool, gold_words: frozenset[str]) -> list[Token]:
    """The tokens of a text. With `prose`, runs of letters are words. Raises ParseError."""
    tokens, position, depth = [], 0, 0
    while position < len(text):
        match = None if depth else THOUSANDS.match(text, position)
        match = match or TOKEN.match(text, position)
        if not match or match.lastgroup == "letters" and not match[0].isalpha():  # ² and ½
            raise ParseError(f"{text[position : position + 9]!r} is not in the grammar")
        piece, kind = match[0], match.lastgroup
        after_digit = text[:position][-1:].isdigit()
        position = match.end()
        if kind == "letters":
            tokens += letter_tokens(piece, prose or piece in gold_words, after_digit)
        elif kind == "sign" and piece[1:] in TEXT_COMMANDS:
            group = PLAIN_GROUP.match(text, position)
            if not group:
                raise ParseError(f"{piece} without plain text")
            tokens += tokenize(group[1], group[1] != "e", gold_words)
            position = group.end()
        elif kind == "sign":
            piece = ALIASES.get(piece, piece)
            if piece[0] == "\\" and piece not in (*COMMANDS, *GREEK):
                raise ParseError(f"{piece} is not in the grammar")
            depth += (piece in ("(", "[", r"\{")) - (piece in (")", "]", r"\}"))
            tokens.append(Token("name" if piece in GREEK else "sign", piece))
        elif kind != "space":
            tokens.append(Token("number", piece))
        subscript = SUBSCRIPT.match(text, position)
        if subscript and tokens and tokens[-1].kind in ("name", "number"):
            # A number in another base is a symbol too: if 101_2 were 5, a question that asks for
            # its value would be its own answer.
            tokens[-1] = Token("name", f"{tokens[-1].text}_{subscript[1] or subscript[2]}")
            position = subscript.end()
    return tokens


def letter_tokens(run: str, is_word: bool, after_digit: bool) -> list[Token]:
    """A run of letters: a sign, a word, or a product of one-letter unknowns."""
    if run.lower() in ("and", "or"):
        return [Token("sign", run.lower())]
    if run in PLAIN_NAMES:
        return [Token("sign", PLAIN_NAMES[run])]
    is_unit = run in UNITS_AFTER_DIGITS or run in UNITS and not run.isascii()
    if not after_digit:
        is_unit = is_unit or len(run) > 3 or len(run) > 1 and run in UNITS
    if is_word or is_unit:
        return [Token("word", run)]
    return [Token("name", letter) for letter in run]


def parse_number(text: str) -> Node:
    """A number as written: Node("number", (value, number of decimals))."""
    text, _, period = re.sub(r"[{},!]|\\(?!o)", "", text).partition(r"\overline")
    mantissa, _, exponent = text.lower().partition("e")
    _, point, decimals = mantissa.partition(".")
    if len(exponent) > 4 or abs(int(exponent or 0)) > 999:
        raise ParseError(f"the exponent of {text} is too large")
    if period and not (point and period.isdigit()):
        raise ParseError(f"{text}: an overline needs digits after a decimal point")
    value = Fraction(text)
    if period:
        value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(decimals))
    return tree("number", value, 0 if exponent or period else len(decimals))


def find_unknowns(node: Node) -> frozenset[str]:
    """The unknowns of a tree."""
    if node.op == "name":
        return frozenset(node.args)
    return frozenset().union(*(find_unknowns(arg) for arg in node.args if isinstance(arg, Node)))


def with_sign(sign: str, value: Node) -> Node:
    """The value after a sign. Plus-minus is a factor named ±, evaluated as 1 and as -1."""
    if sign in (r"\pm", r"\mp"):
        value = tree("product", tree("name", "±"), value)
    return tree("negative", value) if sign in ("-", r"\mp") else value


def is_unknown(node: Node) -> bool:
    """One letter, perhaps with a subscript: it may stand before `=`. `not = 5` is not an answer."""
    if node.op != "name":
        return False
    name = node.args[0]
    return len(name) == 1 or name in GREEK or name[1] == "_"


def can_solve(name: Node, value: Node) -> bool:
    """Is `name` an unknown that the value does not contain?"""
    return is_unknown(name) and name.args[0] not in find_unknowns(value)


INFINITY = tree("name", r"\infty")  # equals only itself; a bound, never an operand
MINUS_INFINITY = tree("negative", INFINITY)
NUMBER_SETS = [tree("name", letter) for letter in "NZQR"]


def number(value) -> Node:
    return tree("number", Fraction(value), 0)


def equation(sides: list[Node], head: list[str]) -> Node:
    """`x = 5` and `f(x) = 2x` are values; other equations become the difference of their sides.

    `head` holds the text of the first five tokens.
    """
    for name, value in (sides, sides[::-1]):
        if can_solve(name, value) and not is_unknown(value):
            return tree("value of", name.args[0], value)
    if re.fullmatch(r"[fghpqEFGHPQ]\(\w+\)=", "".join(head)):
        unknowns = find_unknowns(sides[1])
        if not unknowns or head[2] in unknowns and head[0] not in unknowns:
            return tree("value of", "".join(head[:4]), sides[1])
    return tree("equation", tree("sum", sides[0], with_sign("-", sides[1])))


def solution(signs: list[str], sides: list[Node]) -> Node | None:
    r"""`x \in [1, 2]` as a value; `x \neq 5`, `x < 5` and `1 <= x < 5` as intervals; else None."""
    op = "interval of"
    if signs == [r"\in"]:
        op, (name, region) = "value of", sides
        if region.op not in ("seq", "set", "union") and region not in NUMBER_SETS:
            return None
    elif signs == [r"\neq"]:
        name, value = sides
        below = tree("seq", "()", MINUS_INFINITY, value)
        region = tree("union", below, tree("seq", "()", value, INFINITY))
    elif len(signs) <= 2 and all(sign[0] == "<" for sign in signs):
        if len(signs) == 1 and is_unknown(sides[0]):
            signs, sides = ["<", *signs], [MINUS_INFINITY, *sides]
        elif len(signs) == 1:
            signs, sides = [*signs, "<"], [*sides, INFINITY]
        below, name, above = sides
        brackets = "[("[signs[0] == "<"] + "])"[signs[1] == "<"]
        region = tree("seq", brackets, below, above)
    else:
        return None
    return tree(op, name.args[0], region) if can_solve(name, region) else None


class Parser:
    """Recursive descent: one method for each level of precedence. Raises ParseError."""

    def __init__(self, tokens: list[Token]):
        self.tokens = tokens + [Token("end", "")] * 3
        self.position = self.depth = self.bars = 0

    def peek(self, *signs: str, ahead: int = 0) -> bool:
        kind, text = self.tokens[self.position + ahead]
        return kind == "sign" and text in signs

    def accept(self, *signs: str) -> str:
        """The next token's text if it is one of the signs, else ""; consumes it."""
        return self.take() if self.peek(*signs) else ""

    def take(self) -> str:
        """Consumes the next token and returns its text."""
        self.position += 1
        return self.tokens[self.position - 1].text

    def expect(self, *signs: str) -> str:
        return self.accept(*signs) or self.fail()

    def fail(self):
        raise ParseError(f"unexpected {self.tokens[self.position].text!r} at token {self.position}")

    @property
    def kind(self) -> str:
        return self.tokens[self.position].kind

    def separated(self, part: Callable[[], Node], *signs: str) -> list[Node]:
        """One part, or several with one of the signs between them."""
        parts = [part()]
        while self.accept(*signs):
            parts.append(part())
        return parts

    def answer(self) -> Node:
        """One relation, or a list of several in any order."""
        items, separators = [self.relation()], set()
        while separator := self.accept(",", ";", "and", "or"):
            separators.add(separator)
            if separator == ",":
                self.accept("and", "or")
            items.append(self.relation())
        if self.kind != "end":
            self.fail()
        if len(items) == 1:
            return items[0]
        ops = {item.op for item in items}
        if "interval of" not in ops:
            return tree("list", *items)
        names = {item.args[:1] for item in items}
        if separators != {"or"} or len(ops) > 1 or len(names) > 1:
            raise ParseError("inequalities that are not alternatives for one unknown")
        return tree("interval of", *names.pop(), tree("union", *(item.args[1] for item in items)))

    def relation(self) -> Node:
        """An equation or an inequality, as a value or an interval where it is solved."""
        head = [token.text for token in self.tokens[self.position : self.position + 5]]
        sides, signs = [self.union()], []
        while sign := self.accept("=", r"\in", "<", ">", "<=", ">=", r"\neq"):
            signs.append(sign)
            sides.append(self.union())
        if not signs:
            return sides[0]
        if all(sign[0] == ">" for sign in signs):
            signs, sides = [sign.replace(">", "<") for sign in signs[::-1]], sides[::-1]
        solved = equation(sides, head) if signs == ["="] else solution(signs, sides)
        if solved is None:
            raise ParseError("a relation that is neither an equation nor solved for one unknown")
        return solved

    def union(self) -> Node:
        parts = self.separated(self.quantity, r"\cup")
        return tree("union", *parts) if len(parts) > 1 else parts[0]

    def quantity(self) -> Node:
        """A sum with a currency sign before it or a unit after it."""
        minus = self.accept("-") if self.peek("$", "€", "£", ahead=1) else ""
        currency = self.accept("$", "€", "£")
        unit = [UNITS[currency]] if currency else []
        value = self.sum()
        one_letter = all(len(name) == 1 for name in find_unknowns(value))
        if not unit and one_letter and self.accept(":"):  # a ratio, not `answer: 5`
            return tree("seq", ":", value, *self.separated(self.sum, ":"))
        inner = value.args[0] if value.op == "negative" else value
        if inner.op == "degree":  # an angle or a temperature; inside a function it is a number
            value, unit = with_sign("-" if inner is not value else "", inner.args[0]), ["degree"]
            if self.tokens[self.position].text in ("C", "F"):
                unit.append(self.take())
        value, unit = self.unit(value, unit)
        if unit and find_unknowns(value) and not set(unit) <= {*UNITS.values(), "^2", "^3"}:
            raise ParseError("words after an unknown")
        value = with_sign(minus, value)
        if not unit:
            return value
        text = re.sub(r"\bsquare (\S+)", r"\1 ^2", " ".join(unit))
        text = re.sub(r"\bcubic (\S+)", r"\1 ^3", text)
        return tree("quantity", value, text)

    def unit(self, value: Node, unit: list[str]) -> tuple[Node, list[str]]:
        """The value, scaled by words like `million`, and the words of its unit."""
        while True:
            per = unit and self.peek("/") and self.tokens[self.position + 1].kind == "word"
            if self.kind == "word" or per:
                word = self.take()
                if len(word) > 3:
                    word = word.casefold().removesuffix("s")
                if word in SCALES:
                    value = tree("product", value, number(SCALES[word]))
                else:
                    unit.append(UNITS.get(word, word))
            elif unit and self.accept("^"):
                op, args = self.exponent()
                unit.append(f"^{args[0]}" if op == "number" else self.fail())
            else:
                return value, unit

    def sum(self) -> Node:
        signs = ("+", "-", r"\pm", r"\mp")
        terms = [with_sign(self.accept(*signs), self.product())]
        while sign := self.accept(*signs):
            terms.append(with_sign(sign, self.product()))
        return tree("sum", *terms) if len(terms) > 1 else terms[0]

    def product(self) -> Node:
        """Factors with or without a sign between them, left to right: 1/2x is x/2."""
        factors = [self.factor()]
        while True:
            if sign := self.accept("*", "/"):
                factor = with_sign(self.accept("+", "-"), self.factor())
                factors.append(tree("inverse", factor) if sign == "/" else factor)
            elif self.juxtaposed():
                factors.append(self.power())
            else:
                return tree("product", *factors) if len(factors) > 1 else factors[0]

    def juxtaposed(self) -> bool:
        """Does a factor follow without a sign?"""
        signs = ("(", r"\frac", r"\binom", r"\sqrt", "sqrt", r"\pi", r"\infty", *FUNCTIONS)
        return self.kind == "name" or self.peek(*signs) or self.peek("|") and not self.bars

    def factor(self) -> Node:
        r"""A power, or a mixed number: `2\frac{1}{2}` or `2 1/2`, whole and fraction."""
        value = self.power()
        if value.op != "number" or not self.tokens[self.position - 1].text.isdigit():
            return value
        plain = self.kind == "number"
        if not plain and not self.peek(r"\frac"):
            return value
        other = self.power()
        if plain:
            self.expect("/")
            other = tree("product", other, tree("inverse", self.power()))
        match other:
            case Node(
                "product", (Node("number", (a, _)), Node("inverse", (Node("number", (b, _)),)))
            ):
                if 0 < a < b and a.denominator == b.denominator == 1:
                    return number(value.args[0] + a / b)
        return self.fail() if plain else tree("product", value, other)

    def power(self) -> Node:
        value = self.primary()
        while True:
            degree = next((ahead for ahead in (1, 2) if self.peek(r"\circ", ahead=ahead)), 0)
            if value.op != "percent" and self.accept("%"):
                value = tree("percent", value)
            elif value.op != "factorial" and self.accept("!"):  # 5!! is not (5!)!
                value = tree("factorial", value)
            elif self.peek("^") and (degree == 1 or degree == 2 and self.peek("{", ahead=1)):
                self.position += degree + 1
                if degree == 2:
                    self.expect("}")
                value = tree("degree", value)
            elif self.accept("^"):
                return tree("power", value, self.exponent())
            else:
                return value

    def exponent(self) -> Node:
        return self.primary() if self.peek("{") else with_sign(self.accept("+", "-"), self.power())

    def argument(self) -> Node:
        r"""An argument as LaTeX reads it: a group or one digit; `\frac12` has two."""
        kind, text = self.tokens[self.position]
        if kind == "number" and len(text) > 1:
            if not text.isdigit():
                self.fail()
            self.tokens[self.position] = Token(kind, text[0])
            self.tokens.insert(self.position + 1, Token(kind, text[1:]))
        return self.primary()

    def operand(self) -> Node:
        """A function's operand: a group, or a product up to the next sign or function."""
        if self.peek("(", "{"):
            return self.primary()
        factors = [self.power()]
        while self.kind == "name" or self.peek(r"\pi"):
            factors.append(self.power())
        return tree("product", *factors)

    def primary(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ParseError(f"nested more than {MAX_DEPTH} deep")
        value = self.value(*self.tokens[self.position])
        self.depth -= 1
        return value

    def value(self, kind: str, text: str) -> Node:
        self.position += 1
        if kind == "number":
            return parse_number(text)
        if kind == "name":
            return Node("e") if text == "e" else tree("name", text)
        if kind == "word":
            return self.words(text)
        if text in ("(", "[", r"\{", "{"):
            return self.bracket(text)
        if text in FUNCTIONS:
            return self.function(text)
        if text in (r"\sqrt", "sqrt"):
            return self.root(text)
        if text == r"\frac":
            return tree("product", self.argument(), tree("inverse", self.argument()))
        if text == r"\binom":
            return tree("binomial", self.argument(), self.argument())
        if text == "|":
            self.bars += 1
            value = self.sum()
            self.bars -= 1
            self.expect("|")
            return tree("abs", value)
        if text in (r"\begin{pmatrix}", r"\begin{bmatrix}"):
            return self.matrix(text.replace("begin", "end"))
        constants = {r"\pi": Node("pi"), r"\infty": INFINITY, r"\emptyset": Node("set")}
        self.position -= text not in constants
        return constants.get(text) or self.fail()

    def words(self, text: str) -> Node:
        """Several words in a row are one name."""
        while self.kind == "word":
            text += " " + self.take()
        if len(text) <= 1:
            return tree("name", text)
        folded = [w if MIXED_CASE.fullmatch(w) else w.casefold() for w in text.split(" ")]
        return tree("name", " ".join(folded))

    def function(self, name: str) -> Node:
        base = None
        if name == "log":
            name, base = "ln", self.argument() if self.accept("_") else number(10)
        exponent = self.exponent() if self.accept("^") else None
        if exponent and exponent.op != "number":
            raise ParseError("sin^{-1} is ambiguous: the inverse or the reciprocal")
        value = tree(name, self.operand())
        if base:
            value = tree("product", value, tree("inverse", tree("ln", base)))
        return tree("power", value, exponent) if exponent else value

    def root(self, text: str) -> Node:
        index = number(2)
        if self.accept("["):
            index = self.sum()
            self.expect("]")
        # \sqrt12 is the root of 1, times 2; √12 is the root of 12.
        radicand = self.argument() if text == r"\sqrt" else self.primary()
        return tree("power", radicand, tree("inverse", index))

    def bracket(self, opening: str) -> Node:
        """A group, a tuple or interval, or a set."""
        if opening == r"\{" and self.accept(r"\}"):
            return Node("set")
        bars, self.bars = self.bars, 0
        items = self.separated(self.union, ",", ";")
        self.bars = bars
        closings = {"{": ("}",), r"\{": (r"\}",)}
        closing = self.expect(*closings.get(opening, (")", "]")))
        if len(items) == 1 and opening + closing in ("()", "{}"):
            return items[0]
        if "{" in opening:
            return tree("set", *items)
        return tree("seq", opening + closing, *items)

    def matrix(self, end: str) -> Node:
        rows = [self.separated(self.sum, "&")]
        while not self.accept(end):
            self.expect(r"\\")
            if not self.peek(end):  # \\ after the last row starts none
                rows.append(self.separated(self.sum, "&"))
        return tree("matrix", *(tree("row", *row) for row in rows))


def parse(
    text: str, prose: bool, gold_words: frozenset[str] = frozenset()
) -> tuple[Node, frozenset[str]]:
    """The tree of a text, and its words; `gold_words` are words too. Raises ParseError."""
    if len(text) > MAX_LENGTH:
        raise ParseError(f"longer than {MAX_LENGTH} characters")
    text = unwrap(text)
    if DATE.fullmatch(text):
        raise ParseError("dates are not supported")
    if CHEMICAL.fullmatch(text):
        return tree("name", re.sub(r"[_{}]", "", text)), frozenset()
    tokens = tokenize(text, prose, gold_words)
    expensive = sum(token.text in EXPENSIVE for token in tokens)
    digits = sum(len(token.text) for token in tokens if token.kind == "number")
    irrational = expensive or any(token.text in ("e", r"\pi") for token in tokens)
    if len(tokens) > MAX_TOKENS or expensive > MAX_EXPENSIVE or irrational and digits > MAX_DIGITS:
        raise ParseError("too many tokens, powers or digits")
    words = frozenset(token.text for token in tokens if token.kind == "word")
    return Parser(tokens).answer(), words


EXPENSIVE = ("^", "!", r"\sqrt", "sqrt", r"\binom", *FUNCTIONS)
