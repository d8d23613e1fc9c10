"""The untrusted side of the sandbox: the zygote, and in each of its forks one program from a model.

The zygote is a fresh interpreter without torch, site-packages or the environment. It imports what
solutions import, then forks once per test. It never reads a request: it only passes descriptors on,
so the memory that the next fork inherits holds nothing of the last program. The fork reads its
request, gives up every right, and runs the program. It holds descriptors 0, 1, 2 and, for a call,
3, each a private file in memory or /dev/null, and may use the system calls in `ALLOWED`. No other
file of the package executes text. `r1mini.sandbox` runs this file as a script, and imports from it
what both sides must agree on.
"""

import __future__

import atexit
import ctypes
import gc
import importlib
import json
import math
import os
import random
import signal
import site
import socket
import struct
import sys
import threading
import time
import types
from contextlib import suppress

with suppress(ImportError):  # Windows lacks it, where judge() refuses in its own words
    import resource

# What a program may import, because no file can be opened later. Includes what the standard library
# itself imports late (_strptime, _pylong, codecs). Names that this Python lacks are skipped.
MODULES = """
__future__ _pylong _strptime abc annotationlib argparse array ast atexit base64 binascii bisect
builtins bz2 calendar cmath codecs collections collections.abc colorsys concurrent.futures
contextlib contextvars copy copyreg cProfile csv dataclasses datetime decimal difflib doctest enum
errno fileinput fractions functools gc getopt graphlib gzip hashlib heapq hmac html html.parser
importlib importlib.util inspect io ipaddress itertools json keyword linecache locale logging math
mmap multiprocessing numbers operator optparse os os.path pathlib pickle pprint queue random re
reprlib resource sched secrets shlex shutil signal site stat statistics string string.templatelib
stringprep struct subprocess sys sysconfig tempfile textwrap threading time timeit token tokenize
traceback tracemalloc types typing unicodedata unittest urllib.parse uuid warnings weakref zlib
zoneinfo encodings.ascii encodings.base64_codec encodings.cp1252 encodings.cp437 encodings.hex_codec
encodings.idna encodings.iso8859_1 encodings.iso8859_15 encodings.latin_1 encodings.punycode
encodings.raw_unicode_escape encodings.rot_13 encodings.unicode_escape encodings.utf_16
encodings.utf_16_be encodings.utf_16_le encodings.utf_32 encodings.utf_32_be encodings.utf_32_le
encodings.utf_7 encodings.utf_8 encodings.utf_8_sig
"""

# A system call, and its number on x86-64 and on aarch64.
TABLE = """
read 0 63
write 1 64
close 3 57
fstat 5 80
lseek 8 62
mmap 9 222
mprotect 10 226
munmap 11 215
brk 12 214
mremap 25 216
rt_sigaction 13 134
rt_sigprocmask 14 135
rt_sigreturn 15 139
sigaltstack 131 132
getpid 39 172
gettid 186 178
getrandom 318 278
gettimeofday 96 169
getrusage 98 165
times 100 153
nanosleep 35 101
pselect6 270 72
restart_syscall 219 128
exit 60 93
exit_group 231 94
clock_gettime 228 113
clock_getres 229 114
clock_nanosleep 230 115
futex 202 98
timer_create 222 107
timer_settime 223 110
capset 126 91
"""
CALLS, X86_64, AARCH64 = zip(*map(str.split, TABLE.strip().splitlines()))
# Per machine: its audit number, then the number of each system call in CALLS.
SYSCALLS = {
    "x86_64": (0xC000003E, dict(zip(CALLS, map(int, X86_64)))),
    "aarch64": (0xC00000B7, dict(zip(CALLS, map(int, AARCH64)))),
}
# Of the others, `seccomp_filter` allows four under conditions; three are never allowed.
ALLOWED = CALLS[: CALLS.index("clock_gettime")]
CLOCKS = ("clock_gettime", "clock_getres", "clock_nanosleep")
# open openat stat lstat newfstatat statx access faccessat faccessat2. They report that no file
# exists, which many programs handle.
PATHS = {"x86_64": (2, 257, 4, 6, 262, 332, 21, 269, 439), "aarch64": (56, 79, 291, 48, 439)}

