"""``opd-ray doctor``: machine, packages, config, data, pairing, placement, size of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from opd_ray.cluster.local_ray import local_ray_problems
from opd_ray.cluster.memory import checkpoint_bytes
from opd_ray.cluster.memory_fit import capacity_problems, memory_problems, memory_table
from opd_ray.cluster.nodes import Cluster, available_memory, gigabytes, this_machine
from opd_ray.cluster.placement import plan_placement
from opd_ray.cluster.step_size import step_flows, step_tokens
from opd_ray.config.load import load_config
from opd_ray.config.schema import Config
from opd_ray.config.teacher import TeacherSettings, model_path
from opd_ray.data.gold_answers import asked_problems
from opd_ray.data.load import load_prompts
from opd_ray.data.rows import MissingData
from opd_ray.errors import ConfigError, OpdError
from opd_ray.models.context import context_length
from opd_ray.models.hub import check_reachable
from opd_ray.models.lora_targets import linear_layers, targets
from opd_ray.models.shape import (
    ModelShape,
    ModelShapeError,
    config_json,
    described_model,
    read_shape,
)
from opd_ray.models.weight_files import NoWeights
from opd_ray.output.checkpoint import CheckpointStore
from opd_ray.output.folder import OutputFolder, kept_date
from opd_ray.output.resume import find_start, told
from opd_ray.preflight.config import config_problems
from opd_ray.preflight.environments import making_problems
from opd_ray.preflight.findings import Finding, Report, failed, noted, passed
from opd_ray.preflight.lora import layer_problems
from opd_ray.preflight.machine import disk_finding, machine_findings, package_findings
from opd_ray.preflight.model_files import (
    ModelUse,
    models_of_run,
    models_once,
    told_of,
    weights_of,
)
from opd_ray.preflight.models import ask_server, asked_servers
from opd_ray.preflight.pairing import check_pairings, describe_student
from opd_ray.preflight.unused import unused_options

# What a check raises that found something; all else is a fault of the check.
_REFUSALS = (OpdError, ValueError, OSError)


def examine(
    name_or_path: str,
    overrides: Sequence[str] = (),
    cluster: Cluster | None = None,
    check_study: Callable[[Config], object] = lambda config: None,
) -> Report:
    """Look at everything a run of this config would need; failures are findings, never exceptions.

    Args:
        name_or_path: of the config.
        overrides: of its keys.
        cluster: None: the cluster at ``cluster.address``, or this machine.
        check_study: raises what no study of a config with arms can have.
    """
    report = Report()
    cpus = None
    try:
        config = load_config(name_or_path, overrides)
        cpus = config.cluster.num_cpus
        problems = config_problems(config)
        if config.study.arms and not problems:
            check_study(config)
    except OpdError as error:
        problems = [str(error)]
    report.add("machine", machine_findings(this_machine(cpus).nodes[0]))
    report.add("packages", package_findings())
    valid = passed("config", f"{name_or_path}: every key and combination is valid")
    if problems:
        report.add("config", [failed("config", text) for text in problems])
        return report
    report.add("config", [valid, *(noted("config", text) for text in unused_options(config))])
    working = config.teacher_set.models.items()
    models = {"student": config.student.path}
    models |= {key: path for key, settings in working if (path := model_path(settings))}
    shapes = {path: shape for path in models.values() if (shape := _shape(path))}
    here = cluster is None and config.cluster.address is None
    weights = [_weights_finding(model, here) for model in models_once(models_of_run(config))]
    layers = _layer_findings(config)
    report.add("models", [*_model_findings(config, models, shapes), *weights, *layers])
    known = {path: described_model(path) for path in models.values()}
    contexts = {path: context_length(config) for path, config in known.items() if config}
    report.add("data", _data_findings(config, contexts))
    student = shapes.get(config.student.path)
    needed = checkpoint_bytes(config, student) if student else None
    if cluster is None:
        report.add("output", [disk_finding(config, needed), *_folder_findings(config)])
    elif needed is not None:
        report.add("output", [noted("disk", f"about {gigabytes(needed)} needed on the cluster")])
    _add_plan(report, config, cluster, student, shapes)
    report.add("step", [], _step_table(config, student, shapes))
    return report


def _shape(path: str) -> ModelShape | None:
    """The model's shape, where its config.json is here and of a known architecture."""
    try:
        return read_shape(path)
    except ModelShapeError:
        return None


