r"""Answer equivalence, for rule-based rewards on mathematics [R1 §2.2.2].

`formula.py` parses the gold and the answer into trees. This module compares their values: fractions
exactly, irrational numbers to 75 digits, and expressions with unknowns at fixed sample points.
Every limit is checked before the work that it bounds.

Policy: where the rules cannot decide, the answer is wrong, because rewarding a wrong answer does
more harm than missing a right one.
- A rounded decimal is not the exact value, unless the gold itself must be a rounding (`rounds_to`).
- A list is wrong where one value is expected. So is an unsolved equation where the gold is `x = 5`;
  where the gold is `y = 2x+1`, any multiple or rearrangement of it is right.
- `50%` is one half: it equals `0.5`, never `50`. `5 million` is 5000000. `0.\overline{3}` is 1/3.
- An answer may omit the gold's unit (but not in `5 hours 30 minutes`, a list of several). A
  different unit is wrong. Where the gold is a number without a unit, any may be added: `$18` and
  `18 cm` are `18`. Words that change the number are no units: `18 thousand`, `18 at most`. One
  letter is a unit only behind a plain number: `5 N`, but not `6 s^2` or `10 - 2 h`.
- `(1,2)`, `[1,2)` and `{1,2}` differ. `1, 2` lists values in any order, as do `{1,2}`, `1 or 2`,
  `x=1, x=2` and `x_1=1, x_2=2`.
- `1,234` is a number, but inside brackets a comma separates: `(1,234)` is a pair. `1{,}234` is a
  number anywhere.
- `x = 5`, `AB = 5`, `f(x) = 2x`, `(x,y) = (1,2)`, `x \in [1, 2]` and `x > 5` answer `5`, `5`, `2x`,
  `(1,2)`, `[1, 2]` and `(5, \infty)`. If both sides name the unknown, the names must agree; so
  `x = 1, y = 2` is `(x,y) = (1,2)`. `(y,x) = (1,2)` does not answer `(1,2)`. Of `x = 2/4 = 1/2`,
  the last side counts, if the others equal it.
- `3:2` is a ratio or a time, compared as written: it equals neither `6:4` nor `1.5`. So are dates,
  and numbers too large to compute.
- The gold `(B) 5` is answered by `B`, `5` and `(B) 5`, the gold `B` by `B) Paris`, but not by
  `(B) 5`, perhaps a product. The gold `ABD` is answered by `A, B, D`.
- Words ignore case, but `CO` is not `Co`. In a formula a run of letters is a product, unless it is
  a unit or a function.
- `\log` is to base 10, `2e-3` is 0.002, `1/2x` is x/2. `0^0` and even roots of negative numbers are
  undefined.
Left out: complex numbers (`i` is an unknown), unit conversion, inverse trigonometry,
calculus. Equivalence does not ask for simplification: `2+3` equals `5`, so a task that asks for a
calculation must also check the form of the answer.
"""

import math
import re
from dataclasses import dataclass, field, replace
from decimal import Context, Decimal, Underflow, localcontext
from fractions import Fraction
from functools import lru_cache, partial, reduce
from random import Random

from r1mini.answers.formula import (
    INFINITY,
    MAX_LENGTH,
    MINUS_INFINITY,
    Node,
    ParseError,
    find_unknowns,
    in_order,
    is_prose,
    parse,
    tree,
)
from r1mini.answers.notation import AMBIGUOUS_UNIT, NOT_UNITS, closing_brace, rewrite

MAX_BITS = 10240  # of a fraction, numerator and denominator together
MAX_MIXED_BITS = 220  # of a fraction that is combined with an irrational number
# Relative to the larger number. Numbers are computed to 110 digits.
TOLERANCE, NOISE, NEGLIGIBLE = Decimal("1e-75"), Decimal("1e-85"), Decimal("1e-20")
CONTEXT = Context(prec=110, Emax=9999, Emin=-9999)
CONTEXT.traps[Underflow] = True  # like invalid operations, division by zero and overflow
PI = Decimal(
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534"
    "21170679821480865132823066470938"
)


class Undecided(ArithmeticError):
    """A value is undefined, too large, or too close to another value to tell them apart."""


class TooLarge(Undecided):
    """A number that only one written alike can equal."""


