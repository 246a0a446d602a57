"""The math task on tricky pairs, hanging ones among them, and the life of its processes."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from benchmark_files import EXCERPTS, WHOLE_SETS, needs_whole_sets, read_rows

from opd_ray.tasks.boxes import boxed_parts, last_boxed
from opd_ray.tasks.math_task import MathTask
from opd_ray.tasks.worker_pool import WorkerDied, WorkerPool

HANGS = r"10^{10^{10}}"
MATRIX = r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"

VECTOR = r"\begin{pmatrix} 16/49 \\ 48/49 \end{pmatrix}"


@pytest.fixture(scope="module")
def task() -> Iterator[MathTask]:
    task = MathTask(processes=1, cpu_seconds=2.0)
    yield task
    task.close()


def boxed(content: str) -> str:
    return f"Therefore the answer is \\boxed{{{content}}}."


TRICKY = [
    # it hangs; everything after it is judged all the same
    (boxed(HANGS), "10", False),
    # numbers and fractions
    (boxed(r"\frac{1}{2}"), "0.5", True),
    (boxed("1/2"), r"\dfrac12", True),
    (boxed(r"-\frac{3}{4}"), r"\frac{-3}{4}", True),
    (boxed(r"1\frac12"), "1.5", True),
    (boxed(r"\frac{2}{3}"), "0.67", False),
    (boxed(r"2\sqrt{3}"), r"\sqrt{12}", True),
    (boxed(r"1.0\times 10^3"), "1000", True),
    (boxed("3.14159"), r"\pi", False),
    (boxed("3+4i"), "4i+3", True),
    (boxed(r"\infty"), r"-\infty", False),
    (boxed(r"\frac{10}{4}"), r"\frac{5}{2}", True),
    (boxed(r"\tfrac{7}{3}"), r"2\frac{1}{3}", True),
    (boxed(r"\frac{\sqrt{2}}{2}"), r"\frac{1}{\sqrt{2}}", True),
    (boxed(r"\frac{1}{3}"), "0.3333", False),
    (boxed("-5"), "5", False),
    (boxed("027"), "27", True),
    (boxed("4210_5"), "4210_{5}", True),
    (boxed("43_5"), "43_5.", True),
    (boxed("e^2"), r"e^{2}", True),
    # thousands separators
    (boxed("1,000"), "1000", True),
    (boxed("1{,}000"), "1000", True),
    (boxed(r"1,\!234,\!567"), "1234567", True),
    (boxed("12345.5"), "12,345.5", True),
    (boxed("3,000"), "3", False),
    (boxed("1,2"), "12", False),
    (boxed("11111111100"), r"11,\! 111,\! 111,\! 100", True),
    (boxed("10,080"), r"10,\!080", True),
    (boxed("58,500"), "58500", True),
    (boxed("58,500"), "58,501", False),
    (boxed("850,000"), "850", False),
    # units and signs
    (boxed(r"5\text{ cm}"), "5", True),
    (boxed("5 meters"), r"5\text{ m}", True),
    (boxed(r"\$5"), "5", True),
    (boxed(r"50\%"), "0.5", True),
    (boxed(r"90^\circ"), "90", True),
    (boxed(r"6\text{ cm}"), r"5\text{ cm}", False),
    (boxed(r"120^\circ"), r"120", True),
    (boxed(r"\$36"), r"\$63", False),
    (boxed(r"12\%"), r"21\%", False),
    (boxed(r"10\text{ hours}"), "10", True),
    # intervals, tuples and sets
    (boxed(r"(-\infty,3]"), r"\left(-\infty, 3\right]", True),
    (boxed(r"(-\infty,3)"), r"\left(-\infty, 3\right]", False),
    (boxed(r"x \in [1,2]"), "[1,2]", True),
    (boxed("[1,2]"), "(1,2)", False),
    (boxed("(1,2)"), r"\left( 1, 2 \right)", True),
    (boxed("(2,1)"), "(1,2)", False),
    (boxed("2,3"), "3,2", True),
    (boxed(r"\{2,3\}"), "2, 3", True),
    (boxed("2"), "2,3", False),
    (boxed("1,-2"), "-2,1", True),
    (boxed(r"(0,9)\cup(9,36)"), r"(0,9) \cup (9,36)", True),
    (boxed(r"(0,36)"), r"(0,9) \cup (9,36)", False),
    (boxed(r"(-\infty,2)\cup(3,\infty)"), r"(-\infty, 2) \cup (3, \infty)", True),
    (boxed(r"(3,\infty)"), r"(-\infty, 2) \cup (3, \infty)", False),
    (boxed(r"(5,\infty)"), r"[5,\infty)", False),
    (boxed(r"\left(3,\frac{\pi}{2}\right)"), r"\left( 3, \frac{\pi}{2} \right)", True),
    (boxed(r"(3,\pi)"), r"\left( 3, \frac{\pi}{2} \right)", False),
    # matrices
    (boxed(MATRIX), MATRIX.replace("pmatrix", "bmatrix"), True),
    (boxed(MATRIX.replace("4", "5")), MATRIX, False),
    (boxed(VECTOR), VECTOR.replace("16/49", r"\frac{16}{49}"), True),
    (boxed(VECTOR), VECTOR.replace("16/49", "49/16"), False),
    # expressions and equations
    (boxed("x^2+2x+1"), "(x+1)^2", True),
    (boxed("x=5"), "5", True),
    (boxed(r"k \neq 1"), r"k\ne 1", True),
    (boxed("p-q"), "q-p", False),
    # text
    (boxed(r"\text{Evelyn}"), "Evelyn", True),
    (boxed("yes"), "Yes", True),
    (boxed("No"), "Yes", False),
    (boxed("B"), r"\text{(B)}", True),
    (boxed("A"), r"\text{(B)}", False),
    (boxed(r"\text{Monday}"), r"\text{Tuesday}", False),
    (boxed(r"\text{even}"), "even", True),
    (boxed(r"\text{odd}"), r"\text{even}", False),
    (boxed(r"\textbf{(E)}"), r"\text{(E)}", True),
    (boxed(r"\text{ellipse}"), r"\text{circle}", False),
    (boxed("42."), "42", True),
    # which box, and none
    (boxed("4") + " Wait. " + boxed("5"), "5", True),
    (boxed("4") + " Wait. " + boxed("5"), "4", False),
    (boxed("4") + r" and \boxed{\frac{1}{2", "4", True),
    ("The final answer is $7$.", "7", True),
    ("The final answer is $7$.", "8", False),
    ("I do not know.", "7", False),
    ("", "7", False),
    (boxed(""), "7", False),
    (boxed("7") + r" As asked, it is within \boxed{}.", "7", True),
    (r"\boxed{\boxed{7}}", "7", True),
    (r"\boxed{x = \fbox{7}}", "7", True),
    (boxed("7") + " No, 8 is right.", "7", True),
    # several boxes side by side
    (r"$x$ is \boxed{1} and \boxed{2}.", "1, 2", True),
    (r"$\boxed{2}$, $\boxed{1}$", r"\{1, 2\}", True),
    (r"\boxed{1} or \boxed{2}", "2", True),
    (r"\boxed{1} or \boxed{2}", "1", False),
    (r"\boxed{1} and \boxed{3}", "1, 2", False),
    (r"\boxed{1}, which is not all: \boxed{2}", "1, 2", False),
    # thinking
    (r"<think>\boxed{3}? No.</think> It is \boxed{5}.", "5", True),
    (r"<think>\boxed{3}? No.</think> The answer is $5$.", "5", True),
    (r"<think>\boxed{3}? No.</think> The answer is $5$.", "3", False),
    (r"<think>It is \boxed{3}.</think>" + "\n", "3", True),
    (r"<think>It is \boxed{3}, but", "3", True),
    # gold answers that are solutions
    (boxed("72"), "She sold 48+24. #### 72", True),
    (boxed("48"), "She sold 48+24. #### 72", False),
    (boxed("1110"), "She has 10+1,100.\n#### 1,110\nThe answer is: 1,110", True),
    (boxed("72"), r"She sold $48+24=\boxed{72}$.", True),
    (boxed("72"), "The answer is 72.", True),
    (boxed("0.00001"), "0.00001", True),
    (boxed("10^{22}"), "10000000000000000000000", True),
]


def test_tricky_pairs_together(task: MathTask, caplog: pytest.LogCaptureFixture) -> None:
    verdicts = task.verify_many([(response, answer) for response, answer, _ in TRICKY])
    wrong = [pair for pair, verdict in zip(TRICKY, verdicts, strict=True) if verdict is not pair[2]]
    assert wrong == []
    assert caplog.text.count("took too long") == 1


def test_it_judges_outside_the_main_thread(task: MathTask) -> None:
    with ThreadPoolExecutor(4) as threads:
        verdicts = threads.map(lambda n: task.verify(boxed(str(n % 3)), "1"), range(12))
        assert list(verdicts) == [n % 3 == 1 for n in range(12)]


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1}", "1"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} or \boxed{2}", "2"),
        (r"\boxed{1} or \boxed{2", "1"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\{x}", r"\{x"),
        (r"\boxed{a\\}", r"a\\"),
        (r"\fbox{3}", "3"),
        (r"\boxed {3}", "3"),
        (r"\boxed{}", ""),
        ("boxed{3}", None),
        ("3", None),
    ],
)
def test_last_boxed(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (r"\boxed{1} and \boxed{2}", ["1", "2"]),
        (r"$\boxed{1}$, $\boxed{2}$ and $\boxed{3}$.", ["1", "2", "3"]),
        (r"\boxed{1}\text{ and }\boxed{2}", ["1", "2"]),
        (r"\boxed{1} so \boxed{2}", ["2"]),
        (r"\boxed{\boxed{1}, \boxed{2}}", ["{1}, {2}"]),
        (r"\boxed{1 or \boxed{2}", ["2"]),
        (r"\boxed{5} within \boxed{}", ["5"]),
        (r"\boxed{}", [""]),
        ("none", []),
    ],
)
def test_boxed_parts(text: str, parts: list[str]) -> None:
    assert boxed_parts(text) == parts


@pytest.mark.parametrize("text", [r"\boxed{" * 20_000, r"\boxed{" * 20_000 + "}" * 20_000])
def test_a_response_that_repeats_itself_takes_no_time(text: str) -> None:
    begin = time.process_time()
    boxed_parts(text)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("gold", "short", "problem"),
    [
        ("72", "72", None),
        ("She sold 48+24. #### 72", "72", None),
        ("Add. #### 1\n#### 2\nThe answer is: 2", "2", None),
        (r"So $x=\boxed{\frac{1}{2}}$.", r"\frac{1}{2}", None),
        ("The final answer is: $5$.", "$5$", None),
        ("Add.\n\n**Answer:** 72", "72", None),
        ("Add. The answer is **x**2**.", "x**2", None),
        ("Add.\n#### **72**", "72", None),
        ("infinitely many", "infinitely many", None),
        (r"\text{no such number}", r"\text{no such number}", None),
        ("f(z) = az^3 + bz^2 + cz + d", "f(z) = az^3 + bz^2 + cz + d", None),
        ("She sold 48. Then half as many.", "She sold 48. Then half as many.", "whole sentences"),
        ("there are as many of them as", "there are as many of them as", "whole sentences"),
        ("nan", "nan", "a missing value as text"),
        ("a } b", "a } b", "nothing that a box can hold"),
    ],
)
def test_what_counts_of_a_gold_answer(
    task: MathTask, gold: str, short: str, problem: str | None
) -> None:
    assert task.gold_answer(gold) == short
    assert task.gold_problem(gold) == problem


def test_extract_makes_votes_comparable(task: MathTask) -> None:
    assert task.extract(boxed(r"\dfrac{1}{2} ")) == task.extract(boxed(r"\frac{ 1}{2}"))
    assert task.extract(boxed(r"\left(1, 2\right)")) == "(1,2)"
    assert task.extract("no box") is None
    assert task.extract(boxed("")) is None


def test_the_worker_does_not_import_torch(task: MathTask) -> None:
    assert task.verify(boxed("1"), "1")
    mapped = Path(f"/proc/{task._pool._places.queue[-1]._process.pid}/maps").read_text()
    assert "python" in mapped
    assert "torch" not in mapped


ECHO = """
import sys
print("ready", flush=True)
for line in sys.stdin:
    if "die" in line:
        sys.exit(3)
    print(line, end="", flush=True)
