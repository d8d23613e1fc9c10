r"""Notation of answers: signs, names, units, and what is rewritten before it is parsed.

A text that means the same in another notation, such as `\dfrac12` or `Rs. 20`, is rewritten by one
of these tables; the parser has one notation for each thing.
"""

import re
from fractions import Fraction
from functools import lru_cache

# `sec` needs its backslash: `5 sec` are seconds.
FUNCTIONS = "sin cos tan cot csc exp ln log sec".split()
# Of several operands in brackets.
FUNCTIONS_OF_LISTS = r"\min \max \gcd \lcm".split()


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
| \lvert \rvert \vert \mid
cot \ctg
tan \tg
log \lg
\overline \bar
\vec \overrightarrow
\hat \widehat
\{ \lbrace
\} \rbrace
\setminus \backslash
( \langle
) \rangle""".splitlines()
) | {"\\" + name: name for name in FUNCTIONS}
# Without a value: formulas that contain them are compared as written, unless they only name one.
OPAQUE = r"""\angle \triangle \overline \vec \hat \cap \setminus
\arcsin \arccos \arctan \sinh \cosh \tanh""".split()
COMMANDS = (
    r"\frac \binom \sqrt \pi \infty \pm \mp \cup \emptyset \in \circ \neq \{ \} \\ "
    r"\begin{pmatrix} \end{pmatrix} \begin{bmatrix} \end{bmatrix} \over \choose "
    r"\lfloor \rfloor \lceil \rceil".split()
    + FUNCTIONS_OF_LISTS
    + OPAQUE
)
GREEK = r"""
\alpha \beta \gamma \delta \epsilon \zeta \eta \theta \iota \kappa \lambda
\mu \nu \xi \rho \sigma \tau \upsilon \phi \chi \psi \omega
\Alpha \Beta \Gamma \Delta \Epsilon \Zeta \Eta \Theta \Iota \Kappa \Lambda
\Mu \Nu \Xi \Rho \Sigma \Tau \Upsilon \Phi \Chi \Psi \Omega
\Pi \ell \hbar \varepsilon \vartheta \varrho \varsigma \varphi \varkappa
""".split()
KNOWN = frozenset([*COMMANDS, *GREEK])
TEXT_COMMANDS = (
    "text textbf textit textrm textsf texttt mathrm mathbf mathit mathsf mathbb mbox emph".split()
)
SCALES = """hundred 100|thousand 1e3|million 1e6|billion 1e9|trillion 1e12|dozen 12|percent 0.01|
十 10|百 100|千 1e3|万 1e4|亿 1e8|十万 1e5|百万 1e6|千万 1e7|
十亿 1e9|百亿 1e10|千亿 1e11|万亿 1e12"""
SCALES = {word: Fraction(value) for word, value in map(str.split, SCALES.split("|"))}
UNITS = aliases(
    """mm millimeter millimetre 毫米|cm centimeter centimetre 厘米|m meter metre 米|
