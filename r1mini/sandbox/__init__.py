"""A reward for code: runs a program that a model wrote against tests [R1 §2.2.2].

This is the trusted side. For each test, a small helper process (`child.py`) forks a process that
runs the program under a seccomp filter, a timer on its own CPU time, and limits on memory and
output. The request, standard input and output are files in memory. Expected values stay here: only
bytes come back, and they are compared here. docs/sandbox.md lists what is guaranteed and what is
not. Left out: real threads, files and third-party packages in solutions; partial credit.
"""

import atexit
import os
import platform
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from r1mini.sandbox.child import (
    END,
    OUTPUT_CAP,
    STARVED,
    SYSCALLS,
    canonical,
    encode,
    starved_after,
)

CHILD = Path(__file__).resolve().with_name("child.py")
MAX_CODE = 1 << 20  # characters
START_TIMEOUT = 60.0  # seconds for a helper to become ready
# A program that yields the processor this often was not starved by the machine.
MIN_YIELDS = 100


class SandboxError(RuntimeError):
    """The sandbox is unavailable here, or it failed. This says nothing about the program."""


class HelperDied(SandboxError):
    """The helper process is gone."""


class Zygote:
    """The helper process, which forks once per test. One thread at a time may use it.

    SandboxError if it does not start.
    """

    def __init__(self) -> None:
        system, machine = platform.system(), platform.machine()
        if system != "Linux" or machine not in SYSCALLS or sys.maxsize < 2**32:
            raise SandboxError(
                f"no sandbox on {system} {machine}: programs are run only on Linux with seccomp, "
                f"on {' or '.join(SYSCALLS)}"
            )
        self.control, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Not -I, which would ignore the hash seed: with it, sets have the same order every time.
        # The program must not see this process's environment, which may hold secrets.
        environment = {"PYTHONHASHSEED": "0"}
        if "LD_LIBRARY_PATH" in os.environ:  # some interpreters need it to start
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-X", "utf8", str(CHILD)],
                stdin=child_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                start_new_session=True,
                env=environment,
            )
        except OSError as error:
            self.control.close()
            raise SandboxError(f"the sandbox's helper process does not start: {error}") from error
        finally:
            child_end.close()
        ZYGOTES.add(self)
        try:
            self.receive(START_TIMEOUT)
        except BaseException:
            self.close()
            raise

    def receive(self, seconds: float) -> bytes:
        """The helper's next message.

        HelperDied, with its last line on stderr, if it ended or sends nothing within `seconds`.
        """
        self.control.settimeout(seconds)
        try:
            if message := self.control.recv(4096):
                return message
            stderr = self.process.stderr.read().decode(errors="replace").strip()
            reason = (stderr or "no reason given").splitlines()[-1]
        except TimeoutError:
            reason = f"no answer within {seconds:.0f} s"
        except OSError as error:
            reason = str(error)
        raise HelperDied(f"the sandbox's helper process failed: {reason}")

    def run(
        self, request: bytes, stdin: bytes, seconds: float, memory: int
    ) -> tuple[bytes | None, float]:
        """Runs one request: (output, CPU seconds).

        The output is None if the program failed or wrote too much.
        """
        files = []
        try:
            for content in (request, stdin, b""):
                files.append(os.memfd_create("r1mini"))  # a private file in memory
                with open(files[-1], "wb", closefd=False) as file:
                    file.write(content)
                    file.seek(0)
            limits = encode({"seconds": seconds, "memory": memory})
            try:
                socket.send_fds(self.control, [limits], files)
            except OSError as error:
                raise HelperDied(f"the sandbox's helper process failed: {error}") from error
            message = self.receive(starved_after(seconds) + START_TIMEOUT)
            status, *times, yields = END.unpack_from(message)
            fault = message[END.size :].decode(errors="replace")
            # On a busy machine, a program that sleeps for moments again and again is rarely seen
            # asleep, but it starved itself. One that only computes hardly ever yields.
            if fault and not (fault == STARVED and yields >= MIN_YIELDS):
                raise OSError(f"{fault} (status {status})")
            output = os.pread(files[2], OUTPUT_CAP + 1, 0)
            if status or fault or len(output) > OUTPUT_CAP:
                output = None
            return output, times[0] + times[2] + (times[1] + times[3]) / 1e6
        except OSError as error:
            raise SandboxError(
                f"the sandbox failed and the program has no verdict: {error}"
            ) from error
        finally:
            for file in files:
                os.close(file)

    def close(self) -> None:
        """Ends the helper. The kernel then ends its fork."""
        ZYGOTES.discard(self)
        self.control.close()
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


ZYGOTES: set[Zygote] = set()
# A test takes one and returns it. Threads share them, and start another when none is idle.
IDLE: list[Zygote] = []


def close() -> None:
    """Ends all helpers; `judge` starts new ones as needed. Called when the interpreter exits."""
    IDLE.clear()
    for zygote in list(ZYGOTES):
        zygote.close()


def disown_helpers() -> None:
    """Called in a fork of this process: the helpers belong to the parent."""
    IDLE.clear()
    for zygote in ZYGOTES:
        zygote.control.close()
        zygote.process.stderr.close()
        zygote.process.returncode = 0  # so that its destructor waits for nothing
    ZYGOTES.clear()


atexit.register(close)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=disown_helpers)


def idle_zygote() -> Zygote:
    """An idle helper that is still alive, or a new one."""
    while IDLE:
        with suppress(IndexError):  # another thread took the last one
            zygote = IDLE.pop()
            if zygote.process.poll() is None:
                return zygote
            zygote.close()
    return Zygote()


