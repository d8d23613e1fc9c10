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
        ("12", "(2)(3)2"), ("6", "3[2]"), ("x^2y", "{x}^{2}{y}"),
        (r"\frac12 3^n", r"\frac{3^n}{2}"), ("3x^2", "3{x}^2"),
    ],
    "several formulas, thousands": [
        ("$2$, $3$ and $5$", "2,3,5"), (r"\(5\) or \(9\)", "5,9"), ("$3$ apples", "3"),
        ("1,234,567", r"1\,234\,567"), ("12345", r"12\;345"), ("12345", "12\u2009345"),
    ],
    "names of values": [
        ("(a,b,c)=(1,2,3)", "(1,2,3)"), ("(3,4)", "(x,y)=(3,4)"), ("(3,4,5)", "(x,y,z)=(3,4,5)"),
        ("5", "AB=5"), ("60", r"\angle A=60^\circ"), (r"60^\circ", r"m\angle ABC=60"),
        ("(1,2)", r"\vec{a}=(1,2)"), ("(1,2)", r"\overrightarrow{AB}=(1,2)"),
        (r"\frac{1}{2}", r"\sin\theta=\frac12"), ("4", "f^{-1}(3)=4"), ("0.3", "P(X=1)=0.3"),
        ("5", "a_{10}=5"),
    ],
    "chains and equations": [
        ("12", r"x=3\cdot 4=12"),
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
        ("101.3 kPa", "101.3 kPa"), ("20 m^2", "20"), ("5 ms", "5"), ("9.8 m s^{-2}", "9.8"),
        (r"10^{-3} \mathrm{~mol} \cdot \mathrm{L}^{-1}", "0.001"), ("5", "5 push-ups"),
        (r"5.0 \times 10^{2} \mathrm{~J}", "500"), ("41 (fourth graders)", "41"), ("5", "5 TVs"),
        ("9 (quarters)", "9 quarters"), ("8 (bad oranges)", "8"), ("288 (t-shirts)", "288"),
        ("7", "7 more girls than boys"), ("5", "5（元）"), ("5", "5 元"), ("5", "5 CDs"),
    ],
    "wrappers around a unit, cases and plurals of scales": [
        (r"90^\circ", r"$$90^{\circ}$$"), ("5", "$$5 $$"), ("10 (pets)", "**10 (pets)**"),
        ("10 (pets)", r"\textbf{10 (pets)}"), ("10 (pets)", "10(pets)"), ("10 (pets)", r"10 \left(pets\right)"), ("Rs. 570", "**Rs. 570**"),
        ("1.5 Million", "1500000"), ("2 Dozen", "24"), ("20 Percent", "0.2"), ("36", "3 dozens"),
        ("5000", "5 Thousand"), ("50%", "50 Percent"), (r"0.5 \mathrm{~T}", "0.5"),
        ("9.8 m/s^2", "9.8 m s^{-2}"), ("9.8 m/s^2", r"9.8 \frac{m}{s^2}"), ("5 N/C", "5 N C^{-1}"),
        ("5", "5 cups left over"), ("5", "5 minutes to finish"), ("5", "5 people at the party"),
        ("5", "5种方法"), ("5", "5个正方形"), ("5", "共5个"), ("5", "答：5个"), ("A", "故选：A"),
        (r"\{x|-2<x<3\}", r"A\cap B=(-2,3)"), ("(1,2)", "x=1, y=2"), (r"\mu mg", r"\mu m g"),
        (r"\frac{ml^2}{3}", r"\frac13 ml^2"),
    ],
    "unknowns behind a space": [
        (r"\frac{1}{2} T", r"\frac{T}{2}"), (r"\frac{3}{4} V", r"\frac{3V}{4}"),
        ("a + 2 m", "2m+a"), (r"\frac{1}{2}mg", r"\frac{1}{2} m g"), (r"\sqrt2 s", r"s\sqrt2"),
        ("6 s^2", "6s^2"), ("10 - 2 h", "10-2h"),
    ],
    "values by name": [
        ("(x,y)=(1,2)", "x=1,y=2"), ("(x,y)=(1,2)", "y=2, x=1"), ("x=1,y=2", "(x,y)=(1,2)"),
        ("(n,m)=(1,2)", "(1,2)"), (r"(2,3)", r"(r,\theta)=(2,3)"), (r"\{1,2\}", r"A\cup B=\{1,2\}"),
    ],
    "labels with words": [
        ("B", "B) Paris"), ("B", "(B) Paris"), ("B", "B. Paris"), ("B", "**B) Paris**"),
        ("B", "Option B"), ("B", "The answer is B"), ("J", "j"), ("(B) 5", "The answer is B"),
        ("5", "The answer is 5"), ("Paris", "The answer is Paris."),
    ],
    "written alike": [
        (r"\arctan 2", r"\arctan(2)"), (r"\arctan 2", r"\arctan{2}"), ("H_2O", r"\mathrm{H}_2\mathrm{O}"),
        ("H_2SO_4", r"\text{H}_2\text{SO}_4"), ("H_2O", r"\ce{H2O}"),
        (r"2k\pi+\frac{\pi}{3}(k\in Z)", r"2k\pi+\frac{\pi}{3}, k\in\mathbb{Z}"),
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
    "letters that are unknowns, not units": [
        ("10 - 2 h", "8"), ("8", "10 - 2 h"), ("3 + 2 m", "5"), (r"1 - \frac{1}{2} s", "1/2"),
        ("2 s - t", "2"), ("2 m / n", "2"), ("2", "2 m - n"), ("6 s^2", "6"), ("2 mgh", "2"),
        (r"\frac{\sqrt{3}}{4} s^{2}", r"\frac{\sqrt{3}}{4}"), (r"\frac{1}{2} T", "1/2"),
        (r"\frac{1}{2} mvr", "1/2"), ("x^{2} h", "x^2"), (r"\frac{a}{b} m", "a/b"), ("2 l", "2"),
        ("(1, 2 m)", "(1,2)"), (r"2\mathbf{A}", "2"), ("2", "2 (m-n)"), ("5", "5 (-x)"),
    ],
    "words that change a number or deny it": [
        ("3", "3 quarters"), ("3", "3 twentieths"), ("7", "7 twelfths"), ("1", "1 eighth"),
        ("3", "3 dollars and fifty cents"), ("3", "3 hours thirty minutes"), ("5", "5 lakhs"),
        ("5", "5 scores"), ("5", "5 quadrillion"), ("5", "5 K"), ("5", "$5 K"), ("5", "5 T"),
        ("5", "5 percentage points"), ("5", "5 basis points"), ("5", "5 per mille"),
        ("5", "5 times x"), ("5", "5 multiplied by x"), ("5", "5 divided by x"), ("5", "5 less"),
        ("5", "5 doubled"), ("5", "5 halved"), ("5", "5 rejected"), ("5", "5 ruled out"),
        ("5", "5 impossible"), ("5", r"5 \text{ isn't}"), ("5", r"5 \text{ doesn't work}"),
        ("5", "5 maximum"), ("5", "5 or fewer"), ("5", "5 through"), ("5", "5 in binary"),
        ("3", "3个半小时"), ("3", "3小时半"), ("3", "3米多"), ("3", "3又二分之一"), ("3", "3或者四"),
        ("3", "3和四"), ("3", "3到四"), ("5", "5的平方"), ("5", "5的倒数"), ("5", "5次方"),
        ("5", "5错误"), ("5", "5打"), ("5 mmol", "5 Mmol"),
    ],
    "names in another order": [
        ("(1,2)", "(b,a)=(1,2)"), ("(1,2)", "(n,m)=(1,2)"), ("(1,2)", r"(\beta,\alpha)=(1,2)"),
        ("(1,2)", "(x_2,x_1)=(1,2)"), ("(1,2)", "(y,x,z)=(1,2)"), ("(1,2,3)", "(x,z,y)=(1,2,3)"),
        ("x=1,y=2", "x=1 or y=2"), ("(3,3,2)", "x=1,y=2,x=3"), ("(x,y)=(1,2)", "x=2,y=1"), ("(x,y)=(1,2)", "a=1,b=2"),
    ],
    "a number behind letters or words is no factor": [
        ("0", "not 0"), ("0", "The answer is not 0"), ("0", "greater than 0"), ("0", "不是0"),
        ("0, 1", "not 0, 1"), ("(0,1)", "(a0,1)"), ("x=0", "x=0 to 6"), ("0 apples", "pears 0"),
        ("Type 1", "Type"), ("Paris", "Paris 1"), ("Apollo 11", "Apollo 12"), ("x", "x1"),
        ("6x", "x6"), ("2b", "b2"),
    ],
    "signs and scales before or behind a number": [
        ("20", "-USD 20"), ("20", "-Rs. 20"), ("20", "<Rs 20"), ("20", "- the answer is 20"),
        ("20", "M$20"), ("20", "K$20"), ("$5", "HK$5"), ("5", "5个百"), ("5", "5萬"), ("5", "5億"),
        ("5", "5 lacs"), ("5", "5 tril"), ("5", "5 Millionen"), ("5", "5천"), ("5", "5 тысяч"),
        ("0.5", "0.5 per cents"), ("5", "5 apples doubled"), ("5", "5平方根"), ("5", "5可能"),
        ("5", "5个不对"), ("5", "5 invalid"), ("5", "NO=5"), ("2x", r"\{x|2x\}"),
    ],
    "other names, marks and dates": [
        ("x_{max}=5, x_{min}=1", "1, 5"), (r"\bar{x}", r"\hat{x}"), (r"\bar{x}", r"\vec{x}"),
        ("March 15", "March 1.5"), ("March 15", "March 1, 5"), ("March 1, 1985", "March 11, 985"),
    ],
    "labels with another text": [
        ("B", "(B) wrong"), ("B", "(B) is incorrect"), ("B", "B) or d"), ("B", "(B) or x"),
        ("B", "A) Paris"), ("B", "B) Paris or A) Rome"), ("B", "B: A"), ("B", "not B"),
        ("B", "The answer is A"), ("5", "The answer is 6"), ("5", "The answer is not 5"),
    ],
}
# fmt: on