km kilometer kilometre 千米 公里|in inch inche|ft foot feet|yd yard|mi mile|mg milligram|
g gram 克|kg kilogram 千克 公斤|lb lbs pound|oz ounce|ml mL milliliter millilitre|
L l liter litre|s sec second 秒|min minute 分钟|h hr hrs hour 小时|day 天|week|month|year yr yrs|of|
dollar USD $|€ euro EUR|£ GBP|₹ INR Rs rs rupee|₩|元 yuan ¥ RMB CNY|cent|degree 度|mph|rpm|
rad radian|square sq 平方|/ per|unit|cubic 立方|个|人|am AM|pm PM|N newton|J joule|W watt|
V volt|A ampere|Pa pascal|Hz hertz|mol mole""".split("|")
)
CURRENCIES = "$€£₹¥₩"
UNITS_AFTER_DIGITS = "mm cm km kg mph ml mL am pm AM PM".split()  # without a space
# One letter is a unit only where it is all that follows a plain number: `5 N`, `9.8 m/s^2`.
SI_UNIT = r"(?:[YZEPTGMkhdcmunpµμ]|da)?(?:mol|Pa|Hz|Wb|eV|Wh|bar|cal|[mgsJKNWVACFLΩ])|[kKMGT]i?B|h"
# Words among those of a unit that change the number before it, or deny it.
NOT_UNITS = re.compile(
    r"""\b(?:(?-i:[knpqrxyzBM])
    |is|are|was|were|be|not|no|nor|never|\w+n\ t|nope|cannot|does|fails?|wrong|false|fake|bogus
    |incorrect|inaccurate|invalid|impossible|undefined|unknown|uncertain|unlikely|unsure|guess|idk
    |error|instead|opposite|complement|beyond|without|between|too|nan|none|some(?:thing|what)?|ish
    |approx(?:imately)?|maybe|perhaps|possibly|if
    |probably|but|unless|except|about|around|roughly|nearly|almost|circa|versus|vs|xor|until|through
    |upwards?|onwards?|ruled|least|most|below|above|under|(?<!left\ )over|minimum|maximum|bound
    |exclusive|minus|plus|negative|point|mod(?:ulo)?|base|binary|octal|hex|roots?|reciprocal|inverse
    |squared|cubed|doubled|tripled|halved|negated|factorial|twice|thrice|\w*fold|half|halves
    |(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|googol
    |\w+illion(?:en)?|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|thousand|dozen)s?
    |la(?:kh|c)s?|crores?|gross|myriads?|grand|thou|doz|milli|kilo|mega|giga|mil|bil|tril|mio|bn
    |[kM](?:USD|EUR)|pct|percent\w*|permill?e?|mille|bps|basis)\b
    |\b[折成余多半的]|[不非没无错误假否几又或和到至及与零一二三四五六七八九]
    |[半多倒约以左超打乘除]|相反|分之|可能|大概|待定|方\ ?根|[平立]方$
    |(?<![平立正])方(?![法式案形块程面])|(?!千[克米瓦卡])[十百千万亿兆萬億拾佰仟]
    |[^\W\d_](?<![a-zA-Zµμ\u2126\u03a9\u4e00-\u9fff])""",
    re.VERBOSE | re.IGNORECASE,
)
# Units that may also change the number: the gold answer must have them too.
AMBIGUOUS_UNIT = re.compile(
    r"""K( .*)?|of|odd|short|prime|sign|conjugate|les|fewer|double|max|quarter|score
    |(?:thir|four|fif|six|seven|eigh|nine?|ten|eleven|twelf|\w+teen|\w+tie|hundred|thousand
    |\w+illion)(?:th|d)|\w{3,}(?:ed|ly)""",
    re.VERBOSE,
)
# A plain number with words behind it, at least one of four letters or an acronym in the plural, or
# with units of the SI.
PLAIN_QUANTITY = re.compile(
    r"([-+]?\d(?:[\d.,/]*\d)?(?:\s*(?:\*|\\times)\s*10\s*\^\s*(?:\d+|\{-?\d+\}))?)"
    r"(?:[\s~]|\\[ ,;])+"
    r"((?=.*(?:[a-z]{4}|[A-Z]s\b))[A-Za-z][A-Za-z\s'/-]*"
    r"|(?:[cdkmnµμ]?m\s*\^\s*\{?[23]\}?|(?:UNIT)(?:\s*\^\s*\{-\d\})?)"
    r"(?:\s*(?:\*|\\cdot|-)\s*(?:UNIT)|\s*/\s*(?:UNIT)(?:\s*\^\s*\{?\d\}?)?"
    r"|\s+(?:UNIT)\s*(?:/\s*(?:UNIT)|\^\s*\{-\d\}))*)".replace("UNIT", SI_UNIT)
)
UNICODE = str.maketrans("−–×·⋅÷\xa0、∶。’′“”", "--***/ ,:.''\"\"")
UNICODE |= {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if not chr(code).isalnum()}
UNICODE |= {
    ord(line[0]): f"{line[2:]} "
    for line in """≤ <=
≥ >=
± \\pm
∓ \\mp
π \\pi
√ sqrt
∞ \\infty
∪ \\cup
∅ \\emptyset
∈ \\in
° ^\\circ
≠ \\neq
∠ \\angle
￥ ¥
\u2009 \\,
\u202f \\,
α \\alpha
β \\beta
γ \\gamma
δ \\delta
ε \\epsilon
ζ \\zeta
η \\eta
θ \\theta
ι \\iota
κ \\kappa
λ \\lambda
μ \\mu
ν \\nu
ξ \\xi
ρ \\rho
σ \\sigma
τ \\tau
υ \\upsilon
φ \\phi
χ \\chi
ψ \\psi
ω \\omega""".splitlines()
}
BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


def closing_brace(text: str, start: int) -> int:
    """The index of the brace that closes the one at `start`, or -1."""
    depth = 0
    for brace in BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return -1


@lru_cache(maxsize=64)  # is_prose and parse rewrite the same text
def rewrite(text: str) -> str:
    """The text in the parser's notation (`UNICODE`, `REWRITES`), without marks around it."""
    text = strip_marks(text.translate(UNICODE))
    for needle, pattern, replacement in REWRITES:
        if needle in text:
            text = pattern.sub(replacement, text)
    return strip_marks(text)


