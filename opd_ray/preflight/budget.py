"""``opd-ray doctor --budget``: which placements of a pair fit a machine, and its largest pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from opd_ray.cluster.budget import Option, Trained, best, options, with_values
from opd_ray.cluster.memory import longest_text
from opd_ray.cluster.nodes import Cluster, Node, gigabytes
from opd_ray.config.load import load_config
from opd_ray.config.schema import Config
from opd_ray.errors import ConfigError
from opd_ray.models.shape import ModelShape, known_names, read_shape
from opd_ray.preflight.config import check_config, config_problems
from opd_ray.preflight.lora import missing_packages

# Machines of the table: how many GPUs, and the gigabytes of each.
COUNTS = (1, 2, 4, 8)
SIZES_GB = (24, 48, 80, 141)
_GB = 10**9


def budget(name_or_path: str, overrides: Sequence[str], cluster: Cluster) -> str:
    """The placements that fit, best first, with the keys to set; and the machine's largest pair.

    Raises:
        ConfigError: no legal configuration, or not of a teacher that runs a model.
        ModelShapeError: a model whose shape cannot be read.
    """
    config = _checked(name_or_path, overrides)
    (node,) = cluster.nodes
    if not node.gpus or not node.gpu_memory_bytes:
        lacks = "the size of its GPUs is not known" if node.gpus else "it has none"
        raise ConfigError(
            f"doctor --budget plans a machine with GPUs, and {lacks}: name one, --gpus N "
            "--gpu-memory-gb GB"
        )
    fitting = [*_fitting(config, cluster)]
    excluded = {o.placement: problems[0] for o in fitting if (problems := _problems(o.config))}
    layers = _shape(config.student.path).layers
    legal = (option for option in fitting if option.placement not in excluded)
    found = [option.recomputing_least(layers) for option in best(legal)]
    longest = longest_text(config)
    lines = [
        f"{config.teacher.path} -> {config.student.path}, texts of {longest:,} tokens, on "
        f"{_machine(node)}",
        "",
    ]
    if found:
        lines += [*_table(found), "", *_keys(found)]
    else:
        lines.append(
            "nothing fits: take a smaller pair, shorter texts (student.context_length and "
            f"rollout.max_new_tokens = {config.rollout.max_new_tokens}), or more main memory, "
            "which turns and offloading use"
        )
    lines += [f"left out: {problem}" for problem in excluded.values()]
    lines += ["", *_largest(config, cluster)]
    return "\n".join(lines)


def budget_table(name_or_path: str, overrides: Sequence[str]) -> str:
    """One line a size of GPU, one column a number of them: the best placement, in Markdown.

    Raises:
        as :func:`budget`.
    """
    config = _checked(name_or_path, overrides)
    heads = [f"{count} GPU{'s' * (count > 1)}" for count in COUNTS]
    lines = [
        "| GB each | " + " | ".join(heads) + " |",
        "| --- |" + " --- |" * len(heads),
    ]
    for size in SIZES_GB:
        cells = [_cell(best(_options(config, table_machine(count, size)))) for count in COUNTS]
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table_machine(gpus: int, gigabytes_each: int) -> Cluster:
    """One of the table: for each GPU 8 cores, and main memory of twice its size, 64 GB at least."""
    memory = max(64, 2 * gigabytes_each) * gpus * _GB
    return Cluster((Node("local", 8.0 * gpus, memory, gpus, gigabytes_each * _GB),))


def _checked(name_or_path: str, overrides: Sequence[str]) -> Config:
    config = load_config(name_or_path, overrides)
    check_config(config)
    working = [*config.teacher_set.working.values()]
    if len(working) != 1 or not config.teacher.traits.runs_model or not config.teacher.path:
        raise ConfigError(
            f"teacher.kind = {config.teacher.kind!r} with {len(working)} teachers: doctor --budget "
            "plans for one teacher that runs a model; use kind hf or vllm, and plan others with "
            "opd-ray doctor --config"
        )
    return config


def _options(config: Config, cluster: Cluster) -> Iterator[Option]:
    """Those that fit and are legal."""
    return (o for o in _fitting(config, cluster) if not _problems(o.config))


def _problems(config: Config) -> list[str]:
    """What no machine can have: the one that is planned may have packages that this one lacks."""
    lacking = {*missing_packages(config)}
    return [problem for problem in config_problems(config) if problem not in lacking]


def _fitting(config: Config, cluster: Cluster) -> Iterator[Option]:
    teacher = str(config.teacher.path)
    return options(config, cluster, _shape(config.student.path), {teacher: _shape(teacher)})


def _shape(path: str) -> ModelShape:
    shape = read_shape(path)
    if shape is None:
        raise ConfigError(
            f"{path!r}: its config.json is not on this machine; hf download {path} config.json, or "
            "give a folder that holds it"
        )
    return shape


def _machine(node: Node) -> str:
    size = gigabytes(node.gpu_memory_bytes or 0)
    count = "1 GPU" if node.gpus == 1 else f"{node.gpus} GPUs"
    return f"{count} of {size}, {node.cpus:g} cores, {gigabytes(node.memory_bytes)} of main memory"


def _table(found: Sequence[Option]) -> Iterator[str]:
    head = (
        *("", "student", "placement", "trainers", "GB of each", "main GB"),
        *("rollout tokens", "teacher tokens"),
    )
    rows = [head, *(_row(number, option) for number, option in enumerate(found, 1))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        yield "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()


def _row(number: int, option: Option) -> tuple[str, ...]:
    actors = [actor for actor in option.plan.actors if actor.memory]
    trainer = next(actor.memory for actor in actors if actor.role == "trainer")
    main = sum(actor.memory.host_bytes for actor in actors if actor.memory)
    return (
        str(number),
        student_words(option),
        placement_words(option),
        trainer_words(option),
        f"{trainer.device_bytes / 1e9:.1f}" if trainer else "",
        f"{main / 1e9:.0f}",
        f"{option.cache_tokens('rollout'):,}",
        f"{option.cache_tokens('teacher'):,}" if option.config.teacher.traits.vllm_engine else "-",
    )


def student_words(option: Option) -> str:
    """How the student is trained."""
    if option.whole:
        return "whole"
    words = f"LoRA {option.config.student.lora.rank}"
    return f"{words} nf4" if option.trained is Trained.adapter_on_four_bits else words


def placement_words(option: Option) -> str:
    """Where the roles are: GPUs of trainers, rollout and teacher where they differ."""
    trainer, rollout, teacher = (
        option.config.trainer,
        option.config.rollout,
        option.config.teacher,
    )
    written = rollout.actors * rollout.gpus_per_actor
    if option.placement == "turns":
        return "turns"
    if option.placement == "shared":
        return f"shared {trainer.ranks}+{written}, teacher {teacher.gpus_per_replica:g}"
    return f"separate {trainer.ranks}+{written}+{int(teacher.gpus_per_replica)}"


def trainer_words(option: Option) -> str:
    """What the trainers do to save memory."""
    trainer = option.config.trainer
    away = ["optimizer"] * trainer.offload_optimizer + ["weights"] * trainer.offload_parameters
    words = f"ZeRO-{trainer.zero_stage}"
    if away:
        words += f", {' and '.join(away)} in main memory"
    layers = _shape(option.config.student.path).layers
    if (recomputed := option.recomputed(layers)) < layers:
        words += f", {recomputed} of {layers} layers recomputed"
    return words


def _keys(found: Sequence[Option]) -> Iterator[str]:
    """The overrides of each."""
    yield "its keys, to be added to the command:"
    for number, option in enumerate(found, 1):
        yield f"  {number}: {' '.join(option.overrides)}"
    if any(option.trained is Trained.adapter_on_four_bits for option in found):
        yield (
            "nf4 needs bitsandbytes (pip install 'opd-ray[qlora]'), and a higher sync.max_gap: "
            "trainers compute with rounded weights, rollout actors with whole ones"
        )


def _cell(found: Sequence[Option]) -> str:
    """The best way to train the student whole, else the best with an adapter."""
    if not found:
        return "-"
    option = found[0]
    words = placement_words(option)
    if not option.whole:
        words += f", {student_words(option)}"
    words += ("", ", offload", ", offload all")[option.offloaded]
    return f"{words}; {option.cache_tokens('rollout') / 1e3:,.0f}k"


def _largest(config: Config, cluster: Cluster) -> Iterator[str]:
    """The largest student of the known models that is trained whole, and in the other ways."""
    yield "largest pair of the models whose shapes come with the package, with these texts:"
    pairs = known_pairs()
    labels = {
        Trained.whole: "whole",
        Trained.adapter: "LoRA",
        Trained.adapter_on_four_bits: "LoRA nf4",
    }
    for trained, label in labels.items():
        found = (
            (teacher, student, option)
            for student, teacher in pairs
            for option in _pair_options(config, cluster, student, teacher, trained)
        )
        first = next(found, None)
        if first is None:
            yield f"  {label}: none"
        else:
            teacher, student, option = first
            yield f"  {label}: {teacher} -> {student} ({placement_words(option)})"


def _pair_options(
    config: Config, cluster: Cluster, student: str, teacher: str, trained: Trained
) -> Iterator[Option]:
    other = with_values(config, {"student.path": student, "teacher.path": teacher})
    return (option for option in _options(other, cluster) if option.trained is trained)


def known_pairs() -> list[tuple[str, str]]:
    """(student, larger teacher of the same kind), the largest student first, then teacher."""
    shapes = {name: _shape(name) for name in known_names()}
    size = {name: shape.parameters for name, shape in shapes.items()}
    found = [
        (student, teacher)
        for student in shapes
        for teacher in shapes
        if shapes[student].model_type == shapes[teacher].model_type
        and size[student] < size[teacher]
    ]
    return sorted(found, key=lambda pair: (-size[pair[0]], -size[pair[1]]))
