"""chain_sum: worked answers, the split, and the verifier."""

from itertools import islice, permutations

import pytest

from opd_ray.tasks import get_task, gold_problem, verify_many
from opd_ray.tasks.chain_sum import HELDOUT_ONE_IN, ChainSumGenerator, ChainSumProblem


def test_worked_answer_by_hand() -> None:
    problem = ChainSumProblem((12, 34, 56))
    assert problem.prompt == "12+34+56="
    assert problem.worked == "12+34=46,46+56=102."
    assert problem.answer == "102"


def test_worked_answers_are_true_equations() -> None:
    for problem in ChainSumGenerator(terms=5, digits=3).take(200):
        equations = problem.worked.rstrip(".").split(",")
        assert len(equations) == 4
        carried = None
        for equation, term in zip(equations, problem.operands[1:], strict=True):
            left, right = equation.split("=")
            first, second = map(int, left.split("+"))
            assert first == (problem.operands[0] if carried is None else carried)
            assert second == term
            carried = int(right)
            assert carried == first + second
        assert str(carried) == problem.answer
        assert all(100 <= operand <= 999 for operand in problem.operands)


def test_splits_share_no_problem_in_any_order_of_terms() -> None:
    heldout = ChainSumGenerator(2, 1, "heldout", seed=0)
    train = ChainSumGenerator(2, 1, "train", seed=5)
    everything = heldout.take(heldout.available()) + train.take(train.available())
    assert len(everything) == len(set(everything)) == 81
    for problem in heldout.take(heldout.available()):
        for order in permutations(problem.operands):
            assert ChainSumProblem(order).split == "heldout"


def test_every_generator_keeps_to_its_split() -> None:
    for split in ("train", "heldout"):
        generator = ChainSumGenerator(3, 2, split, seed=3)
        assert {p.split for p in generator.take(300)} == {split}
        assert {p.split for p in islice(generator.endless(), 300)} == {split}


def test_the_heldout_share_is_as_declared() -> None:
    drawn = [ChainSumProblem((a, b, 77)).split for a in range(10, 100) for b in range(10, a + 1)]
    share = drawn.count("heldout") / len(drawn)
    assert share == pytest.approx(1 / HELDOUT_ONE_IN, abs=0.02)


def test_seed_decides_the_problems() -> None:
    first = ChainSumGenerator(3, 2, "train", seed=1)
    assert first.take(50) == ChainSumGenerator(3, 2, "train", seed=1).take(50)
    assert first.take(50) != ChainSumGenerator(3, 2, "train", seed=2).take(50)
    assert len(set(first.take(2000))) == 2000


def test_more_problems_than_there_are_is_refused() -> None:
    generator = ChainSumGenerator(2, 1, "heldout")
    with pytest.raises(ValueError, match=r"terms = 2, digits = 1, but 1000 were asked for"):
        generator.take(1000)


@pytest.mark.parametrize(
    ("options", "named"),
    [({"terms": 1}, "terms = 1"), ({"digits": 0}, "digits = 0"), ({"split": "dev"}, "'dev'")],
)
def test_a_difficulty_without_problems_is_refused(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ChainSumGenerator(**options)


@pytest.mark.parametrize(
    ("response", "correct"),
    [
        ("12+34=46,46+56=102.", True),
        ("12+34=47,46+56=102.", True),  # the last number counts, not the way to it
        ("=102", True),
        ("= 102 .", True),
        ("12+34=46,46+56=103.", False),
        ("12+34=46,46+56=10", False),
        ("12+34=46,46+56=102,", False),  # cut off, or on its way to another number
        ("12+34=102,102+1=", False),
        ("102", False),
        ("", False),
        ("12+34=46,46+56=0102.", True),
        ("12+34=46,46+56=102.5", False),
    ],
)
def test_verifier(response: str, correct: bool) -> None:
    task = get_task("chain_sum")
    assert task.verify(response, "102") is correct
    assert task.verify(response, "12+34=46,46+56=102.") is correct


def test_every_worked_answer_verifies_against_its_own_answer_only() -> None:
    problems = ChainSumGenerator(3, 2, "heldout").take(100)
    task = get_task("chain_sum")
    assert all(verify_many(task, [(p.worked, p.answer) for p in problems]))
    assert not any(verify_many(task, [(p.worked, str(int(p.answer) + 1)) for p in problems]))


@pytest.mark.parametrize(
    ("gold", "problem"),
    [
        ("102", None),
        ("102.0", None),  # a column of numbers with gaps
        ("1,020", None),
        ("12+34=46,46+56=102.", None),
        ("First 46, then 102. #### 102", None),
        ("many", "no whole number"),
        ("102.5", "no whole number"),
        ("12+34=46,46+56=", "no whole number"),
    ],
)
def test_gold_answers_without_a_sum_are_known_before_a_run(gold: str, problem: str | None) -> None:
    assert gold_problem(get_task("chain_sum"), gold) == problem


def test_no_response_is_right_for_a_gold_answer_without_a_sum() -> None:
    task = get_task("chain_sum")
    assert not task.verify("=many", "many")
    assert not task.verify("no", "many")
    assert task.verify("=102.", "102.0")
    assert task.verify("=102.", "First 46. #### 102")
    assert not task.verify("=46.", "First 46. #### 102")