@dataclass(frozen=True)
class Quantity:
    """One value per sample point (None: undefined there); a single value without unknowns."""

    kind, difference = "quantity", None
    values: tuple[Fraction | Decimal | None, ...]
    unit: str = ""
    decimals: int = field(default=0, compare=False)  # places, if it is written as a decimal
    letter: str = field(default="", compare=False)  # of a lone letter: perhaps a choice's label


@dataclass(frozen=True)
class Collection:
    kind: str  # brackets like "[)", or set, list, union, matrix, row, equation; "=x": a value of x
    items: tuple
    # Of `y = 2x+1`: left side minus right.
    difference: Quantity | None = field(default=None, compare=False)
    unit = ""  # its items have units


Value = Quantity | Collection


# A box, whose content is a group or a word, or a line `Answer: …` or `#### 5`
FINAL = re.compile(
    r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:(\{)|([^\s${}]+))"
    r"|^(?:#{4}(?= *[-+$]?\d[\d.,/%]* *$)|[- *_#>]{0,9}(?:(?:(?:the|final|so|therefore,) ){0,3}"
    r"answer(?: is)?|[最终故]{0,2}答案[为是]?)[*_ ]{0,3}[:：](?!.*\\(?:boxed|fbox))[*_]*)"
    r"(?=\s{0,4}(\S*[^\s*_].*))",
    re.IGNORECASE | re.MULTILINE,
)


def extract(completion: str, within_block: bool = True) -> str | None:
    r"""The final answer of a completion, from the text after its thinking.

    With answer tags, the content of the answer block, of which there must be exactly one, or of the
    one box in it (unless not `within_block`); without them, the content of the last `\boxed{…}` or
    `\fbox{…}`, or of a later line `Answer: …`. None if there is none, or if it is cut off.

    >>> extract(r"<think>\boxed{1}</think>It is \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> extract("<answer>1</answer><answer>2</answer>") is None
    True
    """
    text, block = completion.rpartition("</think>")[2], None
    if "<think>" in text:
        return None  # the thinking never ends
    match re.split("(</?answer>)", text):
        case [_, "<answer>", answer, "</answer>", _]:
            text = block = answer.strip()
            if not within_block:
                return block
        case [_, _, *_]:  # other tags
            return None
    finals = list(FINAL.finditer(text))
    if not finals:
        return block
    final = finals[-1]
    if block is not None and (len(finals) > 1 or not text.endswith(final[3] or "")):
        return block  # several, or a line with another one behind it
    if not final[1]:
        return (final[2] or final[3]).strip(" *_").rstrip(".,;")
    end = closing_brace(text[: final.end() + 10 * MAX_LENGTH], final.end() - 1)
    return text[final.end() : end].strip() if end >= 0 else None


# -- arithmetic: Fractions while exact, else Decimals; ArithmeticError ends it ---------------------


def bit_lengths(value: Fraction) -> tuple[int, int]:
    return value.numerator.bit_length(), value.denominator.bit_length()


def to_decimal(value: Fraction | Decimal) -> Decimal:
    """To 110 digits. A longer fraction could be within TOLERANCE of an irrational number."""
    if isinstance(value, Decimal):
        return value
    check_size(value, MAX_MIXED_BITS)
    return Decimal(value.numerator) / value.denominator


def check_size(value: Fraction, max_bits: int = MAX_BITS) -> Fraction:
    if sum(bit_lengths(value)) > max_bits:
        raise TooLarge
    return value


def add(a, b):
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return check_size(a + b)
    a, b = to_decimal(a), to_decimal(b)
    small, large = sorted((abs(a), abs(b)))
    if 0 < small < large * NEGLIGIBLE:
        raise Undecided  # otherwise pi + 10^-80 would equal pi
    return a + b if abs(a + b) > large * NOISE else Fraction(0)


def multiply(a, b):
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return check_size(a * b)
    return to_decimal(a) * to_decimal(b) if a and b else Fraction(0)


