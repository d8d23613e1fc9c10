"""A table of gold answers and answers by kind, including cases that other graders get wrong; properties; hostile strings.

`python tests/answers/test_equivalence.py 100000` fuzzes with that many strings and prints the times.
"""

import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mini.answers import equivalent, extract
from r1mini.answers.equivalence import PI

PI_60 = "3.14159265358979323846264338327950288419716939937510582097494"
MATRIX = r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"

# kind: gold, then answers that are right, then answers that are wrong
# fmt: off
TABLE = {
    "whole numbers": [
        ("42",
         ["$$42$$", "**42**", "42\xa0", "42", " 42 ", "42.", "+42", "42.0", "042", "$42$",
          r"\(42\)", r"\boxed{42}", r"\text{42}", "84/2", "{42}"],
         ["24", "-42", "4 2", "42 42", "42, 42", "42 or 43", "4242", "42x", "42!", "", " ", ".",
          "42..", "4_2", "forty-two"]),
        ("-7",
         ["-7", "\N{MINUS SIGN}7", "- 7", "-7.0", "-(7)"],
         ["7", "--7", "7-", "+7", r"\pm 7"]),
        ("0", ["0", "-0", "0.0", "0/5"], ["", "1/0", "0/0", "0^0", "-", r"\emptyset"]),
        ("24", ["4!", "24"], ["4", "4!!", "0!", "(-4)!", "4.5!"]),
        ("1024",
         ["2^{10}", "2**10", "2^10", "1,024", "32^2", "1024 bytes"],
         ["2^{1}0", "210", "2*10", "1.024"]),
        ("30",
         ["5*6", "(5)(6)"],
         ["{5}{6}", r"\boxed{5}\boxed{6}", r"5\quad 6", "5 6", "3{0}", r"3\text{0}"]),
        ("-4", ["-2^2"], ["(-2)^2", "4"]),
        ("512", ["2^3^2"], ["(2^3)^2"]),
        ("14", ["14", "2+3*4"], ["(2+3)*4", "2+3", "20"]),
    ],
    "thousands": [
        ("1234",
         [r"1\,234", "1,234", "1{,}234", r"1,\!234", "1234", r"\boxed{1,234}"],
         ["1.234", "1 234", "12,34", "1,2,34", "1,,234", "123,4"]),
        ("1,234,567", ["1234567", "1,234,567"], ["1,234567", "1234,567", "1,234,56", "1,234"]),
        ("1,234.5", ["1234.5", "2469/2"], ["1.234,5", "12345"]),
        ("(1,234)", ["(1, 234)", "(1,234)"], ["1234", "(1234)", "1,234", "(1{,}234)"]),
        ("1,2345", ["1, 2345", "2345, 1"], ["12345", "(1,2345)"]),
        ("0,123", ["0, 123"], ["123", "0.123"]),
        (r"\frac{1,000}{3}", ["1000/3"], ["333.333", "1/3"]),
    ],
    "fractions": [
        (r"\frac{1}{3}",
         ["1/3", r"\frac13", r"\dfrac{1}{3}", r"\tfrac 1 3", "2/6", r"\frac{-1}{-3}",
          r"0.\overline{3}", "(1)/(3)", "3^{-1}"],
         ["0.333", "0.3333333333", "0.33333333333333333333333333333333333333", "3", "1/3 or 1/2",
          "1/3, 1/3", "-1/3", "1|3", r"\frac{1}{3", r"\frac{1}", "1//3", "0.3"]),
        (r"-\frac{3}{4}",
         ["-3/4", r"\frac{-3}{4}", r"\frac{3}{-4}", "-0.75", r"-\frac34", "-75%"],
         ["3/4", r"\frac{-3}{-4}", "-4/3"]),
        (r"\frac{5}{2}",
         ["2.5", r"2\frac{1}{2}", r"2\frac12", "2 1/2", "5 / 2", r"5\div 2"],
         ["2 5", "2,5", r"2\cdot\frac12", r"2\frac52", "21/2", "2 1 / 2 2"]),
        (r"-\frac32", ["-1\\frac12", "-1 1/2", "-1.5"], [r"1\frac12", r"-1+\frac12"]),
        ("3", [r"2\frac32", "9/3"], ["2 3/2", r"\frac{9}{3}3"]),
        (r"0.\overline{142857}", ["1/7"], ["0.142857", r"0.\overline{14}"]),
        (r"0.1\overline{6}", ["1/6"], ["0.16", "0.1666666"]),
    ],
    "decimals and rounding": [
        ("0.5",
         ["1/2", "0.50", ".5", "50%", r"\frac{1}{2}"],
         ["0.49", "0.51", "0.499999999", "0.5000001", "6/13", "5", "0,5", "0..5"]),
        ("0.333",
         ["0.333", "1/3", "0.3333", "0.3330"],
         ["0.334", "0.33", "0.3335", "0.3", "-1/3", "333", "0.3324", "0.333, 0.3333"]),
        ("0.67", ["2/3", "0.67", "0.6667"], ["0.666", "0.672", "67/101", "0.7"]),
        ("0.143", ["1/7"], ["0.1432", "10/70.1"]),
        ("14.29%", ["1/7", "0.142857"], ["14.288%"]),
        ("33.33", ["100/3"], ["33.3", "33.334"]),
        ("0.44", ["11/25"], ["4/9", "0.444", "0.4401"]),
        ("0.14", ["7/50"], ["1/7", "0.143"]),
        ("0.38", ["19/50"], ["3/8", "0.375"]),
        ("$0.38", ["0.38"], ["$0.375"]),
        ("0.216", ["27/125"], ["0.2163"]),
        ("0.512", ["64/125"], ["0.5119"]),
        ("1.331", ["1.1^3"], ["1.3312"]),
        ("12.345", ["2469/200"], ["12.3449", "12.35"]),
        ("0.999", ["0.999"], ["0.9994", "1"]),
        ("12.2", ["61/5"], [r"5\sqrt{6}", "12.23"]),
        ("3.14",
         [r"\pi", "3.14", "157/50"],
         ["22/7", "3.1416", "3.142", "3.1", "25/8", "3", r"-\pi", "e"]),
        ("1.414", [r"\sqrt{2}"], ["1.4142", "1.41", r"\sqrt{3}", "1.4146"]),
        ("0.25", ["1/4", "25%"], ["0.254", "17/67", "0.2451"]),
        ("1.125", ["9/8"], ["1.1253", r"\sqrt{1.2656}", "1.1249"]),
        ("0.001", ["1/1000", "10^{-3}"], ["0.0012", "0.0009", "0"]),
        ("12.50", ["12.5"], ["12.499", "12.504", "12"]),
        ("66.7", ["66.7"], ["66.66", "66.74"]),
        ("-0.333", ["-1/3"], ["1/3", "0.333"]),
        (r"33.3\%", ["1/3", "33.3%", "0.333"], ["33.3", "34%", "1/4"]),
        ("0.3", ["3/10"], ["1/3", "0.33", "0.34"]),
        ("(0.333, 2)", ["(1/3, 2)"], ["(2, 1/3)", "(0.334, 2)"]),
    ],
    "percentages": [
        (r"50\%",
         ["50%", "0.5", "1/2", "50 %", "50 percent", r"50\text{ percent}"],
         ["50", "0.5%", "5%", "%50", "50%%"]),
        ("0.005", ["0.5%"], ["50%%", r"50\%\%", "50"]),
        ("50", ["50"], ["50%", r"50\%", "0.5"]),
        ("12.5%", ["1/8", "0.125", r"12.5\%"], ["12.5", "12%", "13%"]),
        ("-5%", ["-0.05", "-1/20"], ["-5", "5%"]),
        ("150%", ["1.5", "3/2"], ["150", "1.5%"]),
    ],
    "scientific notation": [
        (r"1.2\times 10^{-3}",
         ["1.2e-3", "1.2E-03", "0.0012", "1.2*10^-3", r"1.2\cdot10^{-3}", "12e-4",
          r"12 \times 10^{-4}"],
         ["1.2e3", "1.2e-4", "1.2", "1.2e", "1.2e-3e", "1.2*10-3", "0.001", "0.00121"]),
        ("6.02e23", [r"6.02 \times 10^{23}", "602e21"], ["6.02e22", "6.022e23", "6.02"]),
        ("300000", ["3e5", "3 \\times 10^5", "3 x 10^5", "300,000"], ["3e6", "300.000"]),
    ],
    "roots": [
        (r"\sqrt{2}",
         ["sqrt(2)", "√2", r"\sqrt2", "2^{1/2}", "2^0.5", r"\frac{2}{\sqrt{2}}", r"\sqrt{8}/2",
          r"\sqrt[4]{4}"],
         ["1.414", "1.41421356237309504880168872420969807856967187537694", "2", r"-\sqrt{2}",
          r"\pm\sqrt{2}", r"\sqrt{2", r"\sqrt{}", r"\sqrt[]{2}", "sqrt", "99/70"]),
        (r"2\sqrt{3}",
         ["√12", "sqrt 12", "2√3", r"\sqrt{12}", r"\sqrt{3}\cdot 2", "2*sqrt(3)",
          r"\frac{6}{\sqrt3}", r"\sqrt{3}+\sqrt{3}"],
         [r"\sqrt{6}", r"\sqrt12", r"3\sqrt{2}", r"\sqrt{23}", "3.4641016"]),
        (r"\sqrt[3]{5}",
         ["5^{1/3}", r"5^{\frac13}"],
         [r"\sqrt{5}", r"3\sqrt{5}", r"\sqrt[5]{3}", r"\sqrt[3,3]{5}", r"\sqrt[3){5}"]),
        ("-2",
         [r"\sqrt[3]{-8}", r"-\sqrt{4}", "(-8)^{1/3}"],
         [r"\sqrt{-4}", r"\sqrt{4}", r"\sqrt[2]{-8}", r"\sqrt[0]{-8}"]),
        (r"\frac{1+\sqrt{5}}{2}",
         [r"(1+\sqrt5)/2", r"\frac12+\frac{\sqrt5}{2}", r"\frac{2}{\sqrt5-1}"],
         [r"1+\sqrt5/2", r"\frac{1-\sqrt{5}}{2}", "1.6180339887"]),
        (r"\sqrt{3-2\sqrt2}", [r"\sqrt{2}-1"], [r"1-\sqrt2"]),
    ],
    "constants and functions": [
        (r"\pi",
         ["pi", "π", r"\frac{2\pi}{2}"],
         ["3.14", PI_60, "22/7", "355/113", r"\pi+10^{-80}", r"\pi(1+10^{-80})", "p*i",
          r"180^\circ", "Pi"]),
        (r"\frac{\pi}{4}",
         ["pi/4", r"0.25\pi", r"\pi/4", r"\frac14\pi"],
         ["0.785398", r"4/\pi", r"\pi"]),
        ("2e", ["e*2", "2e", "e+e", r"2\exp(1)"], ["2", "5.43656", "2E", "e^2"]),
        (r"e^{2}", ["e^2", "exp(2)", "e*e"], ["7.389", "2e"]),
        (r"\ln 2", ["ln(2)", r"-\ln\frac12", r"\ln{2}"], [r"\log 2", "0.693147", r"\ln 3"]),
        ("3",
         [r"\log_2 8", r"\log_{2}{8}", r"\log 1000", r"\ln(e^3)", r"\log_28"],
         [r"\log_8 2", r"\ln 8", r"\log_1 5", r"\ln(-3)"]),
        (r"\frac12",
         [r"\sin 30^\circ", r"\cos\frac{\pi}{3}", r"\sin(\pi/6)", r"\sin^2 45^\circ"],
         [r"\sin 30", r"\sin^{-1} 30", r"\sin"]),
        ("0",
         [r"\sin\pi", r"\cos 90^\circ", r"\tan 0", r"e^0-1"],
         [r"\cos 0", r"\tan 90^\circ", r"\ln 0", r"10^{-200}", "e^{-1000}"]),
        (r"1+\sqrt2", [r"\sqrt2+1"], [r"1+\sqrt2+10^{-70}", r"\sqrt2"]),
        (r"10", [r"\binom{5}{2}", r"\dbinom 53"], [r"\binom{2}{5}", r"\frac{5}{2}"]),
        (r"\cos^2 x+\sin^2 x", ["1"], [r"\cos x^2+\sin x^2", r"\sin^2 x+\cos^2 y", "x/x+0.0001"]),
        ("1",
         ["x^0", r"\ln e", "7!/5040"],
         [r"\infty/\infty", r"\infty^0", r"\cos(10^{-60})", "2^{10^{-70}}", r"e^{10^{-30}}",
          r"\ln 0/\ln 0", r"\sqrt[99]{" * 6 + "2" + "}" * 6, "0.9999999999",
          r"\pi(1+10^{-40})(1-10^{-40})/\pi"]),
        ("7", [r"\log 10000000", r"\sqrt{49}"], [r"\sqrt[7]{7}"]),
        (r"\infty",
         ["infinity", "∞", "inf", r"+\infty"],
         [r"-\infty", "1/0", "10^100", r"\pm\infty"]),
    ],
    "units": [
        (r"5\text{ cm}",
         ["5 cm", "5cm", "5", r"5\,\mathrm{cm}", "5 centimeters", "5.0 cm", r"5~\text{cm}"],
         ["5 m", "5 km", "5 cm^2", "5 inches", "0.05 m", "50 mm", "6 cm", "cm", "5 cm or 6 cm",
          "5 cm 6", "5 cm tall", "5 cm not", "5 cm^e", "5 cm^x", "5 cm^"]),
        (r"5\text{ m}", ["5 m", "5m", "5 meters", "5"], ["5 cm", "5 n", "5 m^2"]),
        ("5",
         ["5", "$5", r"\$5", r"$\$5$", "5 dollars", "$5.00", "€5", "5 USD", "5元", r"5^\circ",
          r"5\degree", r"5^{\degree}", "5°", "5 degrees", "5 cm", "5 apples", "5 cents", "5 km",
          "5 rad", "5 dollars per day", r"5^\circ C"],
         ["$5 million", "5 is wrong", "5%", "5 thousand", "5 dozen", "5万", "5千"]),
        ("70,000", ["$70,000", r"\$70{,}000"], ["$70", "$70 thousand and 1"]),
        ("$5", ["5 dollars"], ["€5", "5 euros", r"5^\circ"]),
        ("€5", ["5", "5 euros"], ["$5"]),
        ("5元", ["5", "5 元", "5 yuan"], ["5 cm", "5个"]),
        ("12厘米", ["12", "12 cm"], ["12米", "12 m", "0.12"]),
        ("5 hours and 30 minutes",
         ["30 minutes, 5 hours"],
         ["30, 5", "5, 30", "5 hours, 30", "5 minutes, 30 hours"]),
        (r"7\text{ apples} and 3\text{ pears}",
         ["3 pears and 7 apples"],
         ["3, 7", "3 apples, 7 pears"]),
        (r"12\text{ cm}^2",
         ["12 cm^2", "12 square centimeters", r"12\text{ cm}^{2}", "12 sq cm", r"12\text{ cm^2}"],
         ["12 cm", "12 cm^3", "12 cubic centimeters", "144 cm"]),
        (r"\$5.50",
         ["$5.50", "5.5", r"\$5.5", "5.50 dollars"],
         [r"5.50\%", "550 cents", "$55", "-$5.50"]),
        (r"10\text{ m/s}",
         ["10 m/s", "10 meters per second", "10"],
         ["10 m", "10 s/m", "10 km/s", "10 mph"]),
        (r"90^\circ",
         ["90", "90°", "90 degrees", r"90^{\circ}", r"90\text{ degrees}"],
         [r"\pi/2", r"90^0", "90 rad", "9^\\circ", r"180^\circ"]),
        (r"20^\circ\text{C}", ["20 °C", r"20^\circ C", "20"], [r"20^\circ F", "68"]),
        (r"7\text{ apples}",
         ["7 apples", "7", "7 apple"],
         ["7 oranges", "7 apples and 2 pears", "apples"]),
        ("5 million", ["5000000", "5,000,000", "5 million"], ["5", "5 billion", "5 millions of"]),
        (r"2x\text{ cm}", ["2x", "2x cm", "x+x"], ["2x m", "2"]),
        (r"10\pi\text{ cm}^2", [r"10\pi", r"10\pi cm^2"], ["31.4", "31.4 cm^2", r"10\pi cm"]),
    ],
    "intervals": [
        ("[1,2)",
         ["[1,2)", "[1, 2)", r"\left[1,2\right)", "[1.0,4/2)", r"1 \le x < 2"],
         ["(1,2)", "[1,2]", "(1,2]", "1,2", "[2,1)", "[1,2", "{1,2}", "1 < x < 2", "[1,2),[1,2)"]),
        (r"(-\infty, 3]",
         ["(-∞,3]", "x <= 3", r"x\leq 3", r"3 \ge x", r"x \in (-\infty,3]"],
         [r"(-\infty,3)", "x<3", r"(\infty,3]", "x >= 3", r"[-\infty,3]"]),
        (r"(-\infty,1)\cup(2,\infty)",
         [r"(2,\infty)\cup(-\infty,1)", "(-∞,1) ∪ (2,∞)", r"x \in (-\infty,1)\cup(2,\infty)"],
         [r"(-\infty,1),(2,\infty)", r"(-\infty,1]\cup(2,\infty)", r"(-\infty,1)",
          r"(-\infty,1)\cup(2,\infty)\cup(3,4)", "x<1 and x>2", r"(-\infty,\infty)"]),
        ("x > 5",
         [r"(5,\infty)", "5 < x", "x>5"],
         ["x >= 5", "y > 5", "x < 5", "5", "x = 6", "x > 5, x > 6", "x > 5 or e",
          r"\emptyset or x > 5"]),
        (r"x<1 \text{ or } x>2",
         [r"(-\infty,1)\cup(2,\infty)", "x>2 or x<1"],
         ["x<1", "x<1 and x>2", "x<1, x>2", "x<1 or y>2", "x<1 or 2"]),
        (r"(1,\infty)", ["x>1", r"\infty>x>1"], ["x>1, x<5", "1<5", "x>1 or x>2"]),
        ("[0,\\infty)", [r"x\geqslant 0", r"0\leqslant x"], [r"x\leqslant 0"]),
        (r"x\neq 1",
         [r"x \ne 1", r"(-\infty,1)\cup(1,\infty)"],
         ["1", "x=1", r"x\neq 2", r"y\neq 1", r"x\neq 1, x\neq 2"]),
        ("-1 < x < 1", ["(-1,1)", "1 > x > -1"], ["-1 < x", "[-1,1]", "-1 < x > 1"]),
    ],
    "sets and lists": [
        (r"\{1,2\}",
         ["{1,2}", r"\{2, 1\}", "1, 2", "2 and 1", r"\left\{1,2\right\}", r"\{1,1,2\}", "1;2"],
         ["(1,2)", "[1,2]", "1", "{1,2,3}", "12", "1,2,2", r"\{1\}", r"\{1,2", "1 2"]),
        ("1, 2, 3",
         ["3,2,1", "1, 2, and 3", r"\{1,2,3\}", "1 or 2 or 3", r"x=1, x=2, x=3"],
         ["1,2", "1,2,3,4", "1,2,2", "(1,2,3)", "123", "1-3", "1,2,3,", "x=1, y=2, z=3"]),
        (r"\pm 2",
         ["2, -2", "-2 or 2", "±2", r"x = \pm 2", r"\{-2,2\}", r"\mp 2"],
         ["2", "-2", "(2,-2)", r"\pm 3", "2,2"]),
        (r"1\pm\sqrt{2}",
         [r"1+\sqrt2, 1-\sqrt2", r"x=1\pm\sqrt2"],
         [r"1+\sqrt2", r"-1\pm\sqrt2", r"\pm 1+\sqrt 2"]),
        (r"\emptyset", [r"\varnothing", "∅", r"\{\}"], ["0", r"\{0\}", r"\{\emptyset\}", ""]),
        (r"\{5\}", [r"\{5\}", r"\{ 10/2 \}"], ["5", "(5)", r"\{5,6\}", "[5]"]),
        ("x=2, y=3",
         ["y=3, x=2", "x=2 and y=3"],
         ["2,3", "3,2", "x=3, y=2", "(2,3)", "x=2", "x=2, y=3, z=4"]),
        ("3",
         ["3"],
         ["2,3", "3,3", "{3,4}", "(3,4)", r"\{3\}", "[3]", "3 or 4", "3;4", "1,2,3,4,5", "3 and",
          r"3\pm 0", r"\boxed{3}\boxed{4}", r"\boxed{3}, \boxed{4}"]),
    ],
    "tuples": [
        ("(1,2)",
         ["(1,2)", "( 1 , 2 )", r"\left(1,2\right)", "(2/2, 2.0)"],
         ["(2,1)", "1,2", "{1,2}", "[1,2)", "(1,2,3)", "(1)", "12", "((1,2))x", "(1,2)(1,2)",
          "(1,2", "1,2)"]),
        (r"(3, \frac{\pi}{2})",
         ["(3, pi/2)", r"\left(3,\dfrac{\pi}{2}\right)"],
         ["(3, 1.5708)", r"(\frac{\pi}{2}, 3)"]),
        ("(1,(2,3))", ["(1,(2,3))"], ["(1,2,3)", "((1,2),3)"]),
        ("(1,2)",
         [r"\big(1,2\Bigr)", r"\langle 1,2\rangle"],
         [r"\langle 2,1\rangle", r"\langle 1,2"]),
    ],
    "ratios and times": [
        ("3:2",
         ["3 : 2", r"\text{3:2}"],
         ["2:3", "6:4", "1.5", "3/2", "3,2", "(3,2)", "3:2:1", "3:", ":2", "x:2", "3:2 or 2:3"]),
        ("7:30", ["7:30"], ["7.5", "730", "7:31", "30:7"]),
    ],
    "matrices": [
        (MATRIX,
         [r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", "[[1,2],[3,4]]",
          r"\begin{pmatrix} 1 & 2 \\ 3 & 8/2 \\ \end{pmatrix}"],
         [r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}", "[1,2,3,4]", "[[1,2],[3,5]]",
          r"\begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix}", "-2", "2" + MATRIX, MATRIX + MATRIX,
          r"\begin{pmatrix} 1 & 2 \\ 3 & 4", "[[1,2],[3,4],[5,6]]", "[[1,2],[3]]"]),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
         ["[[1],[2]]"],
         ["(1,2)", "[1,2]", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"]),
    ],
    "algebra": [
        ("x^2+2x+1",
         ["(x+1)^2", "1+2x+x^2", "x*x + 2*x + 1", "x(x+2)+1", "y = x^2+2x+1"],
         ["x^2+2x", "(x-1)^2", "y^2+2y+1", "X^2+2X+1", "x^2+2x+1, 4", "x^3+2x+1", "x = x^2+2x+1",
          "4"]),
        (r"\frac{x}{x+1}", [r"1-\frac{1}{x+1}", "x/(x+1)"], ["x/x+1", "1/(x+1)"]),
        ("xy", [r"y \cdot x", "x*y", "xy"], ["x+y", "yz", "xyz"]),
        ("2xy", ["2yx", "x*2*y", "xy+xy"], ["2x+y", "2 xyz", "2x"]),
        ("|x|",
         [r"\sqrt{x^2}", r"\left|x\right|", "|-x|", r"\lvert x\rvert"],
         ["x", "-x", r"\pm x"]),
        ("|x-1000|", ["|1000-x|"], ["1000-x", "x-1000"]),
        (r"\sqrt{x}", ["x^{1/2}", "x^{0.5}"], [r"\sqrt{|x|}", "x", r"\sqrt[4]{x^2}"]),
        (r"\ln(x^2)", [r"2\ln|x|"], [r"2\ln x", r"\ln x^3"]),
        ("1/2x", ["x/2", r"\frac12x"], [r"\frac{1}{2x}", "2/x"]),
        (r"2\sin\theta\cos\theta",
         [r"\sin(2\theta)", r"\sin 2\theta"],
         [r"\sin\theta", r"2\sin\theta"]),
        ("a^{n+1}", ["a*a^n", "a^n a"], ["a^n+1", "a^{n}"]),
        ("x_1+x_2", ["x_2+x_1", "x_{1}+x_{2}"], ["2x", "x_1+x_1", "x1+x2"]),
        (r"\cot x", [r"\frac{1}{\tan x}", r"\frac{\cos x}{\sin x}"], [r"\tan x", r"\csc x"]),
        (r"\sec^2 x", [r"\frac1{\cos^2 x}", r"1+\tan^2 x"], [r"\csc^2 x"]),
        ("3+4i", ["4i+3"], ["3-4i", "4+3i", "5", "7i"]),
    ],
    "even and odd, signs": [
        ("(-2)^n", [r"(-1)^n\cdot 2^n", "(-2)^{n+2}/4"], ["-2^n", "2^n"]),
        ("(-3)^{n-1}", [r"\frac{(-3)^n}{-3}"], ["3^{n-1}", "-3^{n-1}"]),
        (r"\frac{2^n+(-1)^n}{3}", [], [r"\frac{2^n-1}{3}", r"\frac{2^n+1}{3}"]),
        ("1-(-2)^n", [], ["1+2^n", "1-2^n"]),
        ("e^n+(-1)^n", [], ["e^n-1", "e^n+1"]),
        ("(-a)^n", ["(-1)^n a^n"], ["-a^n", "a^n"]),
        ("(-1)^{3x}", ["(-1)^x"], ["(-1)^{3y}", "-1", "1"]),
        ("(-1)^{m+n}", ["(-1)^{m-n}"], ["(-1)^m", "(-1)^n", "1", "-1"]),
        ("e^{(-2)^{n+x}}", [], ["e^{-2^{n+x}}", "e^{2^{n+x}}"]),
        ("(-2)^{x^3+2^n}", [], ["(-2)^{|x|^3+2^n}"]),
        (r"|a|\sqrt b", [r"\sqrt{a^2b}"], [r"a\sqrt b", r"-a\sqrt b"]),
        (r"|x|\sqrt{1-x^2}", [r"\sqrt{x^2-x^4}"], [r"x\sqrt{1-x^2}"]),
        ("|b|ac", [], ["abc", "|abc|", "a|bc|", "|a|bc"]),
        ("x", [], ["x+(7x-79)(3x-3700000)(101x-97)(3x+5)(x+100000)"]),
        ("n!", ["n(n-1)!", r"\frac{(n+1)!}{n+1}"], ["n", "(n+1)!", "(-1)^n n!", "n^n"]),
        (r"\binom{n}{2}", [r"\frac{n(n-1)}{2}"], [r"\binom n3", r"\frac{n(n+1)}{2}", "n(n-1)"]),
        (r"\binom{2n}{n}", [r"\frac{(2n)!}{(n!)^2}"], [r"\binom{2n}{2}", "0", "4^n"]),
        ("101_2", ["101_{2}"], ["5", "101", "101_3", "1012"]),
    ],
    "equations": [
        ("x = 5",
         ["5", "x=5", "5 = x", "x = 10/2", "$x=5$"],
         ["y=5", "x=6", "2x=10", "2x+3=13", "x=5=5", "x==5", "5=5", "x=x", "x", "x=5 or x=6",
          "x<=5"]),
        ("5",
         ["x = 5", "n=5", "2+3=5"],
         [r"x \in 5", r"\text{not}=5", "Answer = 5", r"\infty=5", "101_2=5", "4<5", r"\neq 5",
          r"\approx 5", "5=5", "2x=10", "xy=5", "x^2=5", "=5", "5="]),
        ("y = 2x+1",
         ["y=2x+1", "2x+1", "y = 1+2x", "y-2x=1"],
         ["y=2x", "x=2y+1", "f=2x+1", "y=2y+1"]),
        ("3x+2y=6",
         ["6x+4y=12", "2y=6-3x", "3x+2y-6=0", "12=6x+4y"],
         ["3x+2y=7", "3x-2y=6", "0=0", "x=x", "3x+2y", "(3x+2y-6)^2=0", "x(3x+2y-6)=0"]),
        ("x^2+y^2=1", ["y^2+x^2=1", "1=x^2+y^2"], ["x^2+y^2=2", "x^2-y^2=1", "y=1"]),
        ("x=1 or x=2",
         ["1,2", "x=2, x=1", r"\{1,2\}", "x=1,2"],
         ["x=1", "1", "x=1 or y=2", "(1,2)"]),
        ("2x+1",
         ["f(x)=2x+1", "P(x) = 1+2x"],
         ["f(x)=2x", "f(y)=2x+1", "x(2)=2x+1", "f(x)=f(x)+2x+1"]),
        (r"\frac12", [r"P(A)=\frac12"], [r"P(A)=\frac13", r"x(2)=\frac12", r"P(A)=P(B)=\frac12"]),
        ("f(x)=x", ["x", "f(x) = x"], ["f(x)=-x", "g(x)=x", "y"]),
        ("f(x)=x, f(x)=-x", ["f(x)=-x, f(x)=x", "x, -x"], ["f(x)=x"]),
        ("xy=0", ["2xy=0"], ["x=0", "y=0", "1/(xy)=0"]),
        ("[1,2]", [r"x \in [1,2]"], [r"x \in 1", r"[1,2] \in x"]),
        (r"S = \{1,2\}", [r"\{2,1\}", "1,2"], ["1", "(1,2)"]),
    ],
    "words": [
        ("Evelyn",
         ["evelyn", r"\text{Evelyn}", " EVELYN ", "Evelyn."],
         ["Eve", "Evelyn or Bob", "Evelyn, Bob", "not Evelyn", "E", "nylevE"]),
        (r"\text{no solution}",
         ["No solution", "no  solution", r"\text{No Solution}"],
         ["solution", "no", r"\emptyset", "no solutions exist"]),
        ("yes",
         ["Yes", "YES", r"\textbf{yes}"],
         ["no", "yes no", "yes or no", "yes, no", "y", "sey", "1"]),
        ("no", ["No", "NO", r"\text{no}"], ["on", "yes", "n", "o", "o n", "n o"]),
        ("CAB", ["CAB"], ["A B C", "C A B", "ABC"]),
        ("CO", ["CO"], ["Co", "OC", "C O", r"C\cup O"]),
        ("NaCl", ["NaCl"], ["ClNa", "Na"]),
        ("H_2O",
         ["H_2O", "H_{2}O", "H2O", r"\mathrm{H_2O}"],
         ["OH_2", r"H_2\cdot O", "HO", "H_2O_2"]),
        ("therapist", ["Therapist"], ["the rapist"]),
        ("even", ["Even"], ["odd", "even, odd", "odd or even", "neve"]),
        ("铁", ["铁", r"\text{铁}"], ["铜", "铁铜", "Fe"]),
        (r"\text{red}, \text{blue}",
         ["blue, red", "red and blue"],
         ["red", "red, blue, green", "red, red"]),
    ],
    "multiple choice": [
        ("(B)",
         ["B", "(B)", r"\text{B}", r"\text{(B)}", r"\textbf{(B)}", "b", "(b)", "B.", "$B$",
          r"\mathrm{B}"],
         ["A", "(A)", "A, B", "A or B", "(A)(B)", "AB", "BB", "(B) 5", "B or not", "(B) and (C)",
          "A B C D", "8", "ß", "not B", "{A,B}", "(A,B)"]),
        ("B",
         ["(B)", r"\text{B}", "B)", "b)", "**B**", "$$B$$"],
         ["C)", r"x \in B", "BA", "C", "B, C", "Bob", "B = C", "2B", "B^2"]),
        (r"\text{D}", ["D", "(D)", "d"], ["A", "D D", "ABCD"]),
        ("x", ["x", "(x)"], ["X", "y"]),
    ],
    "digits and letters of other scripts": [
        ("x^2", [], ["x²", "½"]),
        ("5", [], ["５", "٥", "५", "⁵", "⑤", "Ⅴ", "五", "5\u200b", "5\u0301", "\u202e5", "5\0"]),
        ("12", [], ["１２", "1２", "١٢"]),
        ("4", [], ["2²", "²", "2^²"]),
        ("A", [], ["Α", "А", "Ａ"]),
        ("e", [], ["ｅ", "е"]),
    ],
    "never executed, never slow": [
        ("1",
         ["1"],
         ["9**9**9", "9^9^9^9", "10^10^10", "10^{10^{10}}", "1e999999999", "9!!!!!", "99999!",
          "(((9!)!)!)!", "99**98**97", "(" * 500 + "1" + ")" * 500, "-" * 900 + "1", "1" * 900,
          "2^" * 300 + "1", r"\sqrt{" * 200, r"\frac" * 300, "1+" * 450 + "1", "{" * 999, "|" * 999,
          "__import__('os')", "exit()", "lambda: 1", "1 if 1 else 1", "0x1", "0b1", "1_0", "1j",
          "True", "None", "nan", "1;import os", "\\" * 999, "1" * 100000]),
    ],
}
# fmt: on
CASES = [
    (kind, gold, answer, right)
    for kind, rows in TABLE.items()
    for gold, *sides in rows
    for right, side in zip((True, False), sides)
    for answer in side
]
GOLDS = sorted({gold for _, gold, _, _ in CASES})


