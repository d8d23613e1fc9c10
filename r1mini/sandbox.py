"""A reward for code: run a program that a model wrote, and compare what it gives with what the tests expect
[R1 §2.2.2].

The trusted side. Per test a fork of a small helper (`sandbox_child.py`) runs the program under a seccomp filter, with
a timer on its own CPU time and limits on memory and output. Request, standard input and output are files in memory;
the expected value stays here, and all that comes back is bytes, which are compared here. What is guaranteed and what
is not: docs/sandbox.md. Left out: real threads, files and third-party packages in solutions; partial credit.
"""

from __future__ import annotations

import atexit
import json
import os
import platform
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from r1mini.sandbox_child import END, OUTPUT_CAP, STARVED, SYSCALLS, canonical, encode, patience

CHILD = Path(__file__).resolve().with_name("sandbox_child.py")
LONGEST_CODE = 1 << 20  # characters
START = 60.0  # seconds in which a helper must be ready
GIVES_AWAY = 100  # times that a program gave the processor away, from which on it is not the machine that starved it


class SandboxError(RuntimeError):
    """The sandbox cannot be had here, or failed. It says nothing about the program."""


class Ended(SandboxError):
    """The helper process is gone."""


class Zygote:
    """The helper process that forks once per test; used by one thread at a time. SandboxError if it does not start."""

    def __init__(self) -> None:
        system, machine = platform.system(), platform.machine()
        if system != "Linux" or machine not in SYSCALLS or sys.maxsize < 2**32:
            raise SandboxError(f"no sandbox on {system} {machine}: programs are run only on Linux with seccomp, "
                               f"on {' or '.join(SYSCALLS)}")
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Not -I, which would ignore the seed: sets have the same order every time. The environment has no secrets.
        environment = {"PYTHONHASHSEED": "0"}
        if "LD_LIBRARY_PATH" in os.environ:  # some interpreters start only with it
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-X", "utf8", str(CHILD)], stdin=theirs, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, cwd="/", start_new_session=True, env=environment)
        except OSError as error:
            self.control.close()
            raise SandboxError(f"the sandbox's helper process does not start: {error}") from error
        finally:
            theirs.close()
        EVERY.add(self)
        try:
            self.receive(START)
        except BaseException:
            self.close()
            raise

    def receive(self, seconds: float) -> bytes:
        """The helper's next message. SandboxError with its last words if it ended, or if it is silent for so long."""
        self.control.settimeout(seconds)
        try:
            if message := self.control.recv(4096):
                return message
            words = self.process.stderr.read().decode(errors="replace").strip() or "no reason given"
            words = words.splitlines()[-1]
        except TimeoutError:
            words = f"silent for {seconds:.0f} s"
        except OSError as error:
            words = str(error)
        raise Ended(f"the sandbox's helper process failed: {words}")

    def run(self, request: bytes, stdin: bytes, seconds: float, memory: int) -> tuple[bytes | None, float]:
        """Run one request. (Output, CPU seconds); the output is None if the program failed or gave too much."""
        files = []
        try:
            for data in (request, stdin, b""):
                files.append(memory_file(data))
            try:
                socket.send_fds(self.control, [json.dumps({"seconds": seconds, "memory": memory}).encode()], files)
            except OSError as error:
                raise Ended(f"the sandbox's helper process failed: {error}") from error
            end = self.receive(patience(seconds) + START)
            status, *times, given = END.unpack_from(end)
            fault = end[END.size:].decode(errors="replace")
            # Who sleeps for moments, again and again, is hardly seen asleep on a busy machine, but did it to itself: who
            # only computes gives the processor away a few times, if at all.
            if fault and not (fault == STARVED and given >= GIVES_AWAY):
                raise SandboxError(f"the sandbox failed and the program has no verdict: {fault} (status {status})")
            output = os.pread(files[2], OUTPUT_CAP + 1, 0)
            passed = status == 0 and not fault and len(output) <= OUTPUT_CAP
            return (output if passed else None), times[0] + times[2] + (times[1] + times[3]) / 1e6
        except OSError as error:
            raise SandboxError(f"the sandbox failed and the program has no verdict: {error}") from error
        finally:
            for file in files:
                os.close(file)

    def close(self) -> None:
        """End the helper and, by the kernel, its fork."""
        EVERY.discard(self)
        self.control.close()
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


EVERY: set[Zygote] = set()
IDLE: list[Zygote] = []  # one is taken per test and given back: threads share them, and start more if they need more


def close() -> None:
    """End all helpers; `judge` starts new ones when it needs them. Called when the interpreter ends."""
    IDLE.clear()
    for zygote in list(EVERY):
        zygote.close()


def forget() -> None:
    """In a fork of this process: its helpers are the parent's."""
    IDLE.clear()
    for zygote in EVERY:
        zygote.control.close()
        zygote.process.stderr.close()
        zygote.process.returncode = 0  # nothing for its destructor to wait for
    EVERY.clear()


atexit.register(close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)