def power(base, exponent):
    """Real powers. A negative base takes integer exponents and odd roots. 0^0 is undefined."""
    if base in (0, 1):
        return Fraction(int(base)) if base == 1 or exponent > 0 else Fraction(1, 0)
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(bit_lengths(base)) if isinstance(base, Fraction) else 4
        if (size := abs(exponent) * (bits - (base in (1, -1)))) > MAX_BITS:
            raise TooLarge if size < 10**6 else Undecided
        return base ** int(exponent)
    if base < 0 and isinstance(exponent, Fraction) and exponent.denominator % 2:
        return multiply(power(-base, exponent), Fraction((-1) ** exponent.numerator))
    base, exponent = to_decimal(base), to_decimal(exponent)
    if not Decimal("1e-4") < abs(exponent) < 10**4:
        raise Undecided
    result = base.sqrt() if exponent == Decimal("0.5") else base**exponent
    if 0 < abs(result - 1) < NEGLIGIBLE or 0 < abs(result) < NOISE:
        raise Undecided  # almost 0 or 1, but not exactly, such as from nested roots
    return result


def sine(x: Decimal) -> Decimal:
    """The Taylor series, after reduction to half a turn."""
    total = term = x = x - 2 * PI * (x / (2 * PI)).to_integral_value()
    n = 1
    while abs(term) > Decimal("1e-112"):
        n += 2
        term *= -x * x / (n * (n - 1))
        total += term
    return total if abs(total) > NOISE else Decimal(0)


def apply_function(name: str, x):
    """sin, cos and exp for 1e-10 < |x| < 1e9, where 110 digits suffice, or x = 0; ln for x > 0."""
    x = to_decimal(x)
    if name == "ln" and x > 0:
        return x.ln()
    if name != "ln" and x == 0:
        return Fraction(name != "sin")
    if name == "ln" or not Decimal("1e-10") < abs(x) < 10**9:
        raise Undecided
    if name == "exp":
        return x.exp()
    return sine(x) if name == "sin" else sine(x + PI / 2)


def factorial(n) -> Fraction:
    if n < 0 or n != int(n):
        raise Undecided
    if n > 500:
        raise TooLarge
    return Fraction(math.factorial(int(n)))


def binomial(n, k) -> Fraction:
    """A polynomial in n, which may be any fraction."""
    k_factorial, k = factorial(k), int(k)
    if not isinstance(n, Fraction) or k * max(bit_lengths(n)) > 2 * MAX_BITS:
        raise Undecided
    product = math.prod(n.numerator - i * n.denominator for i in range(k))
    return check_size(product / (k_factorial * n.denominator**k))


def integers(function, *items) -> Fraction:
    """gcd or lcm."""
    if any(not isinstance(item, Fraction) or item.denominator != 1 for item in items):
        raise Undecided
    return check_size(Fraction(function(*map(int, items))))


def rounded(function, x) -> Fraction:
    """floor or ceil. A computed value next to an integer is undecided."""
    if isinstance(x, Decimal) and not NEGLIGIBLE < abs(x - round(x)) < 10**9 > abs(x):
        raise Undecided
    return Fraction(function(x))


OPERATIONS = {
    "sum": lambda *terms: reduce(add, terms),
    "product": lambda *factors: reduce(multiply, factors),
    "negative": lambda x: -x,
    "inverse": lambda x: 1 / x,
    "percent": lambda x: multiply(x, Fraction(1, 100)),
    "degree": lambda x: multiply(multiply(x, PI), Fraction(1, 180)),
    "abs": abs,
    "power": power,
    "factorial": factorial,
    "binomial": binomial,
    "min": lambda *items: min(items),
    "max": lambda *items: max(items),
    "gcd": partial(integers, math.gcd),
    "lcm": partial(integers, math.lcm),
    "floor": partial(rounded, math.floor),
    "ceil": partial(rounded, math.ceil),
    "pi": lambda: PI,
    "e": lambda: Decimal(1).exp(),
    "tan": lambda x: multiply(apply_function("sin", x), 1 / apply_function("cos", x)),
    "cot": lambda x: multiply(apply_function("cos", x), 1 / apply_function("sin", x)),
    "sec": lambda x: 1 / apply_function("cos", x),
    "csc": lambda x: 1 / apply_function("sin", x),
    **{name: partial(apply_function, name) for name in ("sin", "cos", "exp", "ln")},
}


def evaluate(node: Node, point: dict[str, Fraction]):
    """The value of an expression: a Fraction while it is exact, else a Decimal.

    Raises ArithmeticError, or ParseError for a structure within the expression.
    """
    if node.op == "number":
        return node.args[0]
    if node.op == "name":
        return point[node.args[0]]
    if node.op != "negative" and any(arg in (INFINITY, MINUS_INFINITY) for arg in node.args):
        raise Undecided
    if node.op == "seq" and node.args[0] == "[]" and len(node.args) == 2:
        return evaluate(node.args[1], point)  # brackets that group
    if node.op not in OPERATIONS:
        raise ParseError(f"a {node.op} within an expression")
    return OPERATIONS[node.op](*[evaluate(arg, point) for arg in node.args])