def test_table_has_enough_rows():
    assert len(CASES) >= 300


@pytest.mark.parametrize("kind", TABLE)
def test_grades_of_the_table(kind):
    wrong = [
        (gold, answer, f"should be {right}")
        for of, gold, answer, right in CASES
        if of == kind and equivalent(gold, answer) is not right
    ]
    assert not wrong


@pytest.mark.parametrize(
    "gold",
    [
        "",
        " ",
        "(",
        "1/0",
        "0^0",
        "9**9**9",
        "1 2",
        "5 = 5",
        r"\unknown",
        "x = x",
        "5 cm 6",
        "answer: 5",
        "٥",
        "x²+1",
        "½",
        r"x \in 5",
        "5 hours 30",
        "(" * 100,
        "1" * 2000,
        r"\sqrt{-1}",
        "x > 1, x < 5",
        "x is 5",
        "1,2,",
        r"\int x",
        "1e9999",
    ],
)
def test_unparsable_gold_is_an_error(gold):
    with pytest.raises(ValueError, match="gold answer"):
        equivalent(gold, "1")


@pytest.mark.parametrize(
    "completion, answer",
    [
        (r"<think>a</think>\boxed{5}", "5"),
        (r"\boxed{5}", "5"),
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"<think>\boxed{1}</think> \boxed{\frac{1}{2}} is it.", r"\frac{1}{2}"),
        (r"<think>\boxed{1}</think> nothing", None),
        (r"<think>\boxed{1}", None),
        (r"a</think>\boxed{2}", "2"),
        (r"<think>a</think>\boxed{1}</think>\boxed{2}", "2"),
        (r"<think>a</think><think>\boxed{2}", None),
        (r"\boxed{1} \boxed{2", None),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\}", None),
        (r"\boxed{{{5}}}", "{{5}}"),
        ("<answer> 5 </answer>", "5"),
        (r"\boxed{1}<answer>5</answer>", "5"),
        (r"<answer>\boxed{1}</answer>", "1"),
        ("<answer>5</answer><answer>5</answer>", None),
        ("<answer><answer>5</answer>", None),
        ("<answer>5", None),
        ("5</answer>", None),
        ("</answer>5<answer>", None),
        (r"</answer>\boxed{5}", None),
        ("<answer>5</answer></think>", None),
        ("<think><answer>4</answer></think><answer>5</answer>", "5"),
        ("<answer></answer>", ""),
        ("5", None),
        ("", None),
        (r"\boxed 5", "5"),
        (r"\boxed{" + "{" * 500_000, None),
    ],
)
def test_extracted_answer(completion, answer):
    assert extract(completion) == answer


