"""Compares a mathematical answer with the gold answer, in any notation. [R1 §2.2.2]"""

from r1mini.answers.equivalence import choice_and_text, equivalent, extract, formula, written_alike

__all__ = ["choice_and_text", "equivalent", "extract", "formula", "written_alike"]
