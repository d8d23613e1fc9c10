"""Is an answer in mathematics the gold answer, however it is written? [R1 §2.2.2]"""

from r1mini.answers.equivalence import equivalent, extract

__all__ = ["equivalent", "extract"]