# -- sample points ---------------------------------------------------------------------------------

PRIMES = [n for n in range(3, 98) if all(n % d for d in range(2, n))]
PARITIES = [
    [(i & mask).bit_count() % 2 ^ flip for i in range(20)] for mask in range(4) for flip in range(2)
]


def make_points() -> list[list[Fraction]]:
    r"""Fixed values for 20 unknowns at each point, in three kinds.

    1. Medium and large values, so that |x-1000| is not 1000-x.
    2. Values below 1, where \sqrt{1-x^2} is defined, with every combination of signs of
       three unknowns.
    3. Integers, because n! is defined only there and (-1)^n is -1 at all those fractions: every
       combination of parities of two unknowns, then negative ones. They are small, for powers of
       powers.
    """
    rng = Random("points")
    points = []
    for scale in (Fraction(1, 7), Fraction(-1, 3), Fraction(10**5, 3), Fraction(-(10**5), 3)):
        points.append([scale * prime for prime in rng.sample(PRIMES, 20)])
    for signs in PARITIES:
        primes = rng.sample(PRIMES, 20)
        points.append([Fraction(p * (-1) ** bit, 101) for p, bit in zip(primes, signs)])
    for parity, sign in ((2, 0), (3, 0), (4, 0), (5, 0), (0, 1), (6, 2), (7, 3)):
        halves = rng.sample(range(1, 5), 4) + rng.sample(range(5, 21), 16)
        columns = zip(halves, PARITIES[parity], PARITIES[sign])
        points.append([Fraction((2 * half - odd) * (-1) ** bit) for half, odd, bit in columns])
    return points


POINTS = make_points()


# -- from a tree to its value ----------------------------------------------------------------------


def quantity(node: Node, points: list[dict[str, Fraction]], sign: int = 1) -> Value:
    """An expression's values at the points, with `sign` for its ±. A number that is too large is a
    kind of its own."""
    constant = not find_unknowns(node)
    values = []
    for point in points[:1] if constant else points:
        try:
            values.append(evaluate(node, {**point, "±": Fraction(sign)}))
        except ArithmeticError as error:
            if constant and isinstance(error, TooLarge):
                return Collection(repr(node), ())
            values.append(None)
    if constant:
        values *= len(points)
    if all(value is None for value in values):
        raise ParseError("no value, or none within the limits")
    decimals, written = 0, node
    while written.op in ("negative", "percent"):
        decimals += 2 * (written.op == "percent")
        written = written.args[0]
    is_decimal = written.op == "number" and written.args[1]
    decimals = decimals + written.args[1] if is_decimal else 0
    letter = node.args[0] if node.op == "name" else "e" if node.op == "e" else ""
    return Quantity(tuple(values), decimals=decimals, letter=letter)


def interpret(node: Node, points: list[dict[str, Fraction]]) -> Value:
    """The value of a tree, its expressions evaluated at the points. Raises ParseError."""
    op, args = node
    if op in ("value of", "interval of"):
        name, value = args
        difference = None
        solved = value.op in (*OPERATIONS, "number", "name") and "±" not in find_unknowns(value)
        if op == "value of" and name in points[0] and solved:
            difference = quantity(tree("sum", tree("name", name), tree("negative", value)), points)
        return Collection(f"={name}", (interpret(value, points),), difference)
    if op == "quantity":
        return attach_unit(interpret(args[0], points), args[1])
    if op == "equation":
        return chain_or_equation(node, points)
    if op not in ("list", "set", "union", "matrix", "row", "seq"):
        value = quantity(node, points)
        if "±" not in find_unknowns(node):
            return value
        return Collection("list", (value, quantity(node, points, sign=-1)))
    kind, parts = (args[0], args[1:]) if op == "seq" else (op, args)
    items = tuple(interpret(part, points) for part in parts)
    if kind == "[]" and all(item.kind == "[]" for item in items):
        return Collection("matrix", tuple(Collection("row", item.items) for item in items))
    return flatten(kind, items) if kind in ("list", "set") else Collection(kind, items)


