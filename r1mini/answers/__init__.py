"""Compares a mathematical answer with the gold answer, in any notation. [R1 §2.2.2]"""

from r1mini.answers.equivalence import equivalent, extract, formula_tree, written_alike

__all__ = ["equivalent", "extract", "formula_tree", "written_alike"]
