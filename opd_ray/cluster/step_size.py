"""Tokens of one step and bytes between its stages, at most, from config and model shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from opd_ray.config.choices import Dtype, SignalChoice, Support
from opd_ray.config.schema import Config
from opd_ray.config.teacher import TeacherSettings
from opd_ray.models.shape import ModelShape

FP32_BYTES = 4
ELEMENT_BYTES = {Dtype.float32: 4, Dtype.bfloat16: 2}


@dataclass(frozen=True)
class Flow:
    """What one stage sends another in one step, at most."""

    source: str
    target: str
    what: str
    nbytes: int


@dataclass(frozen=True)
class StepTokens:
    """Tokens of one step if every prompt and response is as long as allowed."""

    rollouts: int
    prompt: int
    response: int
    kept: int


def step_tokens(config: Config) -> StepTokens:
    """The most tokens one step can have."""
    rollouts = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
    prompt = min(config.data.max_prompt_tokens, config.student.context_length)
    response = rollouts * config.rollout.max_new_tokens
    share = 1.0 if config.tip.rule == "all" else config.tip.rho
    return StepTokens(rollouts, rollouts * prompt, response, round(share * response))


def held_tokens(config: Config) -> int:
    """Response tokens whose signals the teachers hold at once, at most.

    They are those of a step, until it is trained on. With ``run.lag`` the next step's come while
    trainers look at all signals for exact scores, and are there while the student is measured.
    """
    step = step_tokens(config).response
    if not config.run.lag:
        return step
    looked_at = step if config.scores_exactly else 0
    measured = config.eval.kl_prompts * config.rollout.max_new_tokens if config.eval.every else 0
    return step + max(looked_at, measured)


def signal_bytes_per_token(
    config: Config, settings: TeacherSettings, shape: ModelShape | None
) -> int:
    """Bytes of the signal of one of the run's teachers for one response token."""
    if settings.signal is SignalChoice.topk:
        return config.support_width * (4 + FP32_BYTES)
    if settings.signal is SignalChoice.hidden:
        return shape.hidden_size * ELEMENT_BYTES[settings.dtype] if shape else 0
    return FP32_BYTES


def step_flows(
    config: Config,
    student: ModelShape | None,
    teachers: Mapping[str, ModelShape] | None = None,
) -> list[Flow]:
    """Bytes between the stages in one step, at most; flows whose size is unknown are left out.

    ``teachers`` are the shapes that are known, by path.
    """
    tokens = step_tokens(config)
    # Response id, mask, entropy and log-probability of the sampled token; prompt ids.
    written = tokens.response * (4 + 1 + 4 + 4) + tokens.prompt * 4
    recorded = tokens.response * config.rollout.record_topk * (4 + FP32_BYTES)
    flows = [
        Flow("rollout", "coordinator", "text and scores", written),
        Flow("rollout", "teacher", "student top-k", recorded),
        # Reverse and forward KL, JSD, log-probability, mass, entropy.
        Flow("teacher", "coordinator", "scores", tokens.response * 6 * FP32_BYTES),
    ]
    signal = _widest_signal(config, teachers or {})
    if signal and config.scores_exactly:
        whole = tokens.response * signal
        flows.append(Flow("teacher", "trainer", "signal of all tokens, for exact scores", whole))
    if signal:
        what = f"signal of kept tokens{_support_words(config)}"
        flows.append(Flow("teacher", "trainer", what, tokens.kept * signal))
    if student is not None:
        count, what = student.parameters, "weights"
        if config.serves_adapter:
            lora = config.student.lora
            count, what = student.adapter_parameters(lora.rank, lora.target_modules), "adapter"
        sent = count * ELEMENT_BYTES[config.rollout.dtype]
        flows.append(Flow("trainer", "rollout", f"{what}, to each actor", sent))
    return flows


def _support_words(config: Config) -> str:
    """Which tokens a row of the topk signal names; nothing of other signals."""
    if config.teacher_set.first.signal is not SignalChoice.topk:
        return ""
    own = f"the teacher's {config.teacher_set.first.topk}"
    students = f"the student's {config.rollout.record_topk}"
    named = {
        Support.teacher: own,
        Support.student: students,
        Support.union: f"{own} and {students}",
    }
    return f": {named[config.support]} likeliest tokens a row, and one tail"


def _widest_signal(config: Config, shapes: Mapping[str, ModelShape]) -> int:
    """Bytes of one token's signal from the teacher whose signal is the largest; 0: unknown."""
    if config.teacher.signal is not SignalChoice.hidden:
        return signal_bytes_per_token(config, config.teacher, None)
    signals = [
        sum(
            signal_bytes_per_token(config, model, shapes[model.path or ""])
            for model in teacher.models
        )
        for teacher in config.teacher_set.working.values()
        if all(model.path in shapes for model in teacher.models)
    ]
    return max(signals, default=0)