def _model_findings(
    config: Config, models: Mapping[str, str], shapes: Mapping[str, ModelShape]
) -> Iterator[Finding]:
    """``models`` are paths by role, ``shapes`` those that are known, by path."""
    for role, path in models.items():
        shape = shapes.get(path)
        if shape is None:
            yield noted(role, f"{path}: shape unknown here, so memory is not estimated")
        else:
            tied = "tied" if shape.tied else "untied"
            yield passed(
                role,
                f"{shape.model_type}, {shape.parameters / 1e6:,.2f} M parameters, {shape.layers} "
                f"layers of {shape.hidden_size}, {shape.vocab_size:,} vocabulary rows ({tied}), "
                f"context {shape.context_length:,}",
            )
    elsewhere = [path for path in models.values() if config_json(path) is None]
    if elsewhere:
        yield noted(
            "pairing",
            f"not checked: {', '.join(elsewhere)} not on this machine",
            f"without weights: hf download {elsewhere[0]} --include '*.json' '*.jinja' '*.txt' "
            "'*.model'",
        )
        return
    yield _tried("pairing", partial(_pair, config))
    for settings in asked_servers(config):
        yield _tried(f"{settings.key}'s server", partial(_server, config, settings))


def _weights_finding(model: ModelUse, here: bool) -> Finding:
    """Whether the model can be had, if the run is to be ``here``, and its weights are its own."""
    name = f"{model.key.removesuffix('.path')}'s weights"
    try:
        if here:
            check_reachable(model.path, weights=True)
        check = weights_of(model)
    except OpdError as error:
        elsewhere = isinstance(error, NoWeights) and not here
        return (noted if elsewhere else failed)(name, told_of(model, error))
    detail = f"{model.path}: {check.detail}"
    return passed(name, detail) if check.compared else noted(name, detail)


def _layer_findings(config: Config) -> Iterator[Finding]:
    """Of a student that is trained as an adapter: the layers that get it."""
    if config.student.lora.on and config_json(config.student.path) is not None:
        yield _tried("student.lora", partial(_adapted, config))


def _adapted(config: Config) -> str:
    if problems := [*layer_problems(config)]:
        raise ConfigError("\n".join(problems))
    student, lora = config.student, config.student.lora
    layers = linear_layers(student.path, trust_remote_code=student.trust_remote_code)
    named = {name: layers[name] for name in targets(layers, lora.target_modules)}
    count = sum(lora.rank * (inputs + outputs) for inputs, outputs in named.values())
    return f"rank {lora.rank} for {len(named)} linear layers: {count / 1e6:,.2f} M parameters"


def _pair(config: Config) -> str:
    pairing = check_pairings(config)
    accepted = f"; accepted: {', '.join(pairing.accepted)}" if pairing.accepted else ""
    models = config.teacher_set.models.values()
    without = {settings.kind for settings in models if model_path(settings) is None}
    if without:
        return (
            f"the student's tokenizer of {pairing.vocab_size:,} tokens; a teacher of kind "
            f"{', '.join(sorted(without))} has no files to compare, opd-ray check-teacher asks it"
            f"{accepted}"
        )
    return f"one tokenizer of {pairing.vocab_size:,} tokens{accepted}"


def _server(config: Config, settings: TeacherSettings) -> str:
    student = describe_student(config.student)
    served = ask_server(config, settings, student.tokenizer, student.vocab_size)
    return f"{served.model} scores token ids, sequences of up to {served.context_length:,} tokens"


def _data_findings(config: Config, contexts: Mapping[str, int]) -> Iterator[Finding]:
    """Every row is read once; prompts are measured where the student's tokenizer is here.

    ``contexts`` are the models' by path, as far as they are known.
    """
    if config_json(config.student.path) is not None:
        yield from _prompt_findings(config, contexts)
        return
    yield noted("prompt lengths", "not checked: the student's tokenizer is not on this machine")
    tasks = {f"{place}.data": task for place, task in config.named_tasks.items()}
    for section, data in config.data_sections.items():
        try:
            loaded = load_prompts(data, seed=config.run.seed, section=section)
            yield passed(section, str(loaded.report))
            if section in tasks:
                for note in asked_problems(tasks[section], loaded, section).notes:
                    yield noted(section, note)
        except MissingData as error:
            # The run is planned for elsewhere, so its prompts may be there too.
            yield noted(section, str(error))
        except OpdError as error:
            yield failed(section, str(error))
    # With a tokenizer they are made for the prompts.
    for text in making_problems(config):
        yield noted("environment", text)