def chain_or_equation(node: Node, points: list[dict[str, Fraction]]) -> Value:
    """The value of sides that are equal, but not written alike; else left side minus right."""
    *_, last = sides = [interpret(side, points) for side in node.args]
    if len(set(node.args)) == len(sides) and all(same(side, last) for side in sides):
        return last
    unknowns = find_unknowns(node)
    if unknowns and "±" not in unknowns and len(sides) == 2:
        left, right = node.args
        difference = quantity(tree("sum", left, tree("negative", right)), points)
        if len({*difference.values} - {None}) > 1:
            return Collection("equation", (difference,), difference)
    raise ParseError("an equation without an unknown, or one that is always true")


def attach_unit(value: Value, unit: str) -> Value:
    if value.kind in ("list", ":", "()", "[]", "[)", "(]"):  # such as the two values of a ±
        return Collection(value.kind, tuple(attach_unit(item, unit) for item in value.items))
    if value.kind != "quantity":
        raise ParseError("a unit after a structure")
    return replace(value, unit=unit, letter="")


def flatten(kind: str, items: tuple) -> Collection:
    r"""A list without nested lists (`\pm 1, 3` has three values), or a set without repetitions.

    If all items that name an unknown name the same one, the collection as a whole names it once.
    """
    named = {item.kind for item in items if item.kind[0] == "="}
    flat = []
    for item in items:
        if named == {item.kind}:
            item = item.items[0]
        flat += item.items if item.kind == "list" else (item,)
    if kind == "set":
        flat = [item for i, item in enumerate(flat) if item not in flat[:i]]
    collection = Collection(kind, tuple(flat))
    return Collection(*named, (collection,)) if len(named) == 1 else collection


# -- comparison ------------------------------------------------------------------------------------