def test_pi_has_enough_digits():
    mpmath = pytest.importorskip("mpmath")
    assert mpmath.almosteq(mpmath.mpf(0) + mpmath.mpf(str(PI)), mpmath.pi)
    with mpmath.workdps(118):
        assert mpmath.almosteq(mpmath.mpf(str(PI)), +mpmath.pi, abs_eps=mpmath.mpf("1e-115"))


numbers = st.one_of(
    st.integers(-(10**9), 10**9).map(str),
    st.fractions(max_denominator=10**6).map(str),
    st.decimals(-(10**6), 10**6, places=4).map("{:f}".format),
    st.builds(r"\frac{{{}}}{{{}}}".format, st.integers(-99, 99), st.integers(1, 99)),
    st.builds(r"{}\sqrt{{{}}}".format, st.integers(1, 99), st.integers(0, 99)),
)
structures = st.one_of(
    numbers,
    st.builds("({}, {})".format, numbers, numbers),
    st.builds(r"\{{{}, {}\}}".format, numbers, numbers),
    st.builds("[{}, {})".format, numbers, numbers),
    st.builds("x = {}".format, numbers),
    st.builds("{}x^2 + {}".format, st.integers(1, 99), st.integers(0, 99)),
)


@given(structures)
def test_everything_equals_itself(text):
    assert equivalent(text, text)


