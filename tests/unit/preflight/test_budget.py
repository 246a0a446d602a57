"""doctor --budget: placements that fit, ranked, with keys that make runs that are legal and fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opd_ray.cli import main
from opd_ray.cluster.budget import SPARE, Option, Trained, best, options, with_values
from opd_ray.cluster.memory_fit import memory_problems
from opd_ray.cluster.nodes import Cluster, Node
from opd_ray.cluster.placement import plan_placement
from opd_ray.config.choices import PlacementChoice
from opd_ray.config.load import load_config
from opd_ray.models.shape import ModelShape, known_config, read_shape
from opd_ray.preflight.budget import known_pairs, table_machine
from opd_ray.preflight.config import config_problems
from opd_ray.preflight.lora import missing_packages

GB = 10**9
PAIRS = ("tip_qwen3_8b_to_4b", "tip_qwen25_14b_to_1_5b", "tip_llama33_70b_to_8b")
DOCS = Path(__file__).parents[3] / "docs" / "memory.md"


def shape_of(path: str | None) -> ModelShape:
    shape = read_shape(str(path))
    assert shape is not None
    return shape


def found_for(name: str, cluster: Cluster) -> list[Option]:
    config = load_config(name)
    student, teacher = config.student.path, str(config.teacher.path)
    return list(options(config, cluster, shape_of(student), {teacher: shape_of(teacher)}))


@pytest.mark.parametrize(("count", "size"), [(1, 24), (2, 48), (4, 80), (8, 24)])
def test_its_keys_make_a_legal_run_that_fits(count: int, size: int) -> None:
    """By the way that a user's command goes: through the config's files and overrides."""
    cluster = table_machine(count, size)
    teacher = "Qwen/Qwen3-8B"
    for most in best(found_for("tip_qwen3_8b_to_4b", cluster)):
        option = most.recomputing_least(36)
        config = load_config("tip_qwen3_8b_to_4b", list(option.overrides))
        assert config == option.config
        assert config_problems(config) == []
        shapes = {teacher: shape_of(teacher)}
        plan = plan_placement(config, cluster, shape_of(config.student.path), shapes)
        assert memory_problems(config, plan) == []
        used = sum(actor.gpus for actor in plan.actors)
        assert used == pytest.approx(count, abs=0.01)  # no GPU idles
        for actor in plan.actors:
            assert actor.memory is not None
            if actor.role == "trainer":
                assert actor.memory.device_bytes <= (1 - SPARE) * size * GB
            else:  # a text of the greatest length at least
                assert (actor.memory.cache_tokens(size * GB) or 0) >= 10_240


def test_what_fits_without_offloading_is_not_offloaded() -> None:
    """A step of 4 B parameters takes 2 + 4 + 12 bytes of each, 72 GB of the 80 there are: too many
    beside gradient of the head, activations and loss. Of 141 GB they are no more than half."""
    (whole, adapter) = best(found_for("tip_qwen3_8b_to_4b", table_machine(1, 80)))
    assert whole.whole
    assert whole.offloaded == 1
    assert whole.config.trainer.offload_optimizer
    assert not whole.config.trainer.offload_parameters
    assert not adapter.whole
    assert adapter.offloaded == 0
    (larger, _) = best(found_for("tip_qwen3_8b_to_4b", table_machine(1, 141)))
    assert larger.offloaded == 0
    assert not larger.config.trainer.offload_optimizer


@pytest.mark.parametrize(("count", "size"), [(1, 24), (2, 48), (8, 24), (1, 141)])
def test_no_more_layers_are_recomputed_than_memory_asks_for(count: int, size: int) -> None:
    cluster, teacher = table_machine(count, size), "Qwen/Qwen3-8B"
    found = best(found_for(PAIRS[0], cluster))
    assert found
    for most in found:
        student = shape_of(most.config.student.path)
        option = most.recomputing_least(student.layers)
        assert option.rank == most.rank
        layers = option.recomputed(student.layers)
        assert (layers == 0) is not option.config.trainer.gradient_checkpointing
        if layers == 0:
            continue
        fewer = {"trainer.recomputed_layers": layers - 1 or None}
        if layers == 1:
            fewer = {"trainer.gradient_checkpointing": False, "trainer.recomputed_layers": None}
        config = with_values(option.config, fewer)
        plan = plan_placement(config, cluster, student, {teacher: shape_of(teacher)})
        (trainer, *_) = [actor.memory for actor in plan.actors if actor.role == "trainer"]
        assert trainer is not None
        above = trainer.device_bytes > (1 - SPARE) * size * GB
        assert above or memory_problems(config, plan)


def test_four_bits_are_advised_where_whole_weights_under_an_adapter_do_not_stay(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """8 B weights beside activations in 24 GB: in four bits, or in main memory."""
    paths = [f"{role}.path=Qwen/Qwen3-8B" for role in ("student", "teacher")]
    config, shape = load_config("tip_math", paths), shape_of("Qwen/Qwen3-8B")
    found = list(options(config, table_machine(1, 24), shape, {"Qwen/Qwen3-8B": shape}))
    whole_weights, four_bits = best(found)
    assert whole_weights.trained is Trained.adapter
    assert whole_weights.offloaded == 1
    assert four_bits.trained is Trained.adapter_on_four_bits
    assert four_bits.offloaded == 0
    advised = load_config("tip_math", [*paths, *four_bits.overrides])
    assert advised == four_bits.config
    # Another machine may have bitsandbytes.
    assert {*config_problems(advised)} <= {*missing_packages(advised)}
    roomy = best(options(config, table_machine(1, 48), shape, {"Qwen/Qwen3-8B": shape}))
    assert [option.trained for option in roomy] == [Trained.adapter]

    machine = ["--gpus", "1", "--gpu-memory-gb", "24", "--cpus", "8", "--memory-gb", "64"]
    assert doctor("--config", "tip_math", *paths, *machine) == 0
    text = capsys.readouterr().out
    assert "2  LoRA 32 nf4  turns" in text
    assert (
        "nf4 needs bitsandbytes (pip install 'opd-ray[qlora]'), and a higher sync.max_gap" in text
    )


def test_one_gpu_is_for_turns_alone_and_two_can_be_shared() -> None:
    one = {option.placement for option in found_for(PAIRS[0], table_machine(1, 141))}
    two = {option.placement for option in found_for(PAIRS[0], table_machine(2, 141))}
    four = {option.placement for option in found_for(PAIRS[0], table_machine(4, 141))}
    assert one == {PlacementChoice.turns}
    assert two == {PlacementChoice.turns, PlacementChoice.shared}
    assert four == set(PlacementChoice)


def test_the_best_is_least_offloaded_and_then_of_the_most_tokens() -> None:
    found = found_for(PAIRS[0], table_machine(8, 24))
    ranked = best(found)
    for option in found:
        same = [b for b in ranked if (b.trained, b.placement) == (option.trained, option.placement)]
        if option.trained is Trained.adapter_on_four_bits:
            continue
        assert len(same) == 1
        assert same[0].rank <= option.rank
    for whole in (True, False):
        ranks = [option.rank for option in ranked if option.whole is whole]
        assert ranks == sorted(ranks)
    assert [option.whole for option in ranked] == sorted((o.whole for o in ranked), reverse=True)


def test_main_memory_is_part_of_the_machine() -> None:
    """Offloaded optimizers of 8 B parameters need 8 + 4 + 2 x 4 bytes of each there."""
    large, small = (
        Cluster((Node("local", 16.0, memory * GB, 2, 80 * GB),)) for memory in (400, 100)
    )
    assert any(option.whole for option in found_for("tip_llama33_70b_to_8b", large)) is False
    name, pair = "tip_math", {"student.path": "meta-llama/Llama-3.1-8B-Instruct"}
    teacher = "Qwen/Qwen3-8B"
    config = with_values(
        load_config(name, ["student.path=a", "teacher.path=b"]), pair | {"teacher.path": teacher}
    )
    for cluster, fits in ((large, True), (small, False)):
        found = options(
            config, cluster, shape_of(pair["student.path"]), {teacher: shape_of(teacher)}
        )
        assert any(option.whole for option in found) is fits


def test_pairs_are_of_one_kind_and_the_largest_student_comes_first() -> None:
    pairs = known_pairs()
    assert pairs[0] == ("Qwen/Qwen3-14B", "Qwen/Qwen3-32B")
    assert ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.3-70B-Instruct") in pairs
    assert not [pair for pair in pairs if pair[0].split("/")[0] != pair[1].split("/")[0]]


def doctor(*words: str) -> int:
    return main(["doctor", "--budget", *words])


def test_the_command_of_a_pair_that_has_no_more_than_its_config_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for role, name in (("student", "Qwen3-1.7B"), ("teacher", "Qwen3-8B")):
        (tmp_path / role).mkdir()
        described = known_config(f"Qwen/{name}")
        (tmp_path / role / "config.json").write_text(json.dumps(described))
    machine = ["--gpus", "1", "--gpu-memory-gb", "24", "--cpus", "8", "--memory-gb", "64"]
    paths = [f"{role}.path={tmp_path / role}" for role in ("student", "teacher")]
    assert doctor("--config", "tip_math", *paths, *machine) == 0
    text = capsys.readouterr().out
    assert "texts of 10,240 tokens, on 1 GPU of 24.00 GB, 8 cores, 64.00 GB of main memory" in text
    lines = text.splitlines()
    (first,) = (line for line in lines if line.startswith("1  whole"))
    assert "turns" in first
    (keys,) = (line.split()[1:] for line in lines if line.startswith("  1: "))
    assert "cluster.placement=turns" in keys
    assert config_problems(load_config("tip_math", [*paths, *keys])) == []
    assert "  whole: Qwen/Qwen3-8B -> Qwen/Qwen3-1.7B (turns)" in lines
    assert "  LoRA: Qwen/Qwen3-8B -> Qwen/Qwen3-4B (turns)" in lines
    assert "  LoRA nf4: Qwen/Qwen3-8B -> Qwen/Qwen3-4B (turns)" in lines


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", PAIRS[0]], "with GPUs, and it has none: name one, --gpus N"),
        (["--config", PAIRS[0], "--gpus", "2"], "the size of its GPUs is not known"),
        (["--config", PAIRS[0], "--nodes", "2"], "--budget with --nodes 2"),
        (["--config", "tip_math", "student.path=a/b", "teacher.path=a/c"], "hf download a/b"),
        (
            [
                *("--config", PAIRS[0], "teacher.kind=http", "teacher.url=http://h:1/v1"),
                *("teacher.gpus_per_replica=0", "teacher.tensor_parallel_size=1"),
            ],
            "plans for one teacher that runs a model",
        ),
        (["--config", PAIRS[0], "tip.rho=2"], "tip.rho"),
    ],
)
def test_what_it_cannot_plan_is_said(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opd_ray.cluster.nodes._gpus", lambda: (0, None))
    gpus = [] if "GPU" in said else ["--gpus", "1", "--gpu-memory-gb", "80"]
    assert doctor(*words, *gpus) == 2
    assert said in capsys.readouterr().err


def test_a_machine_that_is_too_small_for_anything_is_told_what_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine = ["--gpus", "1", "--gpu-memory-gb", "8", "--cpus", "8", "--memory-gb", "64"]
    assert doctor("--config", PAIRS[0], *machine) == 0
    text = capsys.readouterr().out
    assert "nothing fits: take a smaller pair, shorter texts" in text
    assert "  whole: none" in text


def test_what_the_config_excludes_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    machine = ["--gpus", "2", "--gpu-memory-gb", "141", "--cpus", "16", "--memory-gb", "400"]
    assert doctor("--config", PAIRS[0], "run.lag=1", *machine) == 0
    text = capsys.readouterr().out
    assert "left out: cluster.placement = turns with run.lag = 1" in text
    assert "1  whole    shared 1+1" in text


@pytest.mark.parametrize(
    ("option", "value"),
    [("--gpus", "-1"), ("--cpus", "0"), ("--gpu-memory-gb", "24GB"), ("--memory-gb", "inf")],
)
def test_a_machine_that_is_none_is_refused(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--config", "demo", option, value])
    assert f"argument {option}: '{value}': give " in capsys.readouterr().err


@pytest.mark.parametrize("name", PAIRS)
def test_the_table_in_the_docs_is_what_the_command_prints(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--budget-table", "--config", name]) == 0
    table = capsys.readouterr().out
    assert table.startswith("| GB each |")
    assert table in DOCS.read_text(encoding="utf-8")


def test_the_example_in_the_docs_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine = ["--gpus", "2", "--gpu-memory-gb", "48", "--cpus", "16", "--memory-gb", "192"]
    assert doctor("--config", PAIRS[0], *machine) == 0
    assert capsys.readouterr().out in DOCS.read_text(encoding="utf-8")
