"""A process that judges mathematical answers with math-verify, one JSON line in, one line out.

``math_task`` runs it as a script. It must import neither this package nor torch, so that it starts
quickly. The kernel's timers end a judgement that takes too long, whatever code is running then:
no thread or signal handler of Python is needed, and nothing stays behind without its parent.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from typing import TextIO

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

BOX_FIRST = (LatexExtractionConfig(boxed_match_priority=0),)
ANYTHING = (LatexExtractionConfig(), ExprExtractionConfig())
# Without a box, the answer is looked for in the last characters of a response.
TAIL_CHARACTERS = 2000
MEMORY_BYTES = 4 << 30
# The limit counts CPU time, so that a busy machine changes no verdict; waiting is bounded too.
WALL_PER_CPU_SECOND = 10


def judge(boxed: str | None, response_text: str, answer: str) -> bool:
    """Whether the boxed content, or else what the end of the response says, equals the answer."""
    if boxed is not None and boxed == answer.strip():
        return bool(boxed)
    gold = parse(_box(answer), BOX_FIRST, parsing_timeout=None)
    if boxed is None:
        given = parse(response_text[-TAIL_CHARACTERS:], ANYTHING, parsing_timeout=None)
    else:
        given = parse(_box(boxed), BOX_FIRST, parsing_timeout=None)
    return bool(verify(gold, given, timeout_seconds=None))


def _box(content: str) -> str:
    """A box with that content, less the full stop of a sentence (but not of an ellipsis)."""
    content = content.strip()
    return "\\boxed{" + (content if content.endswith("..") else content.removesuffix(".")) + "}"


def serve(cpu_seconds: float, replies: TextIO) -> None:
    """Answer requests ``[boxed or null, response text, answer]`` until the input ends."""
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        signal.setitimer(signal.ITIMER_REAL, cpu_seconds * WALL_PER_CPU_SECOND)
        try:
            correct = judge(*json.loads(line))
        except (RecursionError, MemoryError):
            # Too deep or too large to be anyone's answer.
            correct = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(correct), file=replies)


def main(cpu_seconds: float) -> None:
    """Let forked children serve; one that a timer ended answers null, and the next takes over.

    Forking keeps the imports, so a hanging expression costs its time limit and nothing more.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    # Parsers print; their words must not mix with the replies.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable(logging.WARNING)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", file=replies)
    while True:
        child = os.fork()
        if child == 0:
            serve(cpu_seconds, replies)
            return
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if -status not in (signal.SIGPROF, signal.SIGALRM):
            sys.exit(abs(status))
        print("null", file=replies)


if __name__ == "__main__":
    main(float(sys.argv[1]))