# forms of right answers, and wrong ones made to pass
# fmt: off
ATTACKED = {
    "right": [
        ("5", "5."), ("5", r"5\,"), ("5", r"\, 5"), ("5", "\n5\n"),
        (r"\frac{3}{4}", r"\left(\frac{3}{4}\right)"), ("x=5", "x=5."), ("(x+1)2", "2x+2"),
        ("2x+2", "(x+1)2"), ("6", "2(3)"), ("2x-2", r"2\left[x-1\right]"),
        ("x^2-1", "[x-1][x+1]"), ("4", "[1+1]^2"), (r"$\frac{1}{2}$ and $3$", "3, 1/2"),
        ("$x=1$ or $x=2$", "1,2"), ("$(1,2)$, $(3,4)$", "(3,4),(1,2)"), ("$x = 5$", "5"),
        ("5", "$5$."), ("5", "$5.$"), ("12 cm", "$12$ cm"), ("12 cm", r"$12\text{ cm}$"),
        ("12", r"$12\ \text{cm}$"), ("5", r"$\boxed{5}$"), ("1000000", r"1\,000\,000"),
        ("1000000", "1{,}000{,}000"), ("12500", "$12,500"), ("12500", r"\$12{,}500"),
        ("1500", r"1{,}500 \text{ dollars}"), ("(3,2)", "(m,n)=(3,2)"),
        ("(1,2),(3,4)", "(x,y)=(1,2),(3,4)"), ("(1,2),(3,4)", "(x,y)=(1,2) or (x,y)=(3,4)"),
        ("x=1,y=2", "x = 1, y = 2"), ("2,3", "x_1=2, x_2=3"),
        ("2,3", r"x_{1}=2 \text{ and } x_{2}=3"), ("2, -3", r"x_1 = 2,\; x_2 = -3"), ("5", "BC=5"),
        ("5", r"\overline{AB}=5"), ("30", r"\angle BAC=30°"), (r"30^\circ", "∠ABC=30°"),
        ("3", r"\log_2 8=3"), ("2", r"\tan A=2"), ("2", r"\tan\angle ABC=2"), ("24", "S_{ABC}=24"),
        ("24", "[ABC]=24"), ("5", r"|\vec{a}|=5"), ("3", "f(f(2))=3"), ("7", "f''(0)=7"),
        ("1/6", r"P(A\cap B)=\frac16"), ("1/6", r"P=\frac{1}{6}"), ("10", "n(A)=10"), ("5", "a=5"),
        ("8", "2^3=8"), ("1/2", r"\frac{2}{4}=\frac{1}{2}=0.5"), ("15", r"\binom{6}{2}=15"),
        ("6", "3!=6"), ("0.5", r"\frac12=0.5"), (r"2\sqrt3", r"\sqrt{12}=2\sqrt{3}"),
        ("5", r"x=\sqrt{25}=5"), ("50", "100/2=50"), ("x+y=2", "y=2-x"), ("x+y=2", "2x+2y-4=0"),
        ("y=x^2", "x^2-y=0"), ("y=3x-2", "3x-y-2=0"), ("y=3x-2", "3x - y = 2"),
        (r"\frac{x^2}{4}+y^2=1", "x^2+4y^2=4"), (r"y=-\frac12x+3", "x+2y=6"), ("5 (km/h)", "5"),
        ("5 (cm)", "5 cm"), ("9 apples", "9 (apples)"), ("9", "9 (apples)"),
        ("9", r"9\ (\text{apples})"), ("15 square units", "15"), ("15", r"15\text{ square units}"),
        ("15", r"15\ \mathrm{cm}^{2}"), ("15", "15 cm²"), ("15", "15 m³"),
        ("120", "120 km per hour"), ("9.8 N/kg", "9.8"), ("5 ohms", "5"), ("5 Ω", "5"),
        ("3.0 × 10^8 m/s", "3e8"), (r"3.0\times10^8\ \mathrm{m/s}", "300000000"), ("25 °C", "25"),
        ("25 °C", "25 °C"), ("25", "25 degrees Celsius"), ("25 degrees Celsius", "25"),
        ("10 years old", "10"), ("5 ft 6 in", "5 ft 6 in"),
        ("1 hour 20 minutes", "1 hour and 20 minutes"), ("20%", "20 %"), ("5", "5 people"),
        ("12", "12 inches"), ("5 ml", "5 mL"), ("5", "5 L"), ("2.5 hours", "2.5 hrs"),
        ("3 lbs", "3 pounds"), ("0.5 g/cm^3", "0.5"), ("100 kg·m/s", "100"),
        (r"100 \text{ kg}\cdot\text{m/s}", "100"), ("5", "5 kWh"), ("5", "5 GB"), ("5", "5 m/s²"),
        ("45 minutes", "45"), ("45", "45 min"), ("20", "20 ₹"), ("₩500", "500"), ("20", "20€"),
        ("20", "20 €"), ("20", "€ 20"), ("20", "20$"), ("20", r"20\$"), ("20", "Rs.20"),
        ("20", "rs 20"), ("20", "¥ 20"), ("20", "20 yuan"), ("20", "20元"), ("20", "£20.00"),
        ("20", "HK$20"), ("20", "S$20"), ("20", "A$20"), ("50 cents", "50"),
        ("$20 million", "20000000"), ("-20", "-$20"), ("20", "20 pesos"), ("20", "$ 20"),
        ("20", "USD 20"), ("20", "EUR 20"), ("20", "20 EUR"), ("20", "CAD 20"), ("(B)", "B"),
        ("B", r"\boxed{B}"), ("B", "(b)"), ("B", "**B**"), ("B", "B."), ("D: Paris", "Paris"),
        ("D. Paris", "D"), ("D) Paris", "D"), ("(D) Paris", "paris"), (r"\text{(B)}\ 5", "5"),
        (r"\mathrm{(B)}\ 5", "B"), (r"\textbf{(B)}~5", "5"), (r"\mathbf{(B)}\ \frac{1}{2}", "1/2"),
        (r"\text{B. }5", "5"), ("ABC", "ABC"), ("A,B,C", "ABC"), ("A、B、C", "ABC"),
        ("ABC", "A and B and C"), ("AC", "(A), (C)"), ("AC", "(A)(C)"), ("AC", "A C"),
        ("ABD", "A，B，D"), ("3，4", "3,4"), ("｛1，2｝", "{1,2}"), ("（1，2）", "(1,2)"), ("5", "5。"),
        ("1、2", "1,2"), ("-1或3", "3,-1"), ("x=1或x=2", "1,2"), ("x＞3", "x>3"), ("5厘米", "5cm"),
        ("5千克", "5 kg"), ("5元", "5元"), ("30°", "30度"), ("3千米", "3 km"), ("12平方厘米", "12"),
        ("6cm²", "6"), ("6平方米", "6 m^2"), ("1.5万", "15000"), ("50米/秒", "50 m/s"), ("5吨", "5"),
        ("∠A=60°", "60°"), ("3∶2", "3:2"), ("（－1，2）", "(-1,2)"), ("1≤x＜2", "[1,2)"),
        ("12:00", "12:00"), ("9:05 a.m.", "9:05 am"), ("9:05 AM", "9:05"), (r"9\!:\!05", "9:05"),
        ("3:30", "3:30 PM"), ("3:30 p.m.", "3:30pm"), ("January 5", "January 5"),
        ("January 5, 2024", "January 5, 2024"), ("Jan. 5", "Jan. 5"),
        ("5 January 2024", "5 January 2024"), ("1/2/2023", "1/2/2023"), ("Monday", "monday"),
        ("15:30", "15:30"), ("2024/01/05", "2024/01/05"), ("2024年1月5日", "2024年1月5日"),
        ("1:30:45", "1:30:45"), ("March 3rd", "March 3rd"), ("New York", "new york"),
        ("Washington, D.C.", "Washington, D.C."), ("U.S.", "U.S."), ("Xi'an", "Xi'an"),
        ("rock'n'roll", "rock'n'roll"), ("Jean-Luc", "Jean-Luc"),
        ("Martin Luther King Jr.", "Martin Luther King Jr."), ("won't", "won't"),
        ("J. K. Rowling", "J. K. Rowling"), ("café", "café"), ("St. Louis", "St Louis"),
        ("7th", "7th"), ("3rd", "3rd"), ("Henry VIII", "Henry VIII"), ("H2SO4", "H_2SO_4"),
        ("COVID-19", "COVID-19"), ("Apollo 11", "Apollo 11"), ("Type A", "Type A"),
        (r"\frac{\pi}{4}", r"\pi\frac{1}{4}"), ("4x^2y^3", "4{x}^2{y}^3"),
        (r"3\sqrt{2}", r"\sqrt{2}\cdot 3"), (r"3\sqrt{2}", r"\sqrt{2}3"), (r"6\pi", r"3(2)\pi"),
        ("x(x+1)", r"x\left[x+1\right]"), ("(x-1)(x+2)", "{(x-1)}{(x+2)}"), ("n(n+1)", "(n)(n+1)"),
        ("2^n3^m", "3^m2^n"), ("x^2", "{x}^{2}"), ("-3{x}", "-3x"),
        (r"\frac{1}{2}x", r"\frac{x}{2}"), ("10", r"\text{10 cm}"), ("10", r"10\text{cm}"),
        ("10", "10 cm."), ("10", r"10\;\text{cm}"), ("10", r"\boxed{10\text{ cm}}"),
        ("10", r"10\ \text{units}"), ("10", r"10\mbox{ cm}"), ("10", r"10 \mathrm{~cm}"),
        ("10", r"10\textrm{ inches}"), ("10", r"10\text{ square inches}"),
        ("10", r"10\text{ in}^2"), ("10", r"10~\text{m}^3"), ("10 m^3", "10"),
        (r"10 \mathrm{m}^3", "10 m^3"), ("10", r"10\ m"), ("10", "10 students"),
        ("10", "10 of them"), ("10", "10 more"), ("10", "10 times"), ("10", "10 ways"),
        ("5", "5 cups of coffee per day"), ("5", "5 pounds/acre"), ("5", "5 miles/hour"),
        ("5", "5 eggs/day"), ("5", "5 apples each"), ("$5", "5"), ("$5", "5 dollars"),
        ("$5", "US$5"), ("5 dollars", "$5.00"), ("5 dollars per hour", "5"),
        ("5 km/h", "5 kilometers per hour"), ("5 m/s", "5 meters/second"),
        ("4.0 mol/L", "4.0 mol/L"), ("4.0 mol/L", "4 mol / L"), ("5 g", "5 grams"), ("5 A", "5"),
        ("5 eV", "5"), ("5 MeV", "5"), ("5 rpm", "5"), (r"5 \Omega", "5"), (r"5\ \Omega", "5"),
        ("5 Hz", "5 hertz"), ("273 K", "273"), (r"273\text{ K}", "273"), (r"37^\circ C", "37"),
        ("37", r"37^\circ\text{C}"), ("98.6°F", "98.6"), (r"-5^\circ\text{C}", "-5"), ("5 kN", "5"),
        (r"5 N\cdot m", "5"), ("5 J/kg", "5"), ("0.5 mol", "0.5 moles"), ("5 acres", "5"),
        ("45 degrees", r"45^\circ"), ("20 percent", "20%"), ("1, 2 and 3", "1,2,3"),
        ("2 or -2", r"\pm2"), (r"x=\pm 2", "2,-2"), ("(1,2) and (3,4)", "(3,4),(1,2)"),
        ("x=1, y=2", r"x=1 \text{ and } y=2"), ("x = 1; y = 2", "x=1,y=2"), ("(1, 2)", "(1;2)"),
        ("1/2", "0.5"), ("a=1,b=2,c=3", "a=1, b=2, c=3"), ("y = 2x + 1", "y=1+2x"),
        ("y-1=2(x-3)", "y=2x-5"), ("2x+3y=6", r"y=2-\frac{2}{3}x"), ("x^2+y^2-4=0", "x^2+y^2=4"),
        ("x=2y", "y=x/2"), (r"\frac{x}{3}+\frac{y}{2}=1", "2x+3y=6"), ("3x-y-2=0", "y=3x-2"),
        (r"A=\pi r^2", r"\pi r^2"), ("x-1=0", "x=1"), ("2x=10", "x=5"), (r"\text{A}", "A"),
        (r"\text{(A)}", "A"), (r"(A) \frac{1}{2}", "0.5"), ("A) 5", "5"), ("A: 5", "A: 5"),
        ("A. 5", "A. 5"), (r"\textbf{(E)}\ 10", "10"), (r"\textbf{(C) } \frac{1}{2}", "C"),
        (r"\textbf{(D) }\text{Paris}", "Paris"), (r"\text{C) }7", "7"), ("A and C", "AC"),
        ("A, C", "C, A"), (r"\{1,2,3\}", "{3,2,1}"), (r"\{x: x>3\}", r"(3,\infty)"),
        (r"\{x \in R : x \ge 0\}", r"[0,\infty)"), (r"(-\infty,\infty)", r"(-\infty, +\infty)"),
        (r"\mathbb R", r"\mathbb{R}"), (r"x\neq 1 \text{ and } x\neq 2", r"x\neq 1,2"),
        (r"\{2k \mid k \in \mathbb{Z}\}", r"\{2k \mid k \in \mathbb{Z}\}"),
        (r"x=2k\pi, k\in\mathbb{Z}", r"x=2k\pi, k\in\mathbb{Z}"),
        (r"\{x \mid x = 2k, k \in \mathbb{Z}\}", r"\{x \mid x = 2k, k \in \mathbb{Z}\}"),
        (r"\mathbb{N}", r"\mathbb{N}"), (r"A \cap B", r"A\cap B"), (r"A\cup B", r"A \cup B"),
        (r"\{x|-1<x<2\}", "(-1,2)"), (r"\{x| x<1 \text{ or } x>2\}", r"(-\infty,1)\cup(2,\infty)"),
        (r"\{(1,2)\}", r"\{(1,2)\}"),
        (r"\left(\begin{array}{rr}1&2\\3&4\end{array}\right)", "[[1,2],[3,4]]"),
        (r"\begin{bmatrix}1\\2\end{bmatrix}", r"\left[\begin{array}{c} 1 \\ 2 \end{array}\right]"),
        (r"\begin{pmatrix}1\\[4pt]2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1 & 2 \\\end{pmatrix}"),
        (r"\arctan 2", r"\arctan 2"), (r"\sinh x", r"\sinh x"), (r"\operatorname{tg} x", r"\tan x"),
        (r"\lg 100", "2"), (r"\ln x", r"\log_e x"), (r"\exp(x)", "e^x"), ("1/x", "x^{-1}"),
        (r"\sqrt[3]{2}", "2^{1/3}"), (r"5 \choose 2", "10"), (r"0.\overline{3}", r"0.\dot 3"),
        (r"0.\overline{36}", r"0.\dot{3}\dot{6}"), (r"2.5\times 10^{-3}", "2.5 x 10^-3"),
        (r"2.5\times10^{3}", "2.5X10^3"), ("1.2 x 10^{5}", "120000"), (r"\tfrac12", r"{1\over 2}"),
        ("|x|", r"\lvert x \rvert"), (r"\lfloor x\rfloor", r"\lfloor x \rfloor"),
        (r"\left\lfloor x\right\rfloor", r"\lfloor x \rfloor"), (r"\max\{a,b\}", r"\max(b,a)"),
        (r"\bar{x}", r"\bar{x}"), (r"\vec{v}", r"\vec{v}"), (r"\hat{i}", r"\hat{i}"),
        (r"2\mathbf{i}+3\mathbf{j}", "2i+3j"), (r"\mathbf{v}", "v"),
        (r"\triangle ABC", r"\triangle ABC"), (r"\angle A", r"\angle A"),
        (r"\overline{AB}", r"\overline{AB}"), ("2:3:4", "2:3:4"), (r"1:\sqrt{2}", r"1:\sqrt2"),
        ("2024!", "2024!"), ("100!", "100!"), ("2^{100}", "2^{100}"),
        ("2^{10000}-1", "2^{10000}-1"), ("10^{100}", "10^{100}"),
        (r"\frac{2025!}{2^{5}}", r"\frac{2025!}{2^{5}}"),
        (r"\binom{2024}{1012}", r"\binom{2024}{1012}"), ("2^{2024}", "4^{1012}"),
        ("(2^{5000},3)", "(2^{5000},3)"), ("5", r"\mathbf{5}."), ("5", r"\textit{5}"),
        ("5", "***5***"), ("5", "\"5\""), ("5", r"$\mathbf{5}$"), ("5", "**$5$**"),
        ("5", r"\(\boxed{5}\)"), ("5", r"\fbox{$5$}"), ("5", r"\boxed{\text{5}}"),
        ("5", r"{\Large 5}"), ("5", r"\displaystyle 5"), (r"\frac12", r"\displaystyle\frac{1}{2}"),
        ("5", r"\underline{\underline{5}}"), ("5", r"\color{red} 5"), ("5", r"{\color{red}{5}}"),
        ("5", r"\textcolor{#ff0000}{5}"), ("5", r"\text{\textbf{5}}"), ("5", r"\mathrm{5}"),
        ("5", r"5 \quad"), ("5", r"\quad 5"), ("5", r"\,5"), ("5", r"5\,."), ("5", r"\emph{5}"),
        ("Paris", "*Paris*"), ("Paris", "`Paris`"), ("Paris", "\"Paris\""), ("Paris", "**Paris**."),
        ("Yes", "Yes."),
    ],
    "wrong": [
        ("5", "5 apples or 6"), ("5", "5 to 6"), ("5", "5-6"), ("5", "5 or more"), ("5", "5 and 6"),
        ("5", "5 apples and 6 pears"), ("5", "5 a 6"), ("5", "5 dozen eggs"), ("5", "5 k"),
        ("5", "5K"), ("5", "5M"), ("5", "5 mil"), ("5", "5 bn"), ("5", "5 lakh"), ("5", "5 crore"),
        ("5", "5 tens"), ("5", "5 hundred"), ("5", "5 million"), ("5", "5e1"), ("5", "5 x 10"),
        ("5", "5 times 10"), ("5", "5 × 2"), ("5", "5 mod 7"), ("5", "5 in base 6"),
        ("5", "5 base 8"), ("5", "5 of 6"), ("5", "5 per 6"), ("5", "5 percent"), ("5", "5 pct"),
        ("5", "5 per cent"), ("5", "5 permille"), ("5", "5‰"), ("5", "5 bps"), ("5", "5 half"),
        ("5", "5/2 apples"), ("5", "5 eighths"), ("5", "5 sixths"), ("5", "five"), ("5", "5 i"),
        ("5", "5 pi"), ("5", "5 e"), ("5", "5i"), ("5", "5x"), ("5", "5 ab"), ("5", "5 xy"),
        ("5", "5 x y"), ("5", "5 sin"), ("5", "5 sqrt"), ("5", "5 inf"), ("5", "5 nan"),
        ("5", "5 None"), ("5", "5?"), ("5", "5!"), ("5", "5 ?"), ("5", "not 5"), ("5", "about 5"),
        ("5", "5 approx"), ("5", "5 approximately"), ("5", "5 or so"), ("5", "less than 5"),
        ("5", "5 at most"), ("5", "5 or less"), ("5", "5+"), ("5", "5 plus"), ("5", "5++"),
        ("5", "-5"), ("5", "5 negative"), ("5", "5 below"), ("5", "5 minus"),
        ("5", "5 less than 6"), ("5", "$5k"), ("5", "$5 million"), ("5", "$5M"), ("5", "5万"),
        ("5", "5千"), ("5", "5亿"), ("5", "5百"), ("5", "5十"), ("5", "5分之一"), ("5", "5以上"),
        ("5", "5折"), ("5", "5成"), ("5", "不是5"), ("5", "5不"), ("5", "5或6"), ("5", "5和6"),
        ("5", "5，6"), ("5", "5%"), ("5", "5％"), ("5", "05:00"), ("5", "5:00"),
        ("5", "5 thousand dollars"), ("5", "5 wrong"), ("5", "5 is not"), ("5", "5 isn't"),
        ("5", "5 unless"), ("5", r"\frac{5}{6}"), ("5", "5_6"), ("5", "5^2"), ("5", "5 ^2"),
        ("5", "5 cm^2 6"), ("5", "5 cm^x"), ("5", r"5\text{ or }6"), ("5", r"5 \text{thousand}"),
        ("5", r"5\text{ million}"), ("5", r"5\text{ is wrong}"), ("5", "x=y=5"), ("5", "x=5=6"),
        ("5", "6=5"), ("5", "5=6"), ("5", "x>5"), ("5", "x≠5"), ("5", r"\{5\}"), ("5", "[5]"),
        ("5", "(5,)"), ("5", "5,"), ("5", "(A) 5"), ("5", "B. 5"), ("5", "5 (A)"),
        ("5", "5 (or 6)"), ("5", "5 (not 6)"), ("5", "5 (approximately)"), ("5", "5 (6)"),
        ("5", "5 (wrong)"), ("5", "(5) (6)"), ("5", "5(6)"), ("5", "f(5)"), ("5", "f(x)=x+5"),
        ("5", "P(5)"), ("5", "AB=AC=5"), ("5", "2AB=5"), ("5", "A=B=5"), ("5", r"\sin 5"),
        ("5", r"\boxed{5}\boxed{6}"), ("5", "C_5^1 5"), ("5", r"\lfloor 5.5"), ("5", r"\max(5,6)"),
        ("5", r"\min(4,5)"), ("5", r"\gcd(5,7)"), ("5", r"5\over 2"), ("5", r"5 \choose 2"),
        ("5", r"5\dot{3}"), ("5", r"5.\dot{3}"), ("5", "1/2 of 5"), ("5", "5 score"),
        ("5", "5 gross"), ("5", "5 pair of 6"), ("12", "1 2"), ("12", "{1}{2}"), ("12", r"1\,2"),
        ("12", r"1\! 2"), ("6", "2 3"), ("6", "{2}3"), ("6", "2{3}"), ("12", r"3\text{4}"),
        ("(1,2)", "(2,1)"), ("(x,y)=(1,2)", "(y,x)=(1,2)"), ("(x,y)=(1,2)", "(x,y)=(2,1)"),
        ("(x,y)=(1,2)", "(a,b)=(1,2)"), ("x=1,y=2", "(1,2)"), ("x_1=1,x_2=2", "1"),
        ("1,2", "x_1=1,y_2=2"), ("1,2", "a_1=1,b_1=2"), ("a_1=1,a_2=2", "a_1=2,a_2=1"),
        ("AB=5", "BC=5"), ("f(2)=5", "g(2)=5"), ("f(2)=5", "f(5)=2"),
        (r"\sin A=\frac12", r"\cos A=\frac12"), ("AB=5", "x=5"), ("y=2x+1", "y=2x"),
        ("y=2x+1", "2y=2x+1"), ("y=2x+1", "0=0"), ("y=x", "x-y=1"), ("x=5", "x-5=0"),
        ("x+y=2", "x=2"), ("y=2x+1", "x=2y+1"), ("x^2=4", "x=2"), ("x=2", "x^2=4"),
        ("y^2=x", r"y=\sqrt{x}"), ("2x cm", "2x m"), ("2 hours 30 minutes", "2.5 hours"),
        ("2 hours 30 minutes", "2 hours"), ("2 hours 30 minutes", "150"), ("5 ft 6 in", "5 ft"),
        ("5 ft 6 in", "6 ft 5 in"), ("50 km/h", "50 m/h"), ("50 km/h", "50 h/km"),
        ("50 km/h", "50 km h"), ("5 N", "5 J"), ("5 N m", "5 N"), ("9 (apples)", "9 (oranges)"),
        ("9 (apples)", "9 oranges"), ("5 km", "5 miles"), ("$5", "€5"), ("₹20", "¥20"),
        ("3/4 of a mile", "3/4 km"), ("20 (km)", "20 m"), ("5 m", "5 x"), ("5x", "5"), ("5 x", "5"),
        ("2n", "2"), ("3m", "3"), ("3k", "3"), ("2a", "2"), ("ab", "a"), ("(B) 5", "(B)(5)"),
        ("(B) 5", "5, B"), ("(B) 5", "A"), ("(B) 5", "B, C"), ("(B) 5", "b c"), ("ABD", "ABDE"),
        ("ABD", "A B"), ("ABD", "AABD"), ("AB", "A"), ("B", "AB"), ("CAB", "ABC"), ("no", "on"),
        ("as", "sa"), ("is", "si"), ("at", "ta"), ("by", "yb"), ("my", "ym"), ("cat", "act"),
        ("cd", "d"), ("god", "dog"), ("A", "a b"), ("12.5%", "12.5"), ("3:30 p.m.", "3:30 a.m."),
        ("3:30 p.m.", "15:30 a.m."), ("3:30", "3.5"), ("3:30", "3:30:30"), ("January 5", "5"),
        ("January 5", "January 6"), ("January 5", "June 5"), ("May 5, 2024", "May 2024"),
        ("2024-01-05", "2018"), ("1/2/2023", "1/2023"), ("1/2/2023", "0.000247"),
        ("St. Louis", "St. Lucia"), ("O'Brien", "O'Brian"), ("U.S.", "U.K."),
        (r"T_{\text{max}}", r"T_{\text{min}}"), ("x_{n+1}", "x_n"), ("x_{n+1}", "x_n+1"),
        ("x_{12}", "x_1"), ("2+3i", "2-3i"), ("2+3i", "2+3"), ("i", "1"),
        ("[1,2)", r"\{x\mid 1<x<2\}"), ("[1,2)", r"\{y \mid y>1\}"), (r"\{x|x>3\}", r"\{x|x<3\}"),
        (r"\{1,2\}", r"\{x|1<x<2\}"), (r"\mathbb{R}", r"\mathbb{Q}"), (r"x\neq 1,2", r"x\neq 1"),
        (r"x\neq 1,2", r"x\neq 1,3"), (r"x\neq 1", r"x\neq 1,2"),
        (r"x\neq 1,2", r"x\neq 1, y\neq 2"), (r"x\neq 1,2", r"x\neq 1 or x\neq 2"),
        ("2025!", "2025"), ("2025!", "2026!"), ("2025!", "2025!!"), ("2^{5000}", "2^{5000}+1"),
        ("10^{10000}", "10^{10000}+1"), ("10^{10000}+1", "10^{10000}"),
        ("10^{10000}", "10^{100^2}+0"), ("5", r"\color{red}{6}"), ("5", r"\color{5}{6}"),
        ("5", "`6`"), ("5", "```\n6\n```"), ("5", r"\underline{5}6"), ("x", r"\text{y}"),
        ("120", "C_{10}^{4}"), ("10", "C_2^5"), ("3", r"\lfloor\pi\rfloor+1"),
        ("1", r"\lceil 0.99999999999999999999999\rceil-1"), ("6.02x10^23", "6.02x10^22"),
        ("3x", "3 x 10"),
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
    "answer", ["n(n+1)=6", "p(p-1)=6", "t(x+1)=6", "N(x+1)(x-2)=6", "x(2)=6", "2AB=6", "|x|=6"]
)
def test_equation_is_not_a_named_value(answer):
    assert not equivalent("6", answer)
    assert equivalent(answer, answer)


@pytest.mark.parametrize("verdict", ATTACKED)
def test_attacks_from_both_sides(verdict):
    assert not misjudged(ATTACKED[verdict], verdict == "right")


@pytest.mark.parametrize(
    "answer",
    [
        r"\\max5",
        r"\\gcd0.143",
        "f(x)<3=AB=",
        "2^{9000}=2^{9001}",
        "f(x=",
        r"\\max[1,2)",
        r"\\{x|",
        "(x,y)=3",
        "='",
        "¥₹",
        "x_1=",
    ],
)
def test_broken_new_notation_is_wrong(answer):
    assert not equivalent("5", answer) and not equivalent("x", answer)


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
    "gold",
    ["nan", "NaN", "None", "null", "N/A", "", " ", r"\text{None}", "0/0", "5 = 5"]
    # beyond the limits
    + [r"2^{300}=\sqrt{2}", r"\pi=2^{1000}", r"10^{80}x=\pi", r"x^{100}=\pi"],
)
def test_gold_that_nothing_can_equal_is_an_error(gold):
    with pytest.raises(ValueError, match="gold answer"):
        equivalent(gold, gold)