def memory_file(data: bytes) -> int:
    """A descriptor of a private file in memory."""
    fd = os.memfd_create("r1mini")
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def run(request: bytes, stdin: bytes, seconds: float, memory: int) -> tuple[bytes | None, float]:
    """`Zygote.run` on a free helper. A helper that something killed is replaced once; SandboxError after that."""
    for last in (False, True):
        zygote = None
        while IDLE and zygote is None:
            with suppress(IndexError):  # another thread was faster
                zygote = IDLE.pop()
                if zygote.process.poll() is not None:
                    zygote.close()
                    zygote = None
        zygote = zygote or Zygote()
        try:
            result = zygote.run(request, stdin, seconds, memory)
        except Ended:
            zygote.close()
            if last:
                raise
        except BaseException:  # Ctrl-C among them: the late answer must not reach the next request
            zygote.close()
            raise
        else:
            IDLE.append(zygote)
            return result
    raise AssertionError("unreachable")


def text_lines(output: bytes) -> list[bytes]:
    """What is compared of a standard output: its lines without white space at their ends, without empty last lines."""
    lines = [line.rstrip() for line in output.split(b"\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def prepare(code: str, test: dict, where: str) -> tuple[bytes, bytes, bytes]:
    """(Request, standard input, expected bytes) of a test; ValueError if it is malformed."""
    try:
        if set(test) == {"stdin", "stdout"}:
            prepared = encode({"code": code}), test["stdin"].encode(), test["stdout"].encode()
        elif set(test) != {"call", "args", "expect"} or type(test["call"]) is not str or type(test["args"]) is not list:
            raise ValueError('it needs "stdin" and "stdout", or "call", "args" and "expect"')
        else:
            canonical(test["args"])  # refuses what JSON would change on the way
            request = {"call": test["call"], "args": test["args"], "code": code}
            prepared = encode(request), b"", canonical(test["expect"])
        if len(prepared[2]) > OUTPUT_CAP:
            raise ValueError("it expects more than a program may write")
        return prepared
    except (TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {error}") from error


def check(tests: list[dict]) -> list[tuple[bytes, bytes, bytes]]:
    """`prepare` of every test, for an empty program. ValueError if one is malformed, or if there is none."""
    if not isinstance(tests, list) or not tests:
        raise ValueError("no tests: every program would pass")
    return [prepare("", test, f"test {index}") for index, test in enumerate(tests)]


def judge(code: str, tests: list[dict], time_limit: float, memory_mb: int = 512) -> bool:
    """Does the program pass every test? The tests run in order, each in a process of its own, up to the first failure.

    A test {"stdin", "stdout"} runs the program as `__main__`, which must end with status 0. Compared are the bytes of
    the lines, without white space at the ends of lines and without empty lines at the end; nothing else is forgiven.
    A test {"call", "args", "expect"} calls a function of the program. Its value must be the expected JSON value, types
    included: True is not 1, 1 is not 1.0, 0.1 + 0.2 is not 0.3, dictionaries have string keys. Three exceptions: a tuple
    counts as a list (JSON has no other), -0.0 as 0.0, and a Counter, named tuple or other subclass of list, tuple or
    dict as what it holds.

    `time_limit` is CPU seconds per test, from 0.05 to a day; a program that sleeps is ended after as many seconds of
    wall clock. `memory_mb` is address space beyond the interpreter's. Output or value: up to 1 MiB.
    ValueError for a malformed test or limit; SandboxError if there is no sandbox or it failed. Safe with threads, each
    of which gets a helper process of its own, and with forks.
    """
    if type(code) is not str:
        raise ValueError(f"code: a string, not {type(code).__name__}")
    if not 0.05 <= time_limit <= 86400:
        raise ValueError(f"time_limit {time_limit}: from 0.05 s to 86400 s")
    if type(memory_mb) is not int or not 1 <= memory_mb <= 1 << 20:
        raise ValueError(f"memory_mb {memory_mb!r}: a whole number of MiB, from 1 to {1 << 20}")
    prepared = check(tests)
    if len(code) > LONGEST_CODE:
        return False
    text = encode(code)
    for test, (request, stdin, expected) in zip(tests, prepared):
        request = request.removesuffix(b'""}') + text + b"}"  # the code, once for all tests
        output = run(request, stdin, time_limit, memory_mb << 20)[0]
        if output is None:
            return False
        if output != expected and ("call" in test or text_lines(output) != text_lines(expected)):
            return False
    return True


def require() -> None:
    """SandboxError if programs cannot be run here."""
    run(b'{"code": ""}', b"", 1.0, 64 << 20)


def benchmark(seconds: float = 5.0) -> str:
    """Judgements a second of one thread on a small program that passes one test. The processor time beside it does not
    depend on what else the machine does; it includes the start of the helper."""
    request, stdin, expected = prepare("print(2 * int(input()))", {"stdin": "21\n", "stdout": "42\n"}, "benchmark")
    close()
    before = sum(os.times()[:4])
    run(request, stdin, 2.0, 512 << 20)  # starts the helper
    count, inside, start = 0, 0.0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        output, cpu = run(request, stdin, 2.0, 512 << 20)
        assert output == expected
        count, inside = count + 1, inside + cpu
    total = time.perf_counter() - start
    close()  # waits for it, so that its time is counted
    used = sum(os.times()[:4]) - before
    return (f"{count / total:.0f} judgements a second, {1000 * total / count:.2f} ms each; processor time "
            f"{1000 * used / count:.2f} ms each, {inside / used:.0%} of it in the programs' processes; "
            f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


if __name__ == "__main__":
    print(benchmark())