def equal_values(a, b) -> bool:
    """Fractions are compared exactly, others to 75 digits."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    a, b = to_decimal(a), to_decimal(b)
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))


def is_rounding(written: Quantity, value: Fraction | Decimal) -> bool:
    """Is the decimal equal to the value rounded to its places, half away from 0?"""
    exact, half = written.values[0], Fraction(1, 2 * 10**written.decimals)
    if (value > 0) != (exact > 0):
        return False
    excess = abs(to_decimal(value)) - abs(to_decimal(exact))
    return to_decimal(-half) <= excess < to_decimal(half)


def rounds_to(gold: Quantity, answer: Quantity) -> bool:
    """Is the gold certainly a rounded value, to two places or more, and is it this answer's?

    It counts as a rounded fraction if only one decimal in twenty is near a fraction that simple:
    0.67 rounds 2/3 and 0.143 rounds 1/7, but 0.44 may be exact and is not 4/9. The same fraction
    rounded to more places is right too (0.6667). With three digits or more it counts as a rounded
    irrational number (3.14 is pi), unless its own denominator is small (1.25, 1.125).
    """
    exact, decimals, value = gold.values[0], gold.decimals, answer.values[0]
    if decimals < 2 or exact.denominator**2 <= 10**decimals:
        return False
    if isinstance(value, Decimal):
        return abs(exact) * 10**decimals >= 100 and is_rounding(gold, value)
    simple = exact.limit_denominator(math.isqrt(10 ** (decimals - 1)))
    if not is_rounding(gold, simple):
        return False
    return value == simple or answer.decimals > decimals and is_rounding(answer, simple)


def same_quantity(gold: Quantity, answer: Quantity) -> bool:
    any_unit = not gold.unit and len(gold.values) == 1 and not AMBIGUOUS_UNIT.fullmatch(answer.unit)
    if answer.unit not in ("", gold.unit) and not any_unit:
        return False
    if [v is None for v in gold.values] != [v is None for v in answer.values]:
        return False
    if all(equal_values(a, b) for a, b in zip(gold.values, answer.values) if a is not None):
        return True
    return len(gold.values) == 1 and rounds_to(gold, answer)


def proportional(gold: Quantity, answer: Quantity) -> bool:
    """Is one equation a multiple of the other (left side minus right)? Then the roots agree."""
    zeros = [[(v is None, v == 0) for v in side.values] for side in (gold, answer)]
    if zeros[0] != zeros[1]:
        return False
    pairs = [(a, b) for a, b in zip(gold.values, answer.values) if a and b]
    if len(pairs) < 2:
        return False
    first_gold, first_answer = pairs[0]
    return all(equal_values(multiply(a, first_answer), multiply(b, first_gold)) for a, b in pairs)


def same(gold: Value, answer: Value) -> bool:
    if gold.kind == answer.kind == "quantity":
        return same_quantity(gold, answer)
    if gold.kind == answer.kind == "equation":
        return proportional(*gold.items, *answer.items)
    unordered = {"list", "set"}
    if gold.kind != answer.kind and not {gold.kind, answer.kind} <= unordered:
        return False
    if len(gold.items) != len(answer.items):
        return False
    if gold.kind not in (*unordered, "union"):
        return all(map(same, gold.items, answer.items))
    return same_items(gold.items, answer.items)


def same_items(golds: tuple, answers: tuple) -> bool:
    """Do the items match in some order? With several units, each item needs its own unit."""
    need_units = len({gold.unit for gold in golds} - {""}) > 1
    remaining = list(answers)
    for gold in golds:
        for index, answer in enumerate(remaining):
            if same(gold, answer) and (not need_units or gold.unit == answer.unit):
                del remaining[index]
                break
        else:
            return False
    return True


def unnumbered(value: Value) -> Value:
    """The list `x_1 = 2, x_2 = 3` as `x = 2, x = 3`; any other value as it is."""
    if value.kind != "list" or not all(re.fullmatch(r".*_\d+", i.kind) for i in value.items):
        return value
    items = [replace(item, kind=item.kind.partition("_")[0]) for item in value.items]
    return flatten("list", tuple(items))


def as_tuple(value: Value) -> Value:
    """The list `x = 1, y = 2` as `(x, y) = (1, 2)`; any other value as it is."""
    if value.kind != "list" or not all(item.kind[0] == "=" for item in value.items):
        return value
    values = {item.kind[1:]: item.items[0] for item in value.items}
    if len(values) < len(value.items):  # x = 1, y = 2, x = 3
        return value
    names = in_order([*values])
    return Collection("=" + ", ".join(names), (Collection("()", tuple(map(values.get, names))),))


def accepts(gold: Value, answer: Value) -> bool:
    """Like `same`, but one side may omit the unknown's name, and a choice's label ignores case."""
    if ", " in gold.kind + answer.kind:
        gold = as_tuple(gold)
    if ", " in gold.kind or gold.kind == "()":
        answer = as_tuple(answer)
    plain = unnumbered(gold), unnumbered(answer)
    if (plain[0] is gold) != (plain[1] is answer):
        gold, answer = plain
    if gold.kind != answer.kind and gold.difference and answer.difference:
        # A number must be solved for.
        return len({*gold.items[0].values}) > 1 and proportional(gold.difference, answer.difference)
    if gold.kind[0] == "=" != answer.kind[0]:
        gold = gold.items[0]
    elif answer.kind[0] == "=" != gold.kind[0]:
        names = answer.kind[1:].split(", ")  # (y, x) = (2, 1) is not the point (2, 1)
        return names == in_order(names) and same(gold, answer.items[0])
    if gold.kind == answer.kind == "quantity" and gold.letter in tuple("ABCDEFGHIJ"):
        return gold.letter == answer.letter.upper() and not answer.unit
    return same(gold, answer)


@lru_cache(maxsize=1024)  # one gold is compared with many answers
def value_at_points(tree: Node, unknowns: frozenset[str]) -> Value:
    """The value of a tree, at the fixed points if there are unknowns. Raises ParseError."""
    ordered = sorted(unknowns - {"±"})
    if len(ordered) > len(POINTS[0]):
        raise ParseError("too many unknowns")
    points = [dict(zip(ordered, values)) for values in POINTS] if ordered else [{}]
    return interpret(tree, points)


def matches(tree: Node, words: frozenset[str], answer: str, prose: bool) -> bool:
    """Does the answer match a gold's tree?"""
    answer_tree, _ = parse(answer, prose, words, find_unknowns(tree))
    unknowns = find_unknowns(tree) | find_unknowns(answer_tree)
    return accepts(value_at_points(tree, unknowns), value_at_points(answer_tree, unknowns))