@given(st.fractions(max_denominator=20), st.fractions(max_denominator=20))
def test_exact_values_compare_as_fractions_in_either_order(a, b):
    for first, second in ((a, b), (b, a), (a, a + b - b)):
        text = rf"\frac{{{second.numerator}}}{{{second.denominator}}}"
        assert equivalent(str(first), text) is equivalent(text, str(first)) is (first == second)


@given(st.integers(-999, 999), st.integers(1, 6))
def test_decimal_equals_a_fraction_only_if_it_is_exact(n, places):
    written = f"{n / 7:.{places}f}"
    assert equivalent(f"{n}/7", written) is (n % 7 == 0)


@given(
    st.sampled_from(GOLDS),
    st.one_of(st.text(), st.text("0123456789.,+-*/^!%$()[]{}|\\=<>ex", max_size=40)),
)
def test_no_string_raises(gold, text):
    assert equivalent(gold, text) in (True, False)
    assert extract(text) is None or isinstance(extract(text), str)


PIECES = [
    *"0123456789.,;+-*/^!%$()[]{}|\\=<>_&~'\" \n\t\0",
    "x",
    "e",
    "i",
    "pi",
    "cm",
    "e9",
    "**",
    "99",
    "10^",
    "9!",
    "or",
    "and",
    "million",
    "∞",
    "²",
    "５",
    "−",
    "\u202e",
    "\ud800",
    r"\frac",
    r"\sqrt",
    r"\sqrt[",
    r"\left(",
    r"\right)",
    r"\pi",
    r"\infty",
    r"\pm",
    r"\cup",
    r"\text{",
    r"\boxed{",
    r"\begin{pmatrix}",
    r"\end{pmatrix}",
    r"\\",
    r"\{",
    r"\}",
    r"\sin",
    r"\log_",
    r"\ln",
    r"\exp",
    r"\tan",
    r"^\circ",
    r"\binom",
    r"\overline{",
    r"\%",
    r"\$",
    r"\in",
    "</think>",
    "<answer>",
    "</answer>",
]


