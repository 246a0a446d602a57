"""What overlap and lag bring, by profiles of published runs; writes results/pipeline.md.

    python benchmarks/pipeline.py [--cases tip_b200/8 ...] [--steps 7] [--seconds 5]

Real: the coordinator, the filter, the launcher, the pools of rollout actors, teachers and trainers,
and Ray actors, placed as a recipe places them. Not real: the engines in the actors wait instead of
computing, for as long as a profile says (pipeline_profiles.py), on a clock that runs faster, so
that a step takes ``--seconds`` here. Beside what was measured stands what the profile lets expect
(pipeline_expected.py), worked out from the same lengths with no code in common.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median

import pipeline_expected
from pipeline_placement import Placement, gpus, local_ray, modes
from pipeline_profiles import PROFILES, Profile
from pipeline_run import ROUNDS, Measured, measure, stages_of

RESULTS = Path(__file__).parent / "results" / "pipeline.md"
TOLERANCE = 0.05  # beyond which a difference from the expected step is marked
# Of a profile's own placement, and decode steps of its longest response: exact lengths do not
# matter there.
_CHECKED_STEPS = 100
_DECODE_STEPS = 256


@dataclass(frozen=True)
class Case:
    """A profile on the GPUs of a recipe."""

    profile: Profile
    placement: Placement

    @property
    def name(self) -> str:
        """E.g. "tip_b200/8": with its GPUs."""
        return f"{self.profile.name}/{8 * self.placement.times}"

    def scale(self, seconds: float, steps: int) -> int:
        """How much faster the clock must run for a synchronous step to take ``seconds`` here."""
        coarse = _coarse(self.profile)
        config = self.placement.config(self.profile, coarse, steps, "synchronous")
        whole = median(
            stages_of(self.profile, config, coarse, step).synchronous for step in range(steps)
        )
        return max(1, round(whole / seconds))


# Every response of the first two is one turn of mathematics, those of the third are as long as a
# plan's.
CASES = {
    case.name: case
    for times in (1, 8)
    for case in (
        Case(PROFILES["tip_b200"], Placement("tip_qwen3_8b_to_4b", times)),
        Case(PROFILES["miles_b200"], Placement("tip_qwen3_8b_to_4b", times)),
        Case(PROFILES["slime_b200"], Placement("tip_deepplanning_14b", times)),
    )
}


def _coarse(profile: Profile) -> int:
    """Tokens that are written at once."""
    return max(1, profile.lengths.most // _DECODE_STEPS)


@dataclass(frozen=True)
class Own:
    """A profile on the placement of its own run."""

    writing: float  # seconds of a step, mean
    training: float  # seconds for as many tokens as its run trained on
    tokens: float  # of a response, mean


@cache
def own(profile: Profile) -> Own:
    """What the profile says of the run that it was made from."""
    published, coarse = profile.published, _coarse(profile)

    def step_seconds(running: int) -> float:
        return coarse * profile.decode_step_seconds(running, published.gpus_per_engine)

    count = profile.rollouts
    drawn = [
        [profile.lengths.draw(step * count + number) for number in range(count)]
        for step in range(_CHECKED_STEPS)
    ]
    ends = [
        pipeline_expected.write(
            [max(1, round(length / coarse)) for length in lengths],
            published.engines,
            count,
            step_seconds,
        )
        for lengths in drawn
    ]
    reading = profile.reading_seconds(published.training_tokens, published.trainer_gpus)
    return Own(
        writing=mean(map(max, ends)),
        training=reading + profile.optimizer_seconds,
        tokens=mean(mean(lengths) for lengths in drawn),
    )


def rows(case: Case, found: Sequence[Measured], scale: int) -> list[str]:
    """Of the table: one for each mode."""
    roles = gpus(case.placement.config(case.profile, scale, 1, "synchronous"))
    plain = next((one.step for one in found if one.mode == "synchronous"), None)
    lines = []
    for one in found:
        ratio = one.step / one.expected
        mark = " *" if abs(ratio - 1) > TOLERANCE else ""
        cells = [
            case.profile.name,
            f"{roles['rollout']} + {roles['teacher']} + {roles['trainer']}",
            one.mode,
            f"{one.step:.1f}",
            f"{one.expected:.1f}",
            f"{ratio:.3f}{mark}",
            "" if plain is None else f"{plain / one.step:.2f}",
            f"{one.trajectories_per_second:.2f}",
            " / ".join(f"{100 * one.idle[role]:.0f}" for role in ("rollout", "teacher", "trainer")),
            f"{one.tail_half:.1f} / {one.tail_tenth:.1f}",
            f"{mean(one.kept_tokens) * scale / 1000:,.0f}",
            str(scale),
            f"{one.beyond:.2f}",
            f"{one.driver_cpu:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


_HEAD = (
    "profile",
    "GPUs: rollout + teacher + trainer",
    "mode",
    "step, s",
    "expected, s",
    "ratio",
    "gain",
    "trajectories/s",
    "idle, %: rollout / teacher / trainer",
    "tail, s: half / nine tenths to last",
    "trained tokens a step, thousands",
    "clock",
    "beyond, s here",
    "driver, CPU s here",
)


def wave_rows(case: Case, found: Sequence[Measured]) -> list[str]:
    """What keeps overlap from its ideal: a row if it was measured."""
    return [
        f"| {case.name} | {one.step:.1f} | {one.expected:.1f} | "
        f"{' | '.join(f'{seconds:.1f}' for seconds in one.in_waves.values())} |"
        for one in found
        if one.in_waves
    ]


def profile_lines() -> list[str]:
    """Where the profiles come from, and how near they come to their runs."""
    lines = [
        "| profile | tokens a response | writing, s: profile / published | training, s: profile / "
        "published |",
        "|---|---|---|---|",
    ]
    for profile in PROFILES.values():
        found, published = own(profile), profile.published
        lines.append(
            f"| {profile.name} | {found.tokens:,.0f} | {found.writing:.1f} / "
            f"{published.writing_seconds:.1f} | {found.training:.1f} / "
            f"{published.training_seconds:.1f} |"
        )
    for profile in PROFILES.values():
        lines += [
            "",
            f"**{profile.name}**: {profile.what}. Source: {profile.source}. "
            f"Not published, assumed: {'; '.join(profile.assumed)}.",
        ]
    return lines


_NOTES = f"""\
Real coordinator, filter, launcher, pools and Ray actors; their engines wait instead of computing.
`step`: median without the first two and the last; with lag one step earlier, so that the same texts
are written. `expected`: the same median from the
profile and the lengths alone; `*` marks a ratio more than {TOLERANCE:.0%} off. `gain`: synchronous
step over this one. `idle`: share of the time in which a role's actors had no work. On 64 GPUs every
role and the prompts of a step are eight-fold.