NOBODY = 65534
OUTPUT_CAP = 1 << 20  # bytes; one byte more in the file shows that a program exceeded it
STACK = 64 << 20
# Descriptors in the fork: the value of a call, and the report that it is confined.
RESULT, STATUS = 3, 4
POLL_INTERVAL = 0.02  # seconds between two checks of a program that is past its time
# How a fork ended: status; from struct rusage, CPU times and voluntary context switches.
END = struct.Struct("=i4x4q96xq8x")
STARVED = "the machine was too busy to give the program its CPU time"
# Below Python's own limits on nesting and on integers in text, on either side.
MAX_DEPTH, MAX_INT = 200, 10**4300


def encode(value: object, sort_keys: bool = False) -> bytes:
    """JSON without escapes, so that a pair of surrogates stays distinct from the character."""
    text = json.dumps(value, sort_keys=sort_keys, allow_nan=False, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def canonical(value: object, exact: bool = True) -> bytes:
    """A JSON value as bytes, equal for equal values: sorted keys, -0.0 as 0.0, and exact types.
    Without `exact`, numbers are equal as in Python's `==`: 1, 1.0 and True.

    But a tuple, and a subclass of list, tuple or dict (Counter, named tuple), counts as the plain
    type. TypeError for other types, including subclasses of numbers and strings, and for keys that
    are not strings. ValueError for NaN, infinities, integers of more than 4300 digits, and more
    than 200 levels.

    >>> canonical({"b": (1, True), "a": 1.0})
    b'{"a": 1.0, "b": [1, true]}'
    >>> canonical({"b": (1, True), "a": 1.0}, exact=False)
    b'{"a": 1, "b": [1, 1]}'
    """
    return encode(to_json(value, MAX_DEPTH, exact), sort_keys=True)


def to_json(value: object, levels: int, exact: bool) -> object:
    kind = type(value)
    if not exact and (kind is bool or kind is float and value.is_integer()):
        return int(value)
    if kind is int and not -MAX_INT < value < MAX_INT:
        raise ValueError("an integer of more than 4300 digits")
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value + 0.0
    if levels == 0:
        raise ValueError(f"more than {MAX_DEPTH} levels")
    for base in (list, tuple):
        if issubclass(kind, base):
            return [to_json(item, levels - 1, exact) for item in base.__iter__(value)]
    if issubclass(kind, dict) and all(type(key) is str for key in dict.keys(value)):
        return {key: to_json(item, levels - 1, exact) for key, item in dict.items(value)}
    raise TypeError(f"{kind.__name__} is not a JSON value")


def seccomp_filter(machine: str) -> bytes:
    """The BPF program that decides about every system call.

    It kills on a foreign instruction set, allows ALLOWED, answers "no such file" for PATHS, and
    EPERM for everything else. Allowed under conditions: `futex` only to wake (without threads,
    nothing can be waited for), and clocks only with the fixed numbers (others name foreign
    processes). x86-64's x32 numbers are on no list.
    """
    # LD|W|ABS, JMP|JEQ, JMP|JGE, ALU|AND, RET
    load, equal, at_least, mask, ret = 0x20, 0x15, 0x35, 0x54, 0x06
    allow, refuse, kill = (ret, 0, 0, 0x7FFF0000), (ret, 0, 0, 0x00050001), (ret, 0, 0, 0x80000000)
    no_such_file = (ret, 0, 0, 0x00050002)
    audit, number = SYSCALLS[machine]
    # The loads' offsets are those of struct seccomp_data.
    steps = [(load, 0, 0, 4), (equal, 1, 0, audit), kill, (load, 0, 0, 0)]
    for name in ALLOWED:
        steps += [(equal, 0, 1, number[name]), allow]
    for call in PATHS[machine]:
        steps += [(equal, 0, 1, call), no_such_file]
    for name in CLOCKS:
        steps += [
            (equal, 0, 4, number[name]),
            (load, 0, 0, 16),
            (at_least, 1, 0, 12),
            allow,
            refuse,
        ]
    steps += [(equal, 0, 5, number["futex"]), (load, 0, 0, 24), (mask, 0, 0, 0x7F)]
    steps += [(equal, 0, 1, 1), allow, refuse]
    return b"".join(struct.pack("=HBBI", *step) for step in [*steps, refuse])


class System:
    """System calls that Python lacks, through libc. If one fails: OSError with the call's name."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc_with_gil = ctypes.PyDLL(None, use_errno=True)
        machine = os.uname().machine
        self.number = SYSCALLS[machine][1]
        code = seccomp_filter(machine)
        self.code = ctypes.create_string_buffer(code, len(code))
        # struct sock_fprog
        self.program = struct.pack("@HP", len(code) // 8, ctypes.addressof(self.code))
        self.end = ctypes.create_string_buffer(END.size)
        self.sigchld = struct.pack("=Q120x", 1 << signal.SIGCHLD - 1)  # sigset_t
        self.zygote = os.getpid()

    def check(self, name: str, result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")

    def prctl(self, name: str, option: int, value: int, pointer: bytes | None = None) -> None:
        zero = ctypes.c_ulong(0)  # what is not used must be 0
        result = self.libc.prctl(option, ctypes.c_ulong(value), pointer, zero, zero)
        self.check(name, result)

    def fork(self) -> int:
        """os.fork without Python's hooks, which take a tenth of a judgement.

        They renew locks, and there are no threads; they reseed `random`, which `child` does anyway.
        """
        pid = self.libc_with_gil.fork()
        self.check("fork", min(pid, 0))
        return pid

    def has_ended(self, pid: int) -> bool:
        """Has the fork ended? If so, the kernel writes how to `end`, and to no other place.

        Python objects with it would stay in freed memory, for the next program to read.
        """
        rusage = ctypes.byref(self.end, 8)
        done = self.libc.wait4(pid, self.end, os.WNOHANG, rusage)
        self.check("wait4", min(done, 0))
        return done == pid

    def wait(self, seconds: float) -> None:
        """Waits until a fork ends, at most `seconds`.

        Not signal.sigtimedwait, which would return the status.
        """
        timeout = struct.pack("=2q", int(seconds), int(seconds % 1 * 1e9))
        self.libc.sigtimedwait(self.sigchld, None, timeout)

    def call(self, name: str, *values: object) -> None:
        self.check(name, self.libc.syscall(ctypes.c_long(self.number[name]), *values))


def confine(system: System, seconds: float, memory: int) -> None:
    """Gives up everything that the program must not have; `memory` is its whole address space.

    OSError if the kernel refuses any of it; the program is then not run.
    """
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_STACK: STACK,
        resource.RLIMIT_FSIZE: OUTPUT_CAP + 1,
        resource.RLIMIT_CPU: math.ceil(seconds) + 1,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_NOFILE: STATUS + 1,
    }
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(kind, (value, value))
    if 0 in os.getresuid():
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        except OSError as error:
            raise OSError(f"root cannot become user {NOBODY}: {error}") from error
    # Also clears capabilities that a user other than root may hold.
    system.call("capset", struct.pack("=Ii", 0x20080522, 0), bytes(24))
    system.prctl("PR_SET_PDEATHSIG", 1, signal.SIGKILL)  # after setuid, which clears it
    if os.getppid() != system.zygote:
        raise OSError("the zygote has ended")
    # RLIMIT_CORE does not stop a core_pattern that is a pipe.
    system.prctl("PR_SET_DUMPABLE", 4, 0)
    start_cpu_timer(system, seconds)
    system.prctl("PR_SET_NO_NEW_PRIVS", 38, 1)
    system.prctl("PR_SET_SECCOMP", 22, 2, system.program)
    try:
        os.open("/", os.O_RDONLY)
    except FileNotFoundError:
        return
    raise OSError("the seccomp filter has no effect")


def start_cpu_timer(system: System, seconds: float) -> None:
    """The kernel's timer on this process's CPU clock; it sends SIGKILL, which cannot be blocked.

    The filter allows no call that stops it. RLIMIT_CPU, in whole seconds, is the second line.
    """
    timer = ctypes.c_int()
    event = struct.pack("=Qii48x", 0, signal.SIGKILL, 0)
    system.call("timer_create", time.CLOCK_PROCESS_CPUTIME_ID, event, ctypes.byref(timer))
    expiry = struct.pack("=4q", 0, 0, int(seconds), int(seconds % 1 * 1e9))
    system.call("timer_settime", timer, 0, expiry, None)


def flush() -> None:
    """Like Python's exit: errors count for the program's own sys.stdout, not for the original."""
    stream = getattr(sys, "stdout", None)
    if stream is not None and not getattr(stream, "closed", False):
        stream.flush()
    with suppress(Exception):
        sys.__stdout__.flush()


def run(request: dict) -> int:
    """Runs the program like `python solution.py`, or calls its function. Returns the exit status.

    A call writes the bytes of its value to RESULT, and nowhere else. Its module is not `__main__`,
    so that a demonstration at the end of the program does not run, and its type hints are not
    evaluated, as in Python 3.14. Tampering with this code gains a program nothing that it could not
    write to its descriptors itself.
    """
    name = "solution" if "call" in request else "__main__"
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__ = "/solution.py"
    status, flags = 0, __future__.annotations.compiler_flag if "call" in request else 0
    try:
        for code in (request.get("setup", ""), request["code"].removeprefix("\ufeff")):
            exec(compile(code, "<solution>", "exec", flags, dont_inherit=True), module.__dict__)
        if "call" in request:
            value = getattr(module, request["call"])(*request["args"])
            os.write(RESULT, canonical(value, request["exact"]))
    except SystemExit as stop:
        status = exit_status(stop.code)
    except BaseException:
        status = 1
    try:
        atexit._run_exitfuncs()  # some solutions flush their output there
        flush()
        # Twice, like Python's exit. The first sorts live objects, so that files end before the
        # streams that they write to; the second ends files, generators and objects with __del__. It
        # is cheap, because the zygote's own objects are frozen.
        gc.collect()
        del module
        sys.modules.pop(name, None)
        gc.collect()
        flush()
    except BaseException:
        status = 1
    return status


def exit_status(code: object) -> int:
    """The process's exit status for SystemExit(code), as Python computes it."""
    if not isinstance(code, int):
        return int(code is not None)
    return code & 255 if -1 << 63 <= code < 1 << 63 else 255


def child(system: System, base: int, fds: list[int], status: int, limits: dict) -> None:
    """The fork: sets up descriptors, gives up rights, then runs the program.

    Reports on STATUS: "ok" once it is confined, or why it is not.
    """
    try:
        os.dup2(status, STATUS)
        request = json.loads(os.pread(fds[0], os.fstat(fds[0]).st_size, 0))
        result = RESULT if "call" in request else 1
        os.dup2(fds[1], 0)
        os.dup2(1, 2)  # still /dev/null
        os.dup2(fds[2], result)
        os.closerange(STATUS + 1, 256)
        if result == 1:
            os.close(RESULT)
        sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)
        random.seed(0)  # so that the same program gets the same verdict
        # os.fstat needs a system call that also takes paths. Fast input reads the size of
        # descriptor 0, nothing else.
        stats = {fd: os.fstat(fd) for fd in (0, 1, 2)}
        os.fstat = lambda fd: stats.get(fd) or os.close(-1)  # EBADF
        confine(system, limits["seconds"], base + limits["memory"])
        # Many programs start by asking for a larger stack.
        resource.setrlimit = lambda *_: None
        resource.getrlimit = lambda _: (STACK, -1)
        report = "ok"
    except Exception as error:
        report = f"{type(error).__name__}: {error}"
    os.write(STATUS, report.encode()[:500])
    os.close(STATUS)
    os._exit(run(request) if report == "ok" else 70)