def _prompt_findings(config: Config, contexts: Mapping[str, int]) -> Iterator[Finding]:
    # All of these import transformers, which the findings on packages may call broken.
    from opd_ray.data.prompts import PromptFeed, dated, divergence_prompts, held_out_tasks
    from opd_ray.environments.by_source import RunEnvironments
    from opd_ray.preflight.prompts import check_routing, prompt_notes
    from opd_ray.preflight.turns import check_turns

    try:
        student = describe_student(config.student)
    except OpdError as error:
        yield failed("data", f"prompts cannot be measured: {str(error).splitlines()[0]}")
        return
    prompts, tokenizer = None, student.tokenizer
    environments = RunEnvironments(config.environment_set)
    turn_notes: list[str] = []
    try:
        config = dated(config, tokenizer, kept_date(config.run))
        prompts = PromptFeed.load(config, tokenizer, environments)
        yield passed("data", str(prompts))
    except _REFUSALS as error:
        yield failed("data", str(error))
    try:
        tasks = held_out_tasks(config, tokenizer, environments)
        divergence_prompts(tasks, config.eval.kl_prompts)
        if prompts is not None:
            check_routing(config, prompts, tasks, contexts)
        sources = [*prompts.sources] if prompts is not None else []
        turn_notes = check_turns(config, tokenizer, student.eos_ids, sources, tasks, environments)
    except _REFUSALS as error:
        yield failed("held-out data", str(error))
        return
    sizes = (f"{task.settings.name}: {len(task.prompts)} problems" for task in tasks)
    yield passed("held-out data", ", ".join(sizes) or "no evaluation tasks")
    for note in prompt_notes(prompts, tasks):
        own = prompts is not None and note in prompts.notes
        yield noted("data" if own else "held-out data", note)
    for note in turn_notes:
        yield noted("environment", note)


def _folder_findings(config: Config) -> Iterator[Finding]:
    """Whether the run may start or go on in its folder, but for its prompts: see the data."""
    folder = OutputFolder(config.run.output_dir)
    if not folder.path.is_dir():
        return
    try:
        with folder:
            start = find_start(config, CheckpointStore(folder.checkpoints, keep=1))
            found = told(folder.accept(config, start))
    except OpdError as error:
        yield failed("output folder", str(error))
        return
    if start is not None:
        yield passed("output folder", f"goes on from {start.checkpoint} at step {start.state.step}")
    for text in found:
        yield noted("output folder", f"changed since the run in it was last at work: {text}")


def _add_plan(
    report: Report,
    config: Config,
    cluster: Cluster | None,
    student: ModelShape | None,
    shapes: Mapping[str, ModelShape],
) -> None:
    try:
        plan = plan_placement(config, cluster or _cluster(config), student, shapes)
    except OpdError as error:
        report.add("placement", [failed("placement", str(error))])
        return
    problems = [*capacity_problems(config, student, shapes), *memory_problems(config, plan)]
    on_gpus = any(actor.gpus for actor in plan.actors)
    remedy = "what fits, and its keys: opd-ray doctor --budget" if on_gpus else ""
    findings = [failed("memory", text, remedy) for text in problems]
    here = cluster is None and config.cluster.address is None
    if here:
        findings += [failed("Ray", text) for text in local_ray_problems(config.cluster)]
    needed = sum(actor.memory.host_bytes for actor in plan.actors if actor.memory)
    if here and not findings and needed > available_memory():
        findings.append(
            noted(
                "memory",
                f"about {gigabytes(needed)} needed, {gigabytes(available_memory())} free now",
                "end other programs before the run",
            )
        )
    if unknown := plan.unknown_gpu_memory():
        findings.append(
            noted(
                "GPU memory",
                f"not checked: unknown of {', '.join(unknown)}",
                "plan for nodes of a size you name: --gpus N --gpu-memory-gb GB",
            )
        )
    report.add("placement", findings or [passed("placement", "every actor fits")], plan.render())
    if table := memory_table(config, plan):
        report.add("memory, estimated", [], table)


def _cluster(config: Config) -> Cluster:
    if config.cluster.address is None:
        return this_machine(config.cluster.num_cpus)
    from opd_ray.cluster.session import RaySession

    with RaySession(config.cluster) as session:
        return session.cluster()


def _step_table(
    config: Config, student: ModelShape | None, shapes: Mapping[str, ModelShape]
) -> str:
    tokens = step_tokens(config)
    flows = [
        f"{flow.source} -> {flow.target}: {gigabytes(flow.nbytes)} ({flow.what})"
        for flow in step_flows(config, student, shapes)
    ]
    most = (
        f"{tokens.rollouts:,} rollouts, at most {tokens.prompt:,} prompt and {tokens.response:,} "
        f"response tokens, of which {tokens.kept:,} are trained on"
    )
    return "\n".join([most, *flows])


def _tried(name: str, check: Callable[[], str]) -> Finding:
    """``check``'s words for success, or its error as a failure."""
    try:
        return passed(name, check())
    except _REFUSALS as error:
        return failed(name, str(error))