`clock`: one second here stands for so many of the profile, and one token for as many. `beyond`:
seconds of this machine by which a step is longer than expected, `driver`: CPU seconds of the
driver's process a step. What the program does for a token keeps its proportion; what it does for a
rollout or a step shows in `step` and `ratio` as many times too large as the clock is fast."""


_WAVES = """\
`expected` of overlap is its ideal: every text is read the moment it is scored, by all ranks
together. The coordinator reads in waves, of half a round of micro-batches at least; a text is one
rank's, and ranks wait for each other. Expected with that, by the least size of a wave:"""

_CLOCK = "The clock hides nothing if the first case takes as long at a quarter of its speed:"


def report(
    table: Sequence[str], waves: Sequence[str], check: Sequence[str], arguments: argparse.Namespace
) -> str:
    """The whole text."""
    some = set(arguments.cases) != set(CASES)
    cases = f" --cases {' '.join(arguments.cases)}" if some else ""
    sizes = [f"{rounds:g} of a round" if rounds < 1 else "a round" for rounds in ROUNDS]
    waves_head = ["profile/GPUs", "measured, s", "ideal, s", *sizes]
    head = [f"| {' | '.join(_HEAD)} |", f"|{'---|' * len(_HEAD)}"]
    return "\n".join(
        [
            "# Overlap and lag by profiles of published runs",
            "",
            f"Made by `python benchmarks/pipeline.py{cases} --steps {arguments.steps} --seconds "
            f"{arguments.seconds:g}` on {os.cpu_count()} cores, load {os.getloadavg()[2]:.1f}.",
            _NOTES,
            "",
            *head,
            *table,
            "",
            *(
                [
                    _WAVES,
                    "",
                    f"| {' | '.join(waves_head)} |",
                    f"|{'---|' * len(waves_head)}",
                    *waves,
                    "",
                ]
                if waves
                else []
            ),
            *([_CLOCK, "", *head, *check, ""] if check else []),
            "## Profiles",
            "",
            *profile_lines(),
            "",
            "All: responses are drawn independently; an engine over twice the GPUs decodes 1.62 "
            "times as fast (assumed);",
            "neither weights nor the teacher's signals are moved, the weights' way is waited for.",
            "",
        ]
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=CASES,
        default=list(CASES),
        help="without all of them the clock is not checked",
    )
    parser.add_argument("--steps", type=int, default=7, help="of each run (default 7)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=5.0,
        help="of a synchronous step here, on 8 GPUs; on 64 four times as many (default 5)",
    )
    arguments = parser.parse_args()
    if arguments.steps < 4:
        parser.error(f"--steps {arguments.steps}: at least 4; the first two and the last are out")
    table: list[str] = []
    waves: list[str] = []
    check: list[str] = []
    begin = time.monotonic()
    with local_ray(gpus=64):
        for name in arguments.cases:
            case = CASES[name]
            seconds = arguments.seconds * (1 if case.placement.times == 1 else 4)
            scale = case.scale(seconds, arguments.steps)
            found = measure(case.profile, case.placement, scale, arguments.steps, modes())
            table += rows(case, found, scale)
            waves += wave_rows(case, found)
            print("\n".join([*table[-len(found) :], *wave_rows(case, found)]), flush=True)
            for one in found:
                stages = ", ".join(f"{stage} {spent:.2f}" for stage, spent in one.stages.items())
                print(f"  {one.mode}, seconds here: {stages}", flush=True)
        if set(arguments.cases) == set(CASES):
            case = CASES[arguments.cases[0]]
            slow = max(1, case.scale(arguments.seconds, arguments.steps) // 4)
            found = measure(case.profile, case.placement, slow, arguments.steps, modes()[:1])
            check += rows(case, found, slow)
    text = report(table, waves, check, arguments)
    RESULTS.write_text(text)
    print(f"\n{text}\nwritten to {RESULTS} after {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
