"""Answers that users reported as misjudged, by kind: their cases, siblings, and near misses that stay wrong."""

import pytest

from r1mini.answers import equivalent, extract

# kind: (gold, answer), all right
# fmt: off
REPORTED = {
    "a number behind a letter, bracket or fraction is a factor": [
        (r"\pi\cdot 4", r"\pi 4"), (r"n\cdot 2^{n-1}", "n2^{n-1}"), ("12", "(3)4"),
    ],
    "a group in braces is a factor": [
        ("{x}^{2}-4{y}^{2}", "x^2-4y^2"), ("y=2(x-3)^2+5", "y=2{(x-3)}^{2}+5"),
    ],
    "square brackets that group": [

        (r"\frac12\left(1-\left(\frac13\right)^n\right)", r"\frac12\left[1-\left(\frac13\right)^n\right]"),
        ("2[x-3]", "2x-6"),
    ],
    "several formulas in dollars, or text beside one": [
        ("$5$ or $9$", "5, 9"), ("$69$,$84$", "69, 84"), (r"$4 \frac{4}{9}$ days", "40/9"),
        (r"5\text{ cm}", "$5$ cm"),
    ],
    "thousands with a space behind the thin one (a gold of MATH and MATH-500)": [
        ("32349", r"32,\! 349"),
    ],
    "a control space at the end is cut to a backslash": [
        ("5", r"5\ "), ("5", r"\ 5\ "),
    ],
    "a tuple that is named": [
        ("(p,q)=(3,2)", "(3,2)"), ("(5,8),(8,5)", r"(x,y)=(5,8) \text{ and } (8,5)"),
    ],
    "solutions that are numbered": [
        ("x_1=2, x_2=3", "2, 3"), ("x_1=2, x_2=3", "x=2 or x=3"),
    ],
    "a quantity named by more than one letter": [
        (r"\frac13", r"\cos A=\frac13"), ("6", "|AB|=6"), (r"60^\circ", r"\angle ABC = 60^\circ"),
        ("10", "f'(2)=10"), ("6", r"S_{\triangle ABC}=6"), ("3", "f(-1)=3"),
    ],
    "a chain of equals signs: the last is the answer": [
        (r"\frac12", r"\frac24=\frac12"),
    ],
    "a gold with its unit in brackets is read as a product, silently": [
        (r"2\sqrt{2}\ (\text{cm})", r"2\sqrt2"), ("9 (apples)", "9 apples"),
    ],
    "a unit of several words in a gold": [
        ("2 hours 30 minutes", "2 hours and 30 minutes"), ("3/4 of a mile", "3/4"),
    ],
    "SI units as plain text are unknowns": [
        (r"0.05 \mathrm{~N}-\mathrm{m}", "0.05"), ("4.0 mol/L", "4.0"), ("101.3 kPa", "101.3"),
        (r"50\text{ kilometers per hour}", "50 km/h"), ("5 N", "5"),
    ],
    "currencies": [
        ("20", "Rs. 20"), ("₹20", "20"), ("¥20", "20"),
    ],
    "a choice with its text": [
        (r"\textbf{(B) }5", "5"), ("ABD", "A, B, D"), (r"\textbf{(B)}\ 5", "B"), ("E", "e"),
    ],
    "signs of Chinese typing": [
        ("(3,4)", "（3，4）"), ("B", "（B）"), ("5平方米", "5"), ("80分", "80"), ("1或2", "1 or 2"),
    ],
    "times and dates": [
        ("3:30 p.m.", "3:30"), (r"4:30 \text{ p.m.}", "4:30 PM"),
    ],
    "names with a point or an apostrophe": [
        ("St. Louis", "St. Louis"), ("O'Brien", "O'Brien"),
    ],
    "Greek letters that are missing": [
        (r"2\xi", r"2\xi"), (r"\eta", r"\eta"), (r"\psi", r"\psi"),
    ],
    "subscripts with \\text": [
        (r"T_{\mathrm{f}}", "T_f"), (r"x_{\text{max}}", r"x_{\text{max}}"),
    ],
    "upright letters": [
        ("2+3i", r"2+3\mathrm{i}"), ("2x", r"2\mathrm{x}"),
    ],
    "sets by a condition, and the reals": [
        ("[-2,1)", r"\{x \mid -2 \le x < 1\}"), (r"\{x|x\geq 3\}", r"[3,\infty)"),
        (r"x\neq -1,4", r"x\neq -1, x\neq 4"),
    ],
    "matrices as arrays": [

        (r"\left[\begin{array}{cc}1&2\\3&4\end{array}\right]", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"),
    ],
    "older TeX and other names of functions": [
        (r"{a \over b}", r"\frac ab"), (r"6.02\times 10^{23}", "6.02 x 10^23"),
        (r"0.\dot{3}", r"\frac13"), ("120", "C_{10}^{3}"),
    ],
    "too large for the limits, though written alike": [
        ("2^{5000}", "4^{2500}"), ("2025!", "2025!"),
    ],
    "wrappers": [
        ("5", r"\color{red}{5}"), ("5", r"\Large{5}"),
    ],
}
# fmt: on

# the same kinds, all right
# fmt: off
SIBLINGS = {
    "factors": [
        (r"2\pi r", r"r2\pi"), ("12", "(2)(3)2"), ("6", "3[2]"), ("x^2y", "{x}^{2}{y}"),
        (r"\frac12 3^n", r"\frac{3^n}{2}"), ("3x^2", "3{x}^2"),
    ],
    "several formulas, thousands": [
        ("$2$, $3$ and $5$", "2,3,5"), (r"\(5\) or \(9\)", "5,9"), ("$3$ apples", "3"),
        ("1,234,567", r"1\,234\,567"), ("12345", r"12\;345"), ("12345", "12\u2009345"),
    ],
    "names of values": [
        ("(a,b,c)=(1,2,3)", "(1,2,3)"), ("(3,4)", "(x,y)=(3,4)"), ("(3,4)", "(y,x)=(4,3)"),
        ("5", "AB=5"), ("60", r"\angle A=60^\circ"), (r"60^\circ", r"m\angle ABC=60"),
        ("(1,2)", r"\vec{a}=(1,2)"), ("(1,2)", r"\overrightarrow{AB}=(1,2)"),
        (r"\frac{1}{2}", r"\sin\theta=\frac12"), ("4", "f^{-1}(3)=4"), ("0.3", "P(X=1)=0.3"),
        ("5", "a_{10}=5"),
    ],
    "chains and equations": [
        ("12", r"x=3\cdot 4=12"), (r"9\pi", r"S=\pi r^2=9\pi"),
        ("x^2+2x+1", "f(x)=(x+1)^2=x^2+2x+1"), ("x = 2", "x=4/2=2"), ("y=2x+1", "2x-y+1=0"),
        ("x-2y=3", "y=(x-3)/2"), ("x^2+y^2=4", "y^2=4-x^2"),
    ],
    "units": [
        ("9 (apples)", "9"), ("20 (km)", "20"), ("20 (km)", "20 km"), ("5 $cm$", "5"),
        ("A: 5", "5"), ("9 (m)", "9"), ("12 (square feet)", "12"), ("9", "9 apples"),
        ("60", "60 km/h"), ("18", "$18"), ("18", "18 dollars per egg"), ("7", "7 more apples"),
        ("3", "3 men"), ("18", "18 fresh duck eggs"), ("9.8", "9.8 m/s^2"),
        ("9.8", r"9.8\ \mathrm{m/s^2}"), ("9.8", r"9.8\,\text{m}/\text{s}^2"), ("300 K", "300"),
        ("5 m/s", "5"), ("5 kg m/s", "5"), ("2.5 mol", "2.5"), ("3 dogs", "3"), ("3 dog", "3 dogs"),
    ],
    "currencies": [
        ("20", "Rs 20"), ("20", "₹20"), ("20", "20 rupees"), ("20元", "￥20"), ("20", "RMB 20"),
        ("20", "US$20"), ("20", "20 USD"), ("€5", "5 EUR"), ("20", "£20"),
    ],
    "choices with text": [
        ("(C) 7", "7"), ("(C) 7", "C"), ("(C) 7", "(C) 7"), (r"\text{(A)} \frac12", "1/2"),
        ("B. 5", "B"), ("ACD", "A,C,D"), ("BC", "B and C"), ("A, C", "AC"),
    ],
    "signs of Chinese typing": [
        ("1，2", "1,2"), ("x＝3", "3"), ("1和2", "1,2"), ("5平方厘米", "5 cm^2"), ("5立方米", "5"),
        ("3小时", "3 hours"), ("80分", "80分"), ("20万", "200000"), ("5％", "0.05"), ("3：2", "3:2"),
        ("12个苹果", "12"),
    ],
    "times and dates": [
        ("3:30 pm", "3:30 PM"), ("7:00 a.m.", "7:00 AM"), ("2024-01-05", "2024-01-05"),
        ("3 p.m.", "3 pm"), ("3:30", "3:30 p.m."),
    ],
    "names of people and places": [
        ("Dr. Smith", "Dr. Smith"), ("D'Angelo", "D'Angelo"), ("Mt. Everest", "mt. everest"),
    ],
    "letters and subscripts": [
        (r"\zeta", r"\zeta"), (r"\Delta", r"\Delta"), ("2α", r"2\alpha"), (r"\Omega", r"\Omega"),
        (r"\chi", r"\chi"), (r"\varepsilon", r"\varepsilon"),
        (r"v_{\text{avg}}", r"v_{\mathrm{avg}}"), ("F_{net}", r"F_{\text{net}}"),
        (r"E_{\max}", r"E_{\text{max}}"), ("a_{n+1}", "a_{n+1}"), ("x_0", "x_{0}"),
        (r"\frac{\mathrm{d}}{2}", "d/2"), (r"3\mathrm{x}+1", "3x+1"), ("i", r"\mathrm{i}"),
    ],
    "functions, sets and matrices": [
        ("5", r"\min(5,7)"), ("7", r"\max\{5,7\}"), ("6", r"\gcd(12,18)"),
        ("3", r"\lfloor 3.5\rfloor"), ("4", r"\lceil\pi\rceil"),
        ("36", r"\operatorname{lcm}(12,18)"), (r"\{x\mid x>3\}", "x>3"),
        (r"\{x\in\mathbb{R}\mid x>3\}", r"(3,\infty)"), (r"\mathbb{R}", r"\mathbb{R}"),
        (r"x\in\mathbb{R}", r"\mathbb{R}"), (r"\{x : x \neq 2\}", r"x\neq 2"),
        (r"x\neq 1,2,3", r"x\neq 1, x\neq 2, x\neq 3"),
        (r"\mathbb{R}\setminus\{1\}", r"\mathbb{R}\setminus\{1\}"),
        (r"\left(\begin{array}{c}1\\2\end{array}\right)", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\left[\begin{matrix}1&2\end{matrix}\right]", r"\begin{bmatrix}1&2\end{bmatrix}"),
    ],
    "older notation": [
        ("10", r"{5 \choose 2}"), ("10", r"\mathrm{C}_5^2"), ("10", "C_5^2"), (r"\tan x", r"\tg x"),
        (r"\frac16", r"0.1\dot{6}"), (r"\frac{1}{7}", r"0.\dot{1}4285\dot{7}"),
        ("300000", "3 × 10^5"),
    ],
    "too large to compute": [
        ("10^{2000}", "10^{2000}"), ("10^{10000}", "10^{10000}"), ("2^{2024}-1", "2^{2024}-1"),
        ("1000!", "1000!"), ("3^{100}", "9^{50}"), ("7^{2023}", "7^{2023}"),
    ],
    "wrappers": [
        ("5", r"\textcolor{red}{5}"), ("5", r"\underline{5}"), ("5", r"\fbox{5}"), ("5", "*5*"),
        ("5", "`5`"), ("5", r"\mathbf{5}"), ("5", r"{\bf 5}"), ("5", r"\boldsymbol{5}"),
        ("5", "__5__"), ("5", r"{\color{blue} 5}"), ("x^2", r"\bm{x}^2"), ("5", "```\n5\n```"),
        ("5", "**5**."), ("Paris", r"\underline{Paris}"),
    ],
    "products commute": [
        ("ab", "ba"), ("xy", "yx"), ("2ab", "2ba"), ("abc", "cab"),
    ],
    "several units": [
        ("2 hours 30 minutes", "2 hours, 30 minutes"), ("5 feet 6 inches", "5 feet and 6 inches"),
        ("1/2 of the cake", "1/2"), ("5 N", "5 N"), ("10 J", "10 joules"), ("3 V", "3"),
        ("101.3 kPa", "101.3 kPa"), ("20 m^2", "20"), ("5 ms", "5"),
    ],
}
# fmt: on

# the same kinds, all wrong
# fmt: off
NEAR_MISSES = {
    "units": [
        ("3", "3 thousand"), ("5", "5 percent"), ("5", "5%"), ("3", "3 dozen"), ("5", "5 is wrong"),
        ("5", "5 not"), ("5", "5 or 6"), ("5", "5x"), ("5", "5 x"), ("5", "5 n"), ("5", "5万"),
        ("5", "5 hundredths"), ("5", "5 squared"), ("5", "5 halves"), ("5 cm", "5 km"),
        ("5 apples", "5 pears"), ("60 km/h", "60 m/s"), ("60 km/h", "60 km"), ("2x", "2"),
        ("5", "6 apples"), ("5", "5 million dollars"), ("5", "5 minus 1"),
    ],
    "factors": [
        ("(x,y)", "(y,x)"), ("(3,4)", "(y,x)=(3,4)"), ("30", "{5}{6}"), ("30", "5 6"),
        ("23", "2 3"), ("1234", "1 234"),
    ],
    "chains and equations": [
        ("5", "2x=5"), ("5", "4=5"), ("5", "4+2=5"), ("5", "xy=5"), ("5", "x=y=5"), ("5", "5=5"),
        ("x=5", "y=5"), ("y=2x+1", "2x-y=1"), ("x=5", "2x=10"), ("x^2+y^2=4", "x^2+y^2=2"),
    ],
    "names of values": [
        ("1/2", "f(2)=1/3"), ("f(2)=3", "f(3)=3"), ("AB=5", "AC=5"),
        ("x_1=2, x_2=3", "x_1=3, x_2=2"), ("x_1=2, x_2=3", "2"), ("x_1=2,x_2=3", "(2,3)"),
        ("a=2,b=3", "2,3"),
    ],
    "choices with text": [
        ("(B) 5", "A"), ("(B) 5", "6"), ("(B) 5", "(A) 5"), ("(B) 5", "(B) 6"), ("B", "(B) 5"),
        ("ABD", "A, B"), ("ABD", "A,B,C,D"), ("ABD", "A"), ("A", "AB"),
    ],
    "times and dates": [
        ("3:30", "3:31"), ("3:30 pm", "3:30 am"), ("2024-01-05", "2018"),
        ("2024-01-05", "2024-01-06"), ("3 pm", "3 am"), ("3", "3:00"),
    ],
    "names of people and places": [
        ("O'Brien", "Brien"), ("St. Louis", "Louis"), ("St. Louis", "St. Paul"),
    ],
    "letters and subscripts": [
        (r"\xi", r"\eta"), (r"x_{\text{max}}", r"x_{\text{min}}"), ("T_f", "T_i"), ("T_f", "T"),
        ("2i", "2"), ("i", "1"),
    ],
    "functions, sets and matrices": [
        (r"[3,\infty)", r"\{x\mid x>3\}"), (r"x\neq 1,2", r"x\neq 1"), (r"x\neq 1", "1"),
        (r"x\neq 1,2", "1,2"), (r"x\neq 1,2", "x=1,2"), (r"\mathbb{R}", r"\mathbb{Z}"),
        (r"\mathbb{R}\setminus\{1\}", r"\mathbb{R}\setminus\{2\}"),
        (r"\mathbb{R}\setminus\{1\}", r"\mathbb{R}"), ("3", r"\lfloor 4.5\rfloor"),
        ("5", r"\max(5,7)"), ("12", r"\gcd(12,18)"),
    ],
    "too large to compute": [
        ("2^{5000}", "2^{5001}"), ("2025!", "2024!"), ("10^{10000}", "10^{10001}"),
    ],
    "wrappers": [
        ("5", r"\textcolor{red}{6}"),
    ],
    "products commute": [
        ("no", "on"), ("cat", "act"), ("kg", "gk"), ("E", "F"), ("e", "E"), ("5", "**6**"),
    ],
    "currencies": [
        ("20", "₹21"), ("₹20", "$20"), ("120", "C_{10}^{4}"),
    ],
    "several units": [
        ("5", "5 apples and 2 pears"), ("2 hours 30 minutes", "30 hours 2 minutes"),
        ("2 hours 30 minutes", "2 hours 30"), ("5", "(B) 5"), ("5", "5 5"), ("5", "5, 5"),
        ("1,2", r"1\,2"), ("5", "5 m 6"), ("5", "5 apples 6"), ("5", "0.05 thousand"),
        ("2 m", "2 s"), ("7", "7 or 8 apples"), ("7", "7 apples or 8"), ("7", "7 apples, 8 apples"),
        ("7", "-7 apples"), ("50", "50 percent of x"), ("8", "2 2 2"), ("3/4", "3 quarters"),
        ("0.5", "5 tenths"), ("10", "5 dozen"), ("5", "5 K x"),
    ],
}
# fmt: on


def misjudged(pairs, right):
    return [pair for pair in pairs if equivalent(*pair) is not right]


@pytest.mark.parametrize("kind", REPORTED)
def test_reported_answers_are_right(kind):
    assert not misjudged(REPORTED[kind], True)


@pytest.mark.parametrize("kind", SIBLINGS)
def test_siblings_are_right(kind):
    assert not misjudged(SIBLINGS[kind], True)


@pytest.mark.parametrize("kind", NEAR_MISSES)
def test_near_misses_stay_wrong(kind):
    assert not misjudged(NEAR_MISSES[kind], False)


@pytest.mark.parametrize(
    "unit",
    "eggs|clips in total|more pages|men|km/h|dollars|dollars per egg|miles per hour|hours|years old|pairs of shoes|"
    "onions and potatoes|square feet|pounds of feed|cups of flour|kg|people|gallons|minutes|% of".split(
        "|"
    ),
)
def test_unit_that_the_question_asks_for_may_stand_behind_a_number(unit):
    assert equivalent("18", f"18 {unit}") is (unit != "% of")
    assert not equivalent("18", f"19 {unit}") and not equivalent("18", f"18 thousand {unit}")


@pytest.mark.parametrize(
    "gold", ["nan", "NaN", "None", "null", "N/A", "", " ", r"\text{None}", "0/0", "5 = 5"]
)
def test_gold_that_nothing_can_equal_is_an_error(gold):
    with pytest.raises(ValueError, match="gold answer"):
        equivalent(gold, gold)


@pytest.mark.parametrize(
    "completion, answer",
    [
        ("<think>a</think>\nAnswer: 5", "5"),
        ("<think>a</think><answer>So $x = \\boxed{5}$</answer>", "5"),
        ("<think>a</think> \\fbox{5}", "5"),
        ("<think>a</think><answer>The answer is \\boxed{5}.</answer>", "5"),
        ("<think>a</think> \\boxed{\\ 5\\ }", "5"),
        ("<think>a</think><answer>```\n5\n```</answer>", "5"),
        # siblings
        ("so the answer is $\\boxed 2$.", "2"),
        ("\\boxed {5}", "5"),
        ("\\boxed\\frac12.", "1/2"),
        ("**Answer:** 5", "5"),
        ("**Final answer: 5**", "5"),
        ("Answer: $\\boxed{5}$.", "5"),
        ("\\boxed{4}\nAnswer: 5", "5"),
        ("<answer>Answer: 5</answer>", "5"),
    ],
)
def test_where_the_answer_is(completion, answer):
    assert equivalent(answer, extract(completion))


@pytest.mark.parametrize(
    "completion",
    [
        "<answer>\\boxed{5} or \\boxed{6}</answer>",
        "<answer>Answer: 5\nAnswer: 6</answer>",
        "<answer>5</answer> \\boxed{6}",
        "<think>\\boxed{6}</think> The answer is 6.",
        "<think>Answer: 6</think> I do not know.",
        "\\boxed{6} or \\boxed{5}",
        "\\boxed{6",
        "\\boxedx{6}",
        "The answer: 6 is wrong.",
    ],
)
def test_what_is_not_the_answer(completion):
    assert not equivalent("6", extract(completion) or "")