def strip_marks(text: str) -> str:
    r"""Removes a full stop, and delimiters or a command like `\boxed{…}` around the whole text."""
    before = None
    while text != before:
        before = text
        text = text.strip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        text = MARKED.sub(r"\2", text)
        command = re.match(r"\\(\w+)\s*\{", text)
        if command and command[1] in ("boxed", "fbox", "underline", *TEXT_COMMANDS):
            if closing_brace(text, command.end() - 1) == len(text) - 1:
                text = text[command.end() : -1]
    return text


# A text between two equal marks.
MARKED = re.compile(
    r"^(\$\$?|\*{1,3}|_{1,3}|```|`|\")((?=\s*\S)(?:\\\$|(?!\1|\\\$).)+)\1$", re.DOTALL
)
# Other notation for what the grammar has, a row each: what a text contains where the pattern may
# match (or nothing), the pattern, its replacement (␣ is a space).
REWRITES = r"""
# colours, sizes, delimiters
\ ⇒ (?<!\\)\\(?=\s|$) ⇒ ␣
` ⇒ ^```\w*\n ⇒ ```
\ ⇒ \\(?:text)?color\s*\{[^{}]*\}|\\(?:tiny|small|[lL]arge|LARGE|[hH]uge|bf|rm|it)(?![A-Za-z]) ⇒ ␣
\ ⇒ \\(?:boldsymbol|bm|displaystyle|textstyle|limits)(?![A-Za-z]) ⇒ ␣
$ ⇒ (?<!\\)(\$\$?)(?=\S)((?:[^$\\]|\\.)*?)(?<=\S)\1(?!\d) ⇒ ␣\2␣
\ ⇒ (?<!\\)\\[()\[\]] ⇒ ␣
\m ⇒ \\(math[a-z]+)\s+([A-Za-z\d])(?![A-Za-z]) ⇒ \\\1{\2}
\op ⇒ \\operatorname\*?\s*\{(\w+)\} ⇒ \\\1␣
# the answer is B, a choice's label
 ⇒ ^[\s$*_]*(?i:(?:the |so |final |correct |my )*(?:answer|option|choice)(?: is| was)?)
  [\s*]+(?!=|is) ⇒ 
 ⇒ ^[\s$*_]*(?:答案?[是为]?:?|共|故?选:?)(?=[\dA-J]) ⇒ 
\ ⇒ \\(?:text|math)\w*\s*\{\s*\(?([A-J])[).:]\s*\} ⇒ (\1)␣
) ⇒ ^([\s*$"`_]*[A-Ha-h])\)(?=[\s*$"`_.]*$) ⇒ \1
# matrices, sets by a condition, integers k
[ ⇒ \\\\\[[\d.]+\s*[a-z]+\] ⇒ \\\\
\b ⇒ (?:\\left\s*)?[(\[]\s*\\begin\{(?:array\}\s*\{[clr|\s]*|(?:small)?matrix)\} ⇒ \\begin{pmatrix}
\e ⇒ \\end\{(?:array|(?:small)?matrix)\}\s*(?:\\right\s*)?[)\]] ⇒ \\end{pmatrix}
\{ ⇒ ^[\s$]*(?:\\left)?\\\{\s*([a-z])\s*(?:\\in\s*(?:\\mathbb\{R\}|R)\s*)?(?:[|:]|\\(?:mid|vert)
  (?![a-z]))(?!.*\1\s*=)(?=.*\1)(?=.*(?:[<>]|\\(?:[lg]|neq?|in)))
  ((?:(?!\\\}|\\right).)*)(?:\\right)?\\\}(?=[\s$.]*$) ⇒ \2
\in ⇒ [\s,~]*\(\s*([a-z]\s*\\in\s*(?:\\math\w+\s*\{?)?[ZNRQ]\}?)\s*\)$ ⇒ ,␣\1
# periods of decimals, powers of ten, binomials, primes, degrees
\dot ⇒ \.(\d*)\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)? ⇒ .\1\\overline{\2\3\4}
10 ⇒ (?<=[\d.])\s*[xX]\s*(?=10\s*(?:\^|\*\*)) ⇒ *
_ ⇒ (?<![A-Za-z\\])(?:\\mathrm\{C\}|C)_\{?(\d+)\}?\^\{?(\d+)\}? ⇒ \\binom{\1}{\2}
\p ⇒ \^\{?\s*\\prime\s*\}? ⇒ '
\ ⇒ \^\{\\degree\}|\^?\\degree(?![a-z])|\^\{\s*\\circ\s*\} ⇒ ^\\circ␣
\circ ⇒ \\circ\s*([CF])(?![A-Za-z]) ⇒ \\circ\\text{\1}
# money: the currency behind the number, the minus behind the sign
 ⇒ ^[\s$*_]*(Rs|rs|USD|EUR|GBP|INR|CNY|RMB|JPY|CAD|AUD)\.?\s*(\d[\d.,{}]*)[\s$*_]*$ ⇒ \2␣\\text{\1}
$ ⇒ (?<![A-Za-z\\])US?\\?\$(?=\d) ⇒ \$
$ ⇒ (?<![A-Za-z\\])(HK|NT|AU|CA|[ACNS])\\?\$(\d[\d.,]*) ⇒ \2␣\\text{\1dollar}
- ⇒ (?:(?<=[,;=(])|^)(\s*)-\s*(\\?[$€£₹¥₩])(?=\s*[\d.]) ⇒ \1\2-
# units: in brackets, 2 hours 30 minutes, of a mile, squares
\Om ⇒ (?<=\d)[\s~]+\\Omega(?![A-Za-z]) ⇒ ␣Ω
\fr ⇒ (?<=\d)\s*\\frac\{([a-zA-Z]{1,3})\}\{([a-zA-Z]{1,3}(?:\^\{?\d\}?)?)\}$ ⇒ ␣\1/\2
( ⇒ (?<=[\d}])((?:\s|~|\\[ ,;])+|(?=\((?:[^\x00-\x7f]|[a-z]{4})))(?:\\left\s*)?\((?![A-H]\))
  ((?:\\(?:text|mathrm)\{[^{}()]*\}|-[a-z]{3}|[^\W\d_](?:\.\s)?|[ /*^23])+)(?:\\right\s*)?\)
  (?=\s*(?:[,;.$]|$)) ⇒ \1\2
 ⇒ (\d[\s~]*(?:\\text\s*\{\s*)?(?:h|min|ft|lbs?|km|kg|feet|foot
  |(?:hour|hr|day|week|month|year|yard|meter|pound|degree|minute|dollar|mile)s?)\s*\}?)
  (?:\s|\\[ ,;])+(?=\d[\d./]*\s*(?:\\text\s*\{\s*)?[A-Za-z]) ⇒ \1␣and␣
of ⇒ (?<=[\d}])(\s+)of\s+(?:an?|the)\s+(?=[a-z]) ⇒ \1
per cent ⇒ per cents?\b ⇒ percent
² ⇒ ((?:^|[\s\d/}])(?:[cdkm]?m|ft|in|yd|s))² ⇒ \1^2
³ ⇒ ((?:^|[\s\d/}])(?:[cdkm]?m|ft|in|yd))³ ⇒ \1^3
# points of abbreviations: p.m., St. Louis, U.S.
. ⇒ (?<![A-Za-z])(?i:([ap])\.\s?m\.?(?![A-Za-z])) ⇒ \1m
. ⇒ (?<=[^\W\d_]{2})\.\s ⇒ ␣
. ⇒ (?<![^\W\d_])([A-Z])\.\s?(?=[A-Z](?![a-z])) ⇒ \1
# Chinese: or, and
或 ⇒ (?<![\u4e00-\u9fff])或者?(?![\u4e00-\u9fff]) ⇒ ␣or␣
 ⇒ [和与及](?<![\u4e00-\u9fff].)(?![\u4e00-\u9fff]) ⇒ ␣and␣"""
REWRITES = re.sub(r"\n  |\n#.*", "", REWRITES).replace("␣", " ").split("\n")[1:]
REWRITES = [(row[0], re.compile(row[1]), row[2]) for row in (row.split(" ⇒ ") for row in REWRITES)]