def hostile(count, seed=0):
    """Random (gold, text): pieces of the grammar, mutations of correct answers, repeated pieces,
    deep nesting."""
    rng = random.Random(seed)
    for _ in range(count):
        _, gold, answer, _ = rng.choice(CASES)
        kind = rng.randrange(5)
        if kind == 0:
            text = "".join(rng.choices(PIECES, k=rng.randrange(1, 30)))
        elif kind == 1:
            at = rng.randrange(len(answer[:2000]) + 1)
            text = answer[:at] + rng.choice(PIECES) + answer[at + rng.randrange(3) :]
        elif kind == 2:
            text = "".join(rng.choices(PIECES, k=rng.randrange(1, 5))) * rng.randrange(1, 400)
        elif kind == 3:
            text = rng.choice(["9", "x", "1.5", "e", r"\pi", "99"]).join(
                rng.choices(
                    [
                        "^",
                        "**",
                        "!",
                        "*",
                        "+",
                        "/",
                        "-",
                        r"\sin ",
                        r"\sqrt ",
                        "(",
                        ")",
                        "{",
                        "}",
                        "|",
                        r"^{",
                        ",",
                    ],
                    k=rng.randrange(1, 60),
                )
            )
        else:
            depth = rng.randrange(1, 60)
            opening, closing = rng.choice(
                [
                    ("(", ")"),
                    ("{", "}"),
                    (r"\sqrt{", "}"),
                    (r"\frac{1}{1+", "}"),
                    ("|", "|"),
                    ("x^{", "}"),
                    (r"\sin(", ")"),
                    (r"e^{", "}"),
                    (r"\left(", r"\right)^{1.1}"),
                    ("[", "]"),
                    (r"\ln(1+", ")"),
                ]
            )
            text = opening * depth + rng.choice(["x", "1", "2", "9!", r"\pi"]) + closing * depth
        yield gold, text


def fuzz(count, seed=0):
    """CPU seconds of each call, so that other load on the machine does not count. Exceptions
    propagate."""
    times = []
    for gold, text in hostile(count, seed):
        start = time.thread_time()
        equivalent(gold, text)
        times.append(time.thread_time() - start)
        extract(text)
    return times


def test_hostile_strings_are_graded_quickly():
    assert max(fuzz(3000)) < 1


def test_verdicts_do_not_depend_on_threads():
    pairs = list(hostile(400, seed=1)) + [(gold, answer) for _, gold, answer, _ in CASES[:400]]
    alone = [equivalent(*pair) for pair in pairs]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda pair: equivalent(*pair), pairs)) == alone


if __name__ == "__main__":
    taken = fuzz(int(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(
        f"{len(taken)} hostile strings: median {1e3 * median(taken):.3f} ms, longest "
        f"{1e3 * max(taken):.1f} ms"
    )
    times = []
    for _, gold, answer, _ in CASES * 10:
        start = time.thread_time()
        equivalent(gold, answer)
        times.append(time.thread_time() - start)
    print(
        f"{len(CASES)} pairs of the table: median {1e3 * median(times):.3f} ms, longest "
        f"{1e3 * max(times):.1f} ms"
    )