@pytest.mark.parametrize(
    "gold, answer",
    [
        (r"x=\pm2", "x^2=4"),
        (r"x=\pm2", "2x=4"),
        (r"y=\pm\frac{3}{4}x", "3x-4y=0"),
        (r"x=1\pm\sqrt2", "x-2=0"),
        ("5", "千" * 400),
        ("5", "*" + r"\$" * 400),
        ("9", r"**\$1 + \$2 + \$3 + \$4 + \$5 + \$6 + \$7 + \$8 = \$9** in total"),
        ("5", "5 cm^x"),
        ("d(A,B)=12", "(d,a)=(1,2)"),
    ],
)
def test_mixed_notation_is_wrong_and_raises_nothing(gold, answer):
    assert equivalent(gold, gold) and not equivalent(gold, answer)


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
        ("\\boxed{5}\n**Answer:**", "5"),
        ("The final answer is: 5", "5"),
        ("Answer:\n5", "5"),
        ("最终答案：5", "5"),
        ("<think>a</think>2+3\n#### 5", "5"),
        ("#### $1,234", "1234"),
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
        "<answer>Answer: 6\nBut it is 5</answer>",
        "<answer>5</answer> \\boxed{6}",
        "<think>\\boxed{6}</think> The answer is 6.",
        "<think>Answer: 6</think> I do not know.",
        "\\boxed{6} or \\boxed{5}",
        "\\boxed{6",
        "\\boxedx{6}",
        "The answer: 6 is wrong.",
        "#### 6 ways",
        "### 6",
    ],
)
def test_what_is_not_the_answer(completion):
    assert not equivalent("6", extract(completion) or "")