def run(request: bytes, stdin: bytes, seconds: float, memory: int) -> tuple[bytes | None, float]:
    """`Zygote.run` on an idle helper. If the helper dies, one more try, then SandboxError."""
    for last_try in (False, True):
        zygote = idle_zygote()
        try:
            result = zygote.run(request, stdin, seconds, memory)
        except BaseException as error:  # Ctrl-C too: a late reply must not answer the next request
            zygote.close()
            if last_try or not isinstance(error, HelperDied):
                raise
        else:
            IDLE.append(zygote)
            return result


def text_lines(output: bytes) -> list[bytes]:
    """The part of standard output that is compared.

    These are its lines without trailing white space, and without empty lines at the end.
    """
    return [line.rstrip() for line in output.rstrip().split(b"\n")]


def prepare(test: dict, where: str) -> tuple[bytes, bytes, bytes]:
    """(request, standard input, expected bytes) of a test, with an empty program.

    ValueError naming `where` if it is malformed.
    """
    try:
        comparison = "expect" if "expect" in test else "equals"
        if set(test) == {"stdin", "stdout"}:
            request, stdin, expected = {}, test["stdin"].encode(), test["stdout"].encode()
        elif (
            set(test) - {"setup"} == {"call", "args", comparison}
            and [type(test["call"]), type(test["args"])] == [str, list]
            and type(test.get("setup", "")) is str
        ):
            canonical(test["args"])  # raises for values that JSON would change
            request = {**test, "exact": comparison == "expect"}
            stdin, expected = b"", canonical(request.pop(comparison), request["exact"])
        else:
            raise ValueError(
                'it needs "stdin" and "stdout", or "call", "args" and one of "expect" and "equals"'
            )
        if len(expected) > OUTPUT_CAP:
            raise ValueError("it expects more than a program may write")
        return encode({**request, "code": ""}), stdin, expected
    except (TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {error}") from error


def check(tests: list[dict]) -> list[tuple[bytes, bytes, bytes]]:
    """`prepare` for every test.

    ValueError if a test is malformed, or if there are none.
    """
    if not isinstance(tests, list) or not tests:
        raise ValueError("no tests: every program would pass")
    return [prepare(test, f"test {index}") for index, test in enumerate(tests)]


def judge(code: str, tests: list[dict], time_limit: float, memory_mb: int = 512) -> bool:
    """Does the program pass every test?

    Tests run in order, each in its own process, up to the first failure.

    A test {"stdin", "stdout"} runs the program as `__main__`; it must end with status 0. Its output
    is compared line by line as bytes, ignoring only white space at the ends of lines and empty
    lines at the end.

    A test {"call", "args", "expect"} calls a function of the program. Its value must be the
    expected JSON value, with the same types: True is not 1, 1 is not 1.0, 0.1 + 0.2 is not 0.3, and
    dictionary keys are strings. Three exceptions: a tuple counts as a list (JSON has no tuples),
    -0.0 as 0.0, and a Counter, named tuple or other subclass of list, tuple or dict as the plain
    type. With "equals" in place of "expect", numbers compare as by Python's `==`: 25.0 is 25. Code
    in "setup" runs before the program, in the same module.

    `time_limit`: CPU seconds per test, from 0.05 to a day; a program that sleeps is killed after as
    many seconds of wall-clock time. `memory_mb`: address space in MiB, beyond the interpreter's
    own. Output and values are limited to 1 MiB. ValueError for a malformed test or limit;
    SandboxError if the sandbox is unavailable or failed. Safe with forks, and with threads, each of
    which gets its own helper process.
    """
    if type(code) is not str:
        raise ValueError(f"code: must be a string, not {type(code).__name__}")
    if not 0.05 <= time_limit <= 86400:
        raise ValueError(f"time_limit {time_limit}: must be from 0.05 to 86400 seconds")
    if type(memory_mb) is not int or not 1 <= memory_mb <= 1 << 20:
        raise ValueError(f"memory_mb {memory_mb!r}: must be an integer from 1 to {1 << 20}")
    prepared = check(tests)
    if len(code) > MAX_CODE:
        return False
    text = encode(code)
    for test, (request, stdin, expected) in zip(tests, prepared):
        request = request.removesuffix(b'""}') + text + b"}"  # the code, encoded once for all tests
        output = run(request, stdin, time_limit, memory_mb << 20)[0]
        if output is None:
            return False
        if output != expected and ("call" in test or text_lines(output) != text_lines(expected)):
            return False
    return True


def require() -> None:
    """SandboxError if programs cannot be run on this machine."""
    run(b'{"code": ""}', b"", 1.0, 64 << 20)


def benchmark(seconds: float = 5.0) -> str:
    """The speed at which one thread judges a small program with one test.

    CPU time is reported too, because it does not depend on the machine's other work; it includes
    starting the helper.
    """
    request = encode({"code": "print(2 * int(input()))"})
    close()
    before = sum(os.times()[:4])
    require()  # starts the helper
    cpu_times, start = [], time.perf_counter()
    while time.perf_counter() - start < seconds:
        output, cpu_time = run(request, b"21\n", 2.0, 512 << 20)
        assert output == b"42\n"
        cpu_times.append(cpu_time)
    total, count = time.perf_counter() - start, len(cpu_times)
    close()  # waits for the helper, so that its CPU time is counted
    used = sum(os.times()[:4]) - before
    return (
        f"{count / total:.0f} judgements a second, {1000 * total / count:.2f} ms each; "
        f"CPU time {1000 * used / count:.2f} ms each, {sum(cpu_times) / used:.0%} of it in the "
        f"programs' processes; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"
    )
