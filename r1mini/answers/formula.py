r"""Parses the text of an answer, in LaTeX or plain, into a tree. Computes no value.

A tokenizer and a recursive-descent parser for a closed grammar. Text outside the grammar, or over a
limit on length, tokens, digits, depth or expensive operations, raises ParseError. Nothing is ever
executed. Other notation for the same is rewritten first (`notation.py`).

The grammar, loosest binding first: answer = relations with `,` `;` `and` `or`; relation = unions
with `=` `<` `\in`…; union = quantities with `\cup`; quantity = currency, sum or ratio, unit; sum;
product; factor (a mixed number); power; value.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from string import ascii_lowercase
from typing import NamedTuple

from r1mini.answers.notation import (
    ALIASES,
    CURRENCIES,
    FUNCTIONS,
    FUNCTIONS_OF_LISTS,
    GREEK,
    KNOWN,
    NOT_UNITS,
    OPAQUE,
    PLAIN_NAMES,
    PLAIN_QUANTITY,
    SCALES,
    SI_UNIT,
    TEXT_COMMANDS,
    UNITS,
    UNITS_AFTER_DIGITS,
    rewrite,
)

# Limits on one text. Expensive operations are powers, factorials, roots and functions.
MAX_LENGTH, MAX_TOKENS, MAX_DEPTH, MAX_EXPENSIVE = 1000, 250, 20, 20
MAX_DIGITS = 40  # next to an irrational operation: too few to write a value to within TOLERANCE

TOKEN = re.compile(
    r"""
    (?P<space>(?:\s|~|\\[,;:!\s]
        |\\(?:quad|qquad|left|right|[bB]igg?[lr]?|displaystyle)(?![A-Za-z]))+)
  | (?P<letters>平方|立方|(?!千[克米])[十百千万亿]+|(?u:[^\W\d_]+))  # digits are ASCII only
  | (?P<number>
        (?:(?:[1-9]\d{0,2}(?:(?:\{,\}|,\\!\s*|\\[,;:!]\s*)\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)
        (?:\\overline\{\d+\})?(?:[eE][+-]?\d+)?)
  | (?P<sign>\\(?:begin|end)\{[a-z]+\}|\\[A-Za-z]+|\\.|\*\*|<=|>=
        |[-+*/^()\[\]{}|,:;=<>!%$€£₹¥₩&_'])""",
    re.VERBOSE | re.ASCII,
)
THOUSANDS = re.compile(r"(?<!\d,)[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)(?:\.\d+)?", re.ASCII)
SUBSCRIPT = re.compile(r"_\s*(?:[A-Za-z0-9]|(?:\\[a-z]+)?\{(?:[^{}]|\{[^{}]*\}){1,40}\})")
SUBSCRIPT_MARKUP = re.compile(r"\\(?:text\w*|math\w+|rm|triangle|[,;! ])|[_{}\\\s~]")
# Words whose case counts: CO is not Co. But NO and YES are no and yes.
MIXED_CASE = re.compile(r"(?!NO)[A-Z]{2}|\w*(?:[a-z][A-Z]|[A-Z]{2}[a-z])\w*")
CHEMICAL = re.compile(r"(?=.*\d)(?:[A-Z][a-z]?(?:_?\d+|_\{\d+\})?){2,}", re.ASCII)  # H_2O
DATE = re.compile(
    r"\d{4}(?:([-/])\d\d?\1\d\d?|年\d\d?月\d\d?日)|\d\d?([-/.])\d\d?\2\d{4}|(?=.*\d)[\w\s,.]*"
    r"\b(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?"
    r"|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\b[\w\s,.]*",
    re.ASCII,
)
PLAIN_GROUP = re.compile(r"\s*\{((?:\\[^{]|[^\\{}])*)\}")  # without braces inside


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


def is_prose(text: str) -> bool:
    """Words only, without a mathematical sign. In prose every run of letters is a word."""
    text = rewrite(text[:MAX_LENGTH])
    if re.search(r"[0-9\\=+*/^|<>{}\[\]&!%$_]", text):
        return False
    runs = re.findall(r"[^\W\d_]+", text)
    return any(len(run) > 1 and run not in PLAIN_NAMES and not is_product(run) for run in runs)


def is_product(run: str) -> bool:
    """Letters that make no word, like `xy` and `ab`, but not `no` or `kg`."""
    return (
        "".join(sorted(run)) in ascii_lowercase and not set(run) & set("eiou") and run not in UNITS
    )


def tokenize(
    text: str, prose: bool, gold_words: frozenset[str], gold_unknowns: frozenset[str] = frozenset()
) -> list[Token]:
    """The tokens of a text. With `prose`, runs of letters are words. Raises ParseError."""
    tokens, position, depth = [], 0, 0
    if prose:
        text = re.sub(r"(?<=[^\W\d_])[.'](?=[\s\w,]|$)", " ", text)  # St. Louis, O'Brien
    while position < len(text):
        if len(tokens) > MAX_TOKENS:
            raise ParseError("too many tokens")
        match = None if depth else THOUSANDS.match(text, position)
        match = match or TOKEN.match(text, position)
        if not match or match.lastgroup == "letters" and not match[0].isalpha():  # ² and ½
            raise ParseError(f"{text[position : position + 9]!r} is not in the grammar")
        piece, kind = match[0], match.lastgroup
        start, position = position, match.end()
        if kind == "letters":
            is_word = (
                prose
                or piece in gold_words
                or not gold_unknowns >= set(piece)
                and is_unit(piece, text[:start], tokens[-2:])
            )
            tokens += letter_tokens(piece, is_word)
        elif kind == "sign" and piece[1:] in TEXT_COMMANDS:
            group = PLAIN_GROUP.match(text, position)
            if not group:
                raise ParseError(f"{piece} without plain text")
            content = group[1].strip(" ~")
            unit = content not in gold_unknowns and re.fullmatch(SI_UNIT + "|[THl]", content)
            is_text = piece[5:] not in ("bf", "it", "bb") and (len(content) != 1 or bool(unit))
            tokens += tokenize(group[1], is_text, gold_words)
            position = group.end()
        elif kind == "sign":
            piece = ALIASES.get(piece, piece)
            if piece[0] == "\\" and piece not in KNOWN:
                raise ParseError(f"{piece} is not in the grammar")
            depth += (piece in ("(", "[", r"\{")) - (piece in (")", "]", r"\}"))
            tokens.append(Token("name" if piece in GREEK else "sign", piece))
        elif kind != "space":
            tokens.append(Token("number", piece))
        subscript = SUBSCRIPT.match(text, position)
        if subscript and tokens and tokens[-1].kind in ("name", "number"):
            # A number in another base is a symbol too: if 101_2 were 5, a question that asks for
            # its value would be its own answer.
            name = SUBSCRIPT_MARKUP.sub("", subscript[0])
            tokens[-1] = Token("name", f"{tokens[-1].text}_{name}")
            position = subscript.end()
    return tokens


def is_unit(run: str, before: str, previous: list[Token]) -> bool:
    """Is a run of letters a word: behind a number or a word it is a unit, not unknown factors."""
    if not run.isascii() or run in ("is", "are", "not"):
        return True
    if before[-1:].isdigit():
        return run in UNITS_AFTER_DIGITS
    behind_number = re.search(r"[\d)}!%][\s~]*$", before)
    if len(run) > 3 or len(run) > 1 and run in UNITS and run != "mg" and behind_number:
        return True  # not mg, which may be a weight
    match previous:
        case [*_, Token("word")]:
            return len(run) > 1 or run == "a"
        case [Token("word"), Token("sign", "/" | "-")]:
            return len(run) > 2 or run in UNITS
    # Three letters with a vowel that is rarely an unknown: `3 men`, but not `2 mgh`.
    return bool(len(run) == 3 and behind_number and {*run.lower()} & {*"eiou"})


def letter_tokens(run: str, is_word: bool) -> list[Token]:
    """A run of letters: a sign, a word, or a product of one-letter unknowns."""
    if run.lower() in ("and", "or"):
        return [Token("sign", run.lower())]
    if run in PLAIN_NAMES:
        return [Token("sign", PLAIN_NAMES[run])]
    if not is_word:
        return [Token("name", letter) for letter in run]
    return [Token("word", run)]


def parse_number(text: str) -> Node:
    """A number as written: Node("number", (value, number of decimals))."""
    text, _, period = re.sub(r"[{},!:;\s]|\\(?!o)", "", text).partition(r"\overline")
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
    letter = node.args[0].partition("_")[0] if node.op == "name" else ""
    return len(letter) == 1 and letter.isalpha() or letter in GREEK


def in_order(names: list[str]) -> list[str]:
    """Unknowns in the order of coordinates: Latin letters, then Greek ones."""
    ordered = sorted(names, key=lambda name: (name in GREEK, name))
    return names if names == [r"\rho", r"\theta", r"\phi"] else ordered


def can_solve(name: Node, value: Node) -> bool:
    """Is `name` an unknown that the value does not contain?"""
    return is_unknown(name) and name.args[0] not in find_unknowns(value)


INFINITY = tree("name", r"\infty")  # equals only itself; a bound, never an operand
MINUS_INFINITY = tree("negative", INFINITY)
NUMBER_SETS = [tree("name", letter) for letter in "NZQR"]


def number(value) -> Node:
    return tree("number", Fraction(value), 0)


def equation(sides: list[Node], designation: str) -> Node | None:
    """`x = 5` and `f(x) = 2x` are values; of `x = 2/4 = 1/2` the last side is the value.

    `designation` stands before the sides, like `f(x)`. None if it does not name the last side.
    """
    if designation:
        unknowns = find_unknowns(sides[-1])
        argument = re.fullmatch(r"(.).*\((\w+)\)", designation)
        if unknowns and not (argument and argument[2] in unknowns and argument[1] not in unknowns):
            return None
        named = tree("value of", designation, chain(sides))
        return chain(sides) if r"\c" in designation else named  # A \cap B = (1,2) names no unknown
    for name, *values in (sides, sides[::-1]) if len(sides) == 2 else [sides]:
        if can_solve(name, values[-1]) and not is_unknown(values[-1]):
            return tree("value of", name.args[0], chain(values))
        if name.op == "seq" and all(map(is_unknown, name.args[1:])):
            names = [part.args[0] for part in name.args[1:]]
            if values[-1].op == "seq" and len(values[-1].args) == len(name.args):
                return tree("value of", ", ".join(names), values[-1])
            return None
    return tree("equation", *sides)


def chain(sides: list[Node]) -> Node:
    """Sides of one value; the last counts, if the others equal it."""
    return tree("equation", *sides) if len(sides) > 1 else sides[0]


def solution(signs: list[str], sides: list[Node]) -> Node | None:
    r"""`x \in [1, 2]` as a value; `x \neq 5`, `x < 5` and `1 <= x < 5` as intervals; else None."""
    op = "interval of"
    if signs == [r"\in"]:
        op, (name, region) = "value of", sides
        if region.op not in ("seq", "set", "union") and region not in NUMBER_SETS:
            return None
    elif signs == [r"\neq"]:
        name, *values = sides
        region = without(values)
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


def without(values: list[Node]) -> Node:
    """All numbers but these."""
    if len(values) > 1:
        return tree("union", *(tree("seq", r"\neq", value) for value in values))
    below = tree("seq", "()", MINUS_INFINITY, *values)
    return tree("union", below, tree("seq", "()", *values, INFINITY))


# What may stand before `=` beside an unknown: an angle, a length or vector, a function's value.
DESIGNATION = re.compile(
    r"(?:m?\\angle|\\triangle)[A-Z]{1,3}|(?!NOT?$)\|?[A-Z]{1,3}[A-Z](?:_\w)?\|?|E?\[[A-Z]+\]|[A-Z](?:\\c[au]p[A-Z])+"
    r"|\|?\\(?:overline|vec)\{?[A-Za-z]{1,3}\}?\|?"
    r"|(?:sin|cos|tan|cot|sec|csc)(?:\^2)?(?:\\angle)?(?:[A-Z]{1,3}|[a-z]|\\[a-z]+|\([^=]+\))"
    # Not n(n+1) = 6, which is an equation.
    r"|([A-Zf-hpq])'*(?:\^\{?-1\}?)?'*\((?:(?!\1(?!\())[^()]|\([^()]*\))+\)|[dm-or-w]\([\dA-Z,.-]+\)"
)


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
        unknowns = {item.args[0].partition("_")[0] for item in items if item.op == "value of"}
        if "or" in separators and len(unknowns) > 1:
            raise ParseError("alternatives for different unknowns")
        names = {item.args[:1] for item in items if item.op == "interval of"}
        if len(items) == 1:
            return items[0]
        if not names:
            return tree("list", *items)
        if separators != {"or"} or len({item.op for item in items}) > 1 or len(names) > 1:
            raise ParseError("inequalities that are not alternatives for one unknown")
        return tree("interval of", *names.pop(), tree("union", *(item.args[1] for item in items)))

    def designation(self) -> str:
        r"""Consumes what names a value, with its `=`: `AB =`, `\cos A =`, `f(2) =`; else ""."""
        texts = [token.text for token in self.tokens[self.position : self.position + 20]]
        for length, text in enumerate(texts):
            if text == "=" and DESIGNATION.fullmatch(head := "".join(texts[:length])):
                self.position += length + 1
                return re.sub(r"\\(?:angle|overline|vec|triangle)|[|{}]", "", head)
        return ""

    def relation(self, may_name: bool = True) -> Node:
        """An equation or an inequality, as a value or an interval where it is solved."""
        start, designation = self.position, self.designation() if may_name else ""
        sides, signs = [self.union()], []
        while sign := self.accept("=", r"\in", "<", ">", "<=", ">=", r"\neq"):
            signs.append(sign)
            sides.append(self.union())
        while signs == [r"\neq"] and self.accept(",", "and"):
            if self.tokens[self.position :][:2] == self.tokens[start:][:2]:  # x != 1, x != 2
                self.position += 2
            sides.append(self.union())
        if not signs and not designation:
            return sides[0]
        if all(sign[0] == ">" for sign in signs):
            signs, sides = [sign.replace(">", "<") for sign in signs[::-1]], sides[::-1]
        equal = {*signs} <= {"="}
        solved = equation(sides, designation) if equal else solution(signs, sides)
        if designation and not (equal and solved):
            self.position = start
            return self.relation(may_name=False)
        if solved is None:
            raise ParseError("a relation that is neither an equation nor solved for one unknown")
        return solved

    def union(self) -> Node:
        parts = self.separated(self.quantity, r"\cup")
        return tree("union", *parts) if len(parts) > 1 else parts[0]

    def quantity(self) -> Node:
        """A sum with a currency sign before it or a unit after it."""
        currency = self.accept(*CURRENCIES)
        unit = [UNITS[currency]] if currency else []
        value = self.sum()
        one_letter = all(len(name) == 1 for name in find_unknowns(value))
        if not unit and one_letter and self.accept(":"):  # a ratio, not `answer: 5`
            value = tree("seq", ":", value, *self.separated(self.sum, ":"))
        inner = value.args[0] if value.op == "negative" else value
        if inner.op == "degree":  # an angle or a temperature; inside a function it is a number
            value, unit = with_sign("-" if inner is not value else "", inner.args[0]), ["degree"]
        value, unit = self.unit(value, unit)
        if unit and find_unknowns(value) and not set(unit) <= {*UNITS.values(), "^2", "^3"}:
            raise ParseError("words after an unknown")
        if not unit:
            return value
        text = re.sub(r"\bsquare (\S+)", r"\1 ^2", " ".join(unit))
        text = re.sub(r"\bcubic (\S+)", r"\1 ^3", text)
        text = re.sub(r"(\S+) \^-(\d)", r"/ \1 ^\2", text).replace(" ^1", "")
        return tree("quantity", value, text)

    def unit(self, value: Node, unit: list[str]) -> tuple[Node, list[str]]:
        """The value, scaled by words like `million`, and the words of its unit."""
        words = []
        while True:
            sign = (
                unit
                and self.tokens[self.position + 1].kind == "word"
                and self.accept(*"/*-", "and")
            )
            if self.kind == "word":
                word = written = self.take()
                if len(word) > 3 and not re.fullmatch(SI_UNIT, word):
                    word = word.casefold().removesuffix("s")
                if word in SCALES:
                    value = tree("product", value, number(SCALES[word]))
                    continue
                words.append(written)
                unit += ["/"] * (sign == "/") + [UNITS.get(word, word)]
            elif not unit and self.peek(*CURRENCIES):
                unit.append(UNITS[self.take()])
            elif unit and self.accept("^"):
                match self.exponent():
                    case Node("number", (power, _)):
                        unit.append(f"^{power}")
                    case Node("negative", (Node("number", (power, _)),)):
                        unit.append(f"^-{power}")
                    case _:
                        self.fail()
            else:
                break
        if denied := NOT_UNITS.search(" ".join(words)):
            raise ParseError(f"{denied[0]!r} is not a unit")
        return value, unit

    def sum(self) -> Node:
        signs = ("+", "-", r"\pm", r"\mp")
        terms = [with_sign(self.accept(*signs), self.product())]
        while sign := self.accept(*signs):
            terms.append(with_sign(sign, self.product()))
        value = tree("sum", *terms) if len(terms) > 1 else terms[0]
        if self.accept(r"\choose"):
            return tree("binomial", value, self.sum())
        return (
            tree("product", value, tree("inverse", self.sum())) if self.accept(r"\over") else value
        )

    def product(self) -> Node:
        """Factors with or without a sign between them, left to right: 1/2x is x/2."""
        factors = [self.factor()]
        while True:
            if sign := self.accept("*", "/"):
                factor = with_sign(self.accept("+", "-"), self.factor())
                factors.append(tree("inverse", factor) if sign == "/" else factor)
            elif self.juxtaposed(factors[-1]):
                factors.append(self.power())
            else:
                return tree("product", *factors) if len(factors) > 1 else factors[0]

    def juxtaposed(self, last: Node) -> bool:
        """Does a factor follow without a sign? No number follows a number: `5 6`, `{5}{6}`."""
        ahead = 0
        while self.peek("{", ahead=ahead):
            ahead += 1
        kind = self.tokens[self.position + ahead].kind
        if kind == "number":
            kind, text = self.tokens[self.position - 1]
            if kind == "name":  # `n2^{n-1}`, but in `v2^2` and `v2` the number is an index
                ahead = self.tokens[self.position + 1 : self.position + 6]
                return ahead[0].text == "^" and any(token.kind == "name" for token in ahead)
            return kind != "word" and (last.op != "number" or text == ")")
        starts = kind == "name" or kind != "word" and self.peek(*STARTS)
        return starts or self.peek("|") and not self.bars

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
            if value.op != "percent" and self.accept("%"):
                value = tree("percent", value)
            elif value.op != "factorial" and self.accept("!"):  # 5!! is not (5!)!
                value = tree("factorial", value)
            elif self.peek("^") and self.peek(r"\circ", ahead=1):
                self.position += 2
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
        if self.peek("(", "[", "{"):
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
        if text in ("|", r"\lfloor", r"\lceil"):
            bars, self.bars = self.bars, text == "|"
            value = self.sum()
            self.bars = bars
            self.expect(text.replace("\\l", "\\r"))
            return tree("abs" if text == "|" else text[2:], value)
        if text in FUNCTIONS_OF_LISTS:
            self.expect("(", "[", "{", r"\{")
            operands = self.separated(self.sum, ",")
            self.expect(")", "]", "}", r"\}")
            return tree(text[1:], *operands)
        if text in (r"\begin{pmatrix}", r"\begin{bmatrix}"):
            return self.matrix(text.replace("begin", "end"))
        constants = {r"\pi": Node("pi"), r"\infty": INFINITY, r"\emptyset": Node("set")}
        self.position -= text not in constants
        return constants.get(text) or self.fail()

    def words(self, text: str) -> Node:
        """Several words in a row are one name, with numbers behind them: Apollo 11."""
        while self.kind in ("word", "number"):
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
    text: str,
    prose: bool,
    gold_words: frozenset[str] = frozenset(),
    gold_unknowns: frozenset[str] = frozenset(),
) -> tuple[Node, frozenset[str]]:
    """The tree of a text, and its words; `gold_words` are words too, and `gold_unknowns` are not.

    Raises ParseError.
    """
    if len(text) > MAX_LENGTH:
        raise ParseError(f"longer than {MAX_LENGTH} characters")
    text = rewrite(text)
    if not gold_unknowns and (plain := PLAIN_QUANTITY.fullmatch(text)):
        unit = re.sub(r"\\cdot|[{}]", " ", plain[2])
        text = f"{plain[1]} \\text{{{unit}}}"
    plain = re.sub(r"\\(?:text|mathrm|ce)\s*\{(\w*)\}\s*", r"\1", text)
    if DATE.fullmatch(plain) or CHEMICAL.fullmatch(plain):
        written = re.sub(r"[\s,]+|(?<=[a-z])\.\s*", " ", re.sub(r"[_{}]", "", plain))
        return tree("name", written), frozenset()
    tokens = tokenize(text, prose, gold_words, gold_unknowns)
    expensive = sum(token.text in EXPENSIVE for token in tokens)
    digits = sum(len(token.text) for token in tokens if token.kind == "number")
    irrational = expensive or any(token.text in ("e", r"\pi") for token in tokens)
    if expensive > MAX_EXPENSIVE or irrational and digits > MAX_DIGITS:
        raise ParseError("too many powers or digits")
    words = frozenset(token.text for token in tokens if token.kind == "word")
    try:
        return Parser(tokens).answer(), words
    except ParseError:
        texts = [token.text for token in tokens]
        if not {*OPAQUE} & {*texts} and not (r"\{" in texts and {"|", ":"} & {*texts}):
            raise
        written = re.sub(r"[({] (\S+) [)}]", r"\1", " ".join(texts))
        return tree("name", written), words  # equals what is written alike


STARTS = r"( [ { \frac \binom \sqrt sqrt \pi \infty \lfloor \lceil".split()  # of a factor
STARTS += FUNCTIONS + FUNCTIONS_OF_LISTS
EXPENSIVE = ("^", "!", r"\sqrt", "sqrt", r"\binom", *FUNCTIONS)
