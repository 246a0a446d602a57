"""The cells of a study: one arm with one seed each, as a run's configuration of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from omegaconf import OmegaConf

from opd_ray.config.keys import editable, layer_problems
from opd_ray.config.ranges import range_problems
from opd_ray.config.schema import Config, StudyArm
from opd_ray.config.trainer import effective_zero_stage
from opd_ray.errors import ConfigError
from opd_ray.preflight.config import config_problems
from opd_ray.tip import TipFilter, TipSettings


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    arm: str
    seed: int
    config: Config  # with this arm's filter and this seed


def study_cells(config: Config) -> list[Cell]:
    """Every cell, seed by seed, so that a study that is cut short has its arms balanced.

    Raises:
        ConfigError: lists what no study can have; every cell's configuration is checked too.
    """
    problems = list(_study_problems(config))
    if problems:
        raise ConfigError("\n".join(problems))
    arms = {arm.name: _of_arm(config, arm, place) for place, arm in _arms(config)}
    cells = [
        Cell(name, seed, replace(arm, run=replace(arm.run, seed=seed)))
        for seed in config.study.seeds
        for name, arm in arms.items()
    ]
    common = config_problems(config)
    for cell in cells[: len(arms)]:
        problems = config_problems(cell.config)
        if problems:
            raise ConfigError("\n".join(_of_whom(cell.arm, one, common) for one in problems))
    return cells


def _of_whom(arm: str, problem: str, common: list[str]) -> str:
    """A problem of a cell's configuration, with the arm that alone has it."""
    return problem if problem in common else f"study arm {arm!r}: {problem}"


def _study_problems(config: Config) -> Iterator[str]:
    study = config.study
    if not study.seeds or not study.arms:
        yield "study.seeds and study.arms: a study needs at least one of each"
    for what, values in (("seeds", study.seeds), ("arms", [arm.name for arm in study.arms])):
        for value, count in Counter(values).items():
            if count > 1:
                yield f"study.{what}: {value!r} is there {count} times; once is enough"
    for place, arm in _arms(config):
        if not arm.name or set(arm.name) & set("/\\|") or arm.name.startswith("."):
            yield f"{place}.name = {arm.name!r}: it names a folder; use letters, digits, _ . -"
        yield from layer_problems(TipSettings, arm.tip, f"{place}.tip")
        yield from range_problems(place, arm)
    names = [arm.name for arm in study.arms]
    if study.baseline is not None and study.baseline not in names:
        yield f"study.baseline = {study.baseline!r}: no arm of that name; choose of {names}"
    if not config.eval.tasks or not config.eval.kl_prompts:
        yield "eval.tasks and eval.kl_prompts: a study compares held-out accuracy and KL"
    elif not config.eval.tasks[0].greedy:
        yield "eval.tasks[0].greedy = false: a study compares its greedy accuracy; set it to true"
    if config.run.resume != "auto":
        yield (
            f"run.resume = {config.run.resume!r}: a study always goes on where its folder stands; "
            "to start anew choose another run.output_dir"
        )
    if (stage := effective_zero_stage(config.trainer)) != 0:
        yield (
            f"trainer.zero_stage = {config.trainer.zero_stage} (stage {stage} with "
            f"trainer.dtype = {config.trainer.dtype}): a study resets the optimizer between cells, "
            "which only stage 0 in float32 is known to do; use trainer.zero_stage=0 and float32"
        )


def _arms(config: Config) -> list[tuple[str, StudyArm]]:
    return [(f"study.arms[{number}]", arm) for number, arm in enumerate(config.study.arms)]


def _of_arm(config: Config, arm: StudyArm, place: str) -> Config:
    """A run of the study's configuration with the keys of one arm."""
    run = replace(
        config.run,
        overlap=config.run.overlap if arm.overlap is None else arm.overlap,
        lag=config.run.lag if arm.lag is None else arm.lag,
    )
    return replace(config, run=run, tip=_arm_settings(config.tip, arm, place))


def _arm_settings(base: TipSettings, arm: StudyArm, place: str) -> TipSettings:
    """The section tip with an arm's keys laid over it; a rule that is not there is refused."""
    merged = OmegaConf.merge(editable(TipSettings), asdict(base), arm.tip)
    try:
        made = OmegaConf.to_object(merged)
        assert isinstance(made, TipSettings)
        TipFilter(made)
    except ValueError as error:
        raise ConfigError(f"{place} ({arm.name}): {error}") from error
    return made