"""


def test_a_pool_replaces_a_worker_that_died(tmp_path: Path) -> None:
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    pool = WorkerPool(script, [], size=2)
    assert pool.ask(["a", 1]) == ["a", 1]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(pool.ask, range(100))) == list(range(100))
    with pytest.raises(WorkerDied):
        pool.ask("die")
    assert pool.ask("again") == "again"
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.ask("late")


def test_a_worker_that_cannot_start_says_how_to_see_why(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("import no_such_module")
    pool = WorkerPool(script, [], size=1)
    with pytest.raises(RuntimeError, match=r"exit code 1 .* run: .*broken\.py"):
        pool.ask(1)
    pool.close()


def test_no_process_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, threading\n"
        "from opd_ray.tasks.math_task import MathTask\n"
        "task = MathTask(processes=1, cpu_seconds=1.0)\n"
        "task.verify(r'\\boxed{1}', '1.0')\n"
        "print(task._pool._places.queue[-1]._process.pid, flush=True)\n"
        f"task.verify(r'\\boxed{{{HANGS}}}', '10')\n"
        "import time; time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    group = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while _group_lives(group):
        assert time.monotonic() < deadline, "judging processes outlive their parent"
        time.sleep(0.1)


def _group_lives(group: int) -> bool:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_group) == group and state != "Z":
            return True
    return False


def refused(task: MathTask, answers: list[str], before: str) -> list[str]:
    """The answers that are not equal to themselves; `before` makes the text another, so that the
    parser decides."""
    verdicts = task.verify_many([(boxed(before + answer), answer) for answer in answers])
    return [answer for answer, correct in zip(answers, verdicts, strict=True) if not correct]


def test_gold_answers_of_the_excerpts_verify_against_themselves(task: MathTask) -> None:
    answers = [row["answer"] for row in read_rows(EXCERPTS / "math500.jsonl")]
    answers += [row["final_answer"] for row in read_rows(EXCERPTS / "deepmath.jsonl")]
    assert len(answers) >= 25
    assert [answer for answer in answers if task.gold_problem(answer)] == []
    assert refused(task, answers, "") == []
    assert refused(task, answers, r"\displaystyle ") == []
    # And each of them differs from the one after it.
    pairs = [(boxed(one), other) for one, other in pairwise(answers)]
    equal = [pair for pair, same in zip(pairs, task.verify_many(pairs), strict=True) if same]
    assert [pair for pair in equal if pair[0] != boxed(pair[1])] == []


@needs_whole_sets
@pytest.mark.parametrize(
    "name", ["math500", "aime_2024", "aime_2025", "amc23", "gsm8k_train", "deepmath_5k"]
)
def test_gold_answers_verify_against_themselves(task: MathTask, name: str) -> None:
    # Every different answer, first as it is: equal as text, so this is about finding the box. Then
    # through the parser, of DeepMath's every tenth: all of them pass, in ten seconds.
    answers = sorted({row["answer"] for row in read_rows(WHOLE_SETS / f"{name}.jsonl")})
    assert [answer for answer in answers if task.gold_problem(answer)] == []
    assert [answer for answer in answers if task.gold_answer(answer) != answer] == []
    assert refused(task, answers, "") == []
    step = 10 if name == "deepmath_5k" else 1
    assert refused(task, answers[::step], r"\displaystyle ") == []