def is_asleep(pid: int) -> bool:
    """Is the process waiting for something other than the processor?"""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] not in (b"R", b"D", b"Z")


def check_is_asleep(system: System) -> None:
    """OSError if /proc hides processes without rights (hidepid): `watch` must see them."""
    pid = system.fork()
    if pid == 0:
        with suppress(OSError):
            os.setresuid(NOBODY, NOBODY, NOBODY)
        system.prctl("PR_SET_PDEATHSIG", 1, signal.SIGKILL)
        system.prctl("PR_SET_DUMPABLE", 4, 0)
        if os.getppid() == system.zygote:
            os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    try:
        os.waitpid(pid, os.WUNTRACED)
        is_asleep(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def watch(system: System, pid: int, seconds: float) -> str:
    """Waits for the fork; `system.end` then holds how it ended. Returns the fault, or "".

    After `seconds` of wall-clock time it kills a fork that is asleep. A fork that is ready to run
    has its CPU timer, however long other work keeps it from the processor. If it got too little of
    the processor in ten times that, it is STARVED.
    """
    start, fault = time.monotonic(), ""
    while not system.has_ended(pid):
        elapsed = time.monotonic() - start
        if elapsed > starved_after(seconds):
            fault = STARVED
        if fault or elapsed > seconds and is_asleep(pid):
            os.kill(pid, signal.SIGKILL)
        # At random intervals, so that a program cannot sleep between the checks.
        interval = POLL_INTERVAL * (0.5 + os.urandom(1)[0] / 255)
        system.wait(max(interval, seconds - elapsed))
    return fault


def starved_after(seconds: float) -> float:
    """Wall-clock seconds after which a program that is ready to run was starved by the machine."""
    return 10 * seconds + 10


def start_thread(thread: threading.Thread) -> None:
    """Replaces Thread.start, because there are no threads: the target runs at once.

    That is enough for a main() that wants a larger stack, and for workers that wait for no other.
    """
    with suppress(BaseException):  # an error ends the thread, not the program
        thread.run()


def serve(control: socket.socket, system: System, base: int) -> bool:
    """Runs one fork. False if the other end closed.

    A message brings the limits and three descriptors (request, standard input, output). The reply
    says how the fork ended, and the fault if there was one. Nothing about the fork outlives this
    function.
    """
    message, fds, _, _ = socket.recv_fds(control, 4096, 3)
    if not message:
        return False
    limits = json.loads(message)
    reader, writer = os.pipe()
    pid = system.fork()
    if pid == 0:
        child(system, base, fds, writer, limits)
    for fd in (*fds, writer):
        os.close(fd)
    fault = watch(system, pid, limits["seconds"])
    report = os.read(reader, 500).decode()
    os.close(reader)
    if report != "ok":
        fault = report or "the fork ended before it was confined"
    control.sendmsg([system.end, fault.encode()])
    ctypes.memset(system.end, 0, END.size)
    return True


def zygote() -> None:
    """Serves forks until the other end of descriptor 0 closes. Any error of its own ends it."""
    sys.path.pop(0)  # this folder
    for name in MODULES.split():
        with suppress(ImportError):
            importlib.import_module(name)
    # exit() and quit(), help and copyright: -S leaves them out.
    site.setquit()
    site.sethelper()
    site.setcopyright()
    threading.Thread.start = start_thread
    threading.Thread.join = lambda *_, **__: None
    threading.Thread.is_alive = lambda _: False
    sys.path.clear()
    sys.argv = ["solution.py"]
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # when memory runs out, the kernel kills a program, not the training run
    with open("/proc/self/statm") as file:
        base = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    system = System()
    control = socket.socket(fileno=0)
    os.dup2(1, RESULT)  # reserves these two descriptors for the forks
    os.dup2(1, STATUS)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # it may be inherited as ignored
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    check_is_asleep(system)
    gc.collect()
    gc.freeze()
    control.send(b"ready")
    while serve(control, system, base):
        pass


if __name__ == "__main__":
    zygote()
