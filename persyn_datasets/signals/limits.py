"""Runs a program that nobody has read: `python -I limits.py PROGRAM CPU_SECONDS MEMORY_BYTES`.

It has no network, so many seconds of CPU, so much memory, and files of 16 MiB at most; what it
starts ends with it. It may read and write files as its user may: that is no sandbox for programs
that mean harm. Imports nothing of this package.
"""

import ctypes
import os
import resource
import runpy
import sys

NEW_USER, NEW_PROCESSES, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
FILE_BYTES = 16 * 2**20
NOT_ALLOWED = 3


def main(program: str, cpu_seconds: int, memory_bytes: int) -> int:
    """The program's status; `NOT_ALLOWED`: this machine refuses to cut it off."""
    if ctypes.CDLL(None).unshare(NEW_USER | NEW_PROCESSES | NEW_NETWORK):
        return NOT_ALLOWED
    child = os.fork()  # the first of the new processes: with it, all of them end
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for what, most in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))
    sys.argv = [program]
    runpy.run_path(program, run_name="program")  # not as main: what it would ask of a user is left
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
