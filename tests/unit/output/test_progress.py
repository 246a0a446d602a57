"""What a run says while it goes on."""

from __future__ import annotations

import io

from opd_ray.output.progress import Progress

VALUES = {
    "train/loss": 0.5,
    "tip/kept_fraction": 0.25,
    "tokens_per_second/step": 100.0,
    "seconds/step": 2.0,
}


class Left(io.StringIO):
    """A pipe whose reader left (``| head``)."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_lines_in_a_log() -> None:
    log = io.StringIO()
    progress = Progress(total=11, done=9, stream=log)
    progress.step(10, VALUES)
    progress.step(11, VALUES)
    assert log.getvalue() == (
        "step 10/11  loss 0.5000  kept 0.25  tok/s 100  2.00 s\n"
        "step 11/11  loss 0.5000  kept 0.25  tok/s 100  2.00 s\n"
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_goes_back_with_the_run() -> None:
    screen = Terminal()
    progress = Progress(total=8, done=0, stream=screen)
    for step in (1, 2, 3):
        progress.step(step, VALUES)
    progress.back_to(2)
    progress.step(3, VALUES)
    progress.close()
    assert "| 2/8 [" in screen.getvalue()
    assert "| 3/8 [" in screen.getvalue().splitlines()[-1].split("\r")[-1]
    Progress(total=8, done=3, stream=io.StringIO()).back_to(2)  # without a bar: nothing to do


def test_turns_and_calls_of_rollouts_that_act() -> None:
    log = io.StringIO()
    progress = Progress(total=10, done=9, stream=log)
    progress.step(10, VALUES | {"rollout/turns_mean": 3.25, "tools/calls_per_rollout": 2.0})
    assert log.getvalue() == (
        "step 10/10  loss 0.5000  kept 0.25  tok/s 100  turns 3.2  calls 2.0  2.00 s\n"
    )


def test_an_evaluation_without_figures_says_nothing() -> None:
    log = io.StringIO()
    progress = Progress(total=1, done=0, stream=log)
    progress.evaluation(0, {"seconds/eval": 0.0})
    progress.evaluation(1, {"seconds/eval": 0.0, "eval/kl": 0.5})
    assert log.getvalue() == "evaluation at step 1:  kl 0.5000\n"


def test_a_run_goes_on_when_nobody_reads_its_words_any_more() -> None:
    progress = Progress(total=10, done=9, stream=Left())
    progress.say("resumed")
    progress.step(10, VALUES)
    progress.evaluation(10, {"eval/kl": 0.5})
    progress.close()
