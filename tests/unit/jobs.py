"""Jobs that test_isolation.py gives to a helper process."""

import os
import signal
import time
from typing import BinaryIO


def copied(file: BinaryIO, output: BinaryIO, word: str) -> list[str]:
    output.write(file.read() * 2)
    return [word, "☃"]


def crash(file: BinaryIO, output: BinaryIO) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hoard(file: BinaryIO, output: BinaryIO) -> None:
    bytearray(1 << 30)


def spin(file: BinaryIO, output: BinaryIO) -> None:
    while True:
        pass


def sleep(file: BinaryIO, output: BinaryIO) -> None:
    output.write(str(os.getpid()).encode())
    output.flush()
    time.sleep(60)


def fail(file: BinaryIO, output: BinaryIO) -> None:
    raise ValueError("it is wrong")


def chatter(file: BinaryIO, output: BinaryIO) -> str:
    return "x" * (20 << 20)


JOBS = {job.__name__: job for job in (copied, crash, hoard, spin, sleep, fail, chatter)}
