"""Measures how many programs the sandbox judges per second: `python -m r1mini.sandbox`."""

from r1mini.sandbox import benchmark

if __name__ == "__main__":
    print(benchmark())