@lru_cache(maxsize=1024)
def parse_gold(gold: str) -> tuple[Node, frozenset[str]]:
    """The tree and the words of a gold answer. ValueError if it has no value."""
    try:
        if NOTHING.fullmatch(rewrite(gold[:MAX_LENGTH])):
            raise ParseError("no answer")
        tree, words = parse(gold, is_prose(gold))
        if not matches(tree, words, gold, is_prose(gold)):
            raise ParseError("nothing can equal it, not even itself")
    except (ParseError, ArithmeticError) as error:
        reason = error if isinstance(error, ParseError) else "no value within the limits"
        raise ValueError(f"gold answer {gold[:80]!r}: {reason}") from None
    return tree, words


def written_alike(gold: str, answer: str) -> bool:
    """Is the answer the gold's formula, or that of its choice, in any notation?"""
    answered = formula_tree(answer)
    return answered is not None and answered in map(formula_tree, (gold, *choice_and_text(gold)))


def formula_tree(text: str) -> Node | None:
    """The tree of a text, the operands of sums and products in a fixed order; None without one."""
    try:
        return sort_operands(parse(text, is_prose(text))[0])
    except ParseError:
        return None


def sort_operands(node: Node) -> Node:
    args = tuple(sort_operands(arg) if isinstance(arg, Node) else arg for arg in node.args)
    commutes = node.op in ("sum", "product", "min", "max", "gcd", "lcm")
    return Node(node.op, tuple(sorted(args, key=repr)) if commutes else args)


def choice_and_text(text: str) -> list[str]:
    """A choice and what stands behind it, like `(B) 5` or `B: 5`; else nothing."""
    match = CHOICE.fullmatch(rewrite(text[:MAX_LENGTH]))
    return [match[1] or match[2], match[3]] if match else []


def choices(text: str) -> str:
    """The letters of several choices, like `ABD` or `A, B, D`; else ""."""
    text = re.sub(r"\\text\w*|[\s,;(){}]|\band\b", "", rewrite(text[:MAX_LENGTH]))
    return text if re.fullmatch("(?=..)A?B?C?D?E?F?G?H?", text) else ""


CHOICE = re.compile(
    r"(?:\(([A-J])\)|([A-J])(?:[):]|\.(?=\s*[\d$\\(]|\s[A-Z](?![.A-Z]))))(?:\s|\\\s)+(?![-+*/^=,;<>]\s)"
    r"(?!.*(?<![A-Za-z])[A-J](?:\)|[.:]\s))(\S.*)",
    re.DOTALL,
)
NOT_CHOSEN = re.compile(r"\b(?:[A-Zb-hj-z]|or)\b|" + NOT_UNITS.pattern, NOT_UNITS.flags)
# Golds that stand for no answer: Python's, pandas', JSON's, and NuminaMath-1.5's.
NOTHING = re.compile(r"None|(?i:nan|null|#?n/a|<na>|proof|notfound)")


def equivalent(gold: str, answer: str) -> bool:
    r"""Is the answer the gold answer, by this module's policy?

    Takes milliseconds for any answer, and no answer raises. ValueError if the gold cannot be parsed
    or has no value.

    >>> equivalent(r"\frac{1}{2}", "50%"), equivalent(r"\frac{1}{3}", "0.3333333333")
    (True, False)
    >>> equivalent("1, 2", r"\{2, 1\}")
    True
    """
    if len(answer) > MAX_LENGTH:
        return False
    choice, answered = choice_and_text(gold), choice_and_text(answer)
    if answered and not choice and re.fullmatch(r"\(?[A-J]\)?", rewrite(gold)):
        # `B) Paris` is the letter, `(B) 5` perhaps a product.
        words = is_prose(answered[1]) and not NOT_CHOSEN.search(answered[1])
        return words and equivalent(gold, answered[0])
    if choice:
        matching = [equivalent(*pair) for pair in zip(choice, answered or [answer] * 2)]
        return all(matching) if answered else any(matching)
    with localcontext(CONTEXT):
        if (letters := choices(gold)) and letters == choices(answer):
            return True
        answer_prose = is_prose(answer)
        tree, words = parse_gold(gold)
        try:
            if matches(tree, words, answer, answer_prose):
                return True
            has_sign = re.search(r"[-+*/^]|\\(cdot|times|frac)", answer)
            if not is_prose(gold) or answer_prose or not has_sign:
                return False
            # `xy` alone is a word, but compared with `y * x` it is a product.
            return matches(*parse(gold, False), answer, False)
        except (ParseError, ArithmeticError):
            return False
