"""Checkpoints continue as if nothing had happened, on any ranks; exports are the same model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_models import make_tiny_qwen3
from trainer_data import ROWS, VOCAB, ragged_items, share_out, teacher_head, total_weight
from trainer_ranks import shared_ranks
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from actors.trainer.checkpoint import CheckpointMismatch
from actors.trainer.export import export_checkpoint
from opd_ray.checksums import sum_of
from opd_ray.config.choices import Dtype
from opd_ray.config.schema import StudentSettings, TrainerSettings
from opd_ray.errors import DamagedCheckpoint

LAYOUTS = [
    (0, Dtype.float32),
    (1, Dtype.float32),
    (2, Dtype.float32),
    (3, Dtype.float32),
    (1, Dtype.bfloat16),
    (2, Dtype.bfloat16),
    (3, Dtype.bfloat16),
]


def settings(stage, dtype):
    return TrainerSettings(zero_stage=stage, dtype=dtype)


# What a folder may hold beside weights, as nothing that writes models would write it.
OWN_FILES = {
    # transformers reads this one and refuses to write it.
    "generation_config.json": '{"eos_token_id": [1, 18], "do_sample": false, "temperature": 0.6}',
    "chat_template.jinja": "{{ messages }}{# a remark #}",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "special_tokens_map.json": '{"eos_token": "<eos>"}',
    "merges.txt": "#version: 0.2\na b\n",
    "modeling_own.py": "NAME = 'ß'\n",
    "LICENSE": "Do what you like.\n",
}
LEFT_OUT = ("README.md", "pytorch_model.bin", "training_args.bin", "trainer_state.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = make_tiny_qwen3(tmp_path_factory.mktemp("student"), vocab=ROWS)
    (made / "additional_chat_templates").mkdir()
    for name, text in OWN_FILES.items():
        (made / name).write_text(text, encoding="utf-8")
    for name in LEFT_OUT:
        (made / name).write_text("{}")
    config = json.loads((made / "config.json").read_text())
    # Spelt as it was of old, with a key that nobody knows, in an order of its own.
    config = {"own_key": [1], "torch_dtype": config.pop("dtype"), **config}
    (made / "config.json").write_text(json.dumps(config))
    return made


@pytest.fixture(scope="module")
def ranks():
    return shared_ranks(2)


@pytest.fixture(scope="module")
def written(ranks, folder, tmp_path_factory):
    """Checkpoint and weights after two steps, statistics and weights after a third, by layout."""
    found = {}
    for stage, dtype in LAYOUTS:
        # As some users name their folders; DeepSpeed alone would look for a folder "run 1".
        target = tmp_path_factory.mktemp("checkpoint") / "run [1]"
        ranks.start(folder, settings(stage, dtype), vocab_size=VOCAB, head=teacher_head())
        step(ranks, 0)
        step(ranks, 1)
        sums = ranks.call("engine.save", str(target))
        assert sums[0] | sums[1] == {name: sum_of(target / name) for name in contents(target)}
        ranks.call("engine.export", str(target.with_suffix(".export")))
        found[stage, dtype] = target, ranks.weights(), step(ranks, 2), ranks.weights()
    return found


def step(group, seed):
    items, signals = ragged_items(7, seed=seed)
    plan = share_out(items, group.world_size, 2)
    return group.call_each("train_step", [(p, total_weight(items), 1e-2, signals) for p in plan])


@pytest.mark.parametrize(("stage", "dtype"), LAYOUTS)
def test_the_next_step_of_a_new_engine_is_bit_for_bit_the_same(
    stage, dtype, written, ranks, folder
):
    target, _, stats, weights = written[stage, dtype]
    ranks.start(folder, settings(stage, dtype), vocab_size=VOCAB, head=teacher_head())
    ranks.call("engine.load", str(target))
    for found, wanted in zip(step(ranks, 2), stats, strict=True):
        assert (found.loss_sum, found.grad_norm) == (wanted.loss_sum, wanted.grad_norm)
    for name, weight in ranks.weights().items():
        np.testing.assert_array_equal(weight, weights[name])


def whole_state(folder):
    """Every parameter's float32 weight and moments, put together the plain way; and its steps."""
    layout = json.loads((folder / "layout.json").read_text())
    found = {}
    for file in folder.glob("rank_*.safetensors"):
        with safe_open(file, "np") as content:
            steps = json.loads(content.metadata()["steps"])
            for key in content.keys():  # noqa: SIM118
                kind, start, name = key.split(":", 2)
                shape = layout["parameters"][name]
                filled = found.setdefault((kind, name), np.full(int(np.prod(shape)), np.nan, "f4"))
                values = content.get_tensor(key)
                part = filled[int(start) : int(start) + len(values)]
                assert np.isnan(part).all(), "written twice"
                part[:] = values
                found["steps", name] = steps[name]
    return found


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key, values in one.items():
        np.testing.assert_array_equal(values, other[key], err_msg=str(key))


# Each layout is read by others, so that every one writes and reads.
@pytest.mark.parametrize(
    ("writer", "reader"), [(n, (n + 3) % len(LAYOUTS)) for n in range(len(LAYOUTS))]
)
def test_one_rank_takes_over_what_two_of_another_layout_wrote(
    writer, reader, written, folder, tmp_path
):
    """Nothing is lost: what it writes then is to the bit what it read."""
    target, *_ = written[LAYOUTS[writer]]
    stage, dtype = LAYOUTS[reader]
    alone = shared_ranks(1)
    alone.start(folder, settings(stage, dtype), vocab_size=VOCAB)
    alone.call("engine.load", str(target))
    alone.call("engine.save", str(tmp_path / "again"))
    before = whole_state(target)
    assert_same(before, whole_state(tmp_path / "again"))
    kinds = {kind for kind, _ in before}
    assert kinds == {"master", "exp_avg", "exp_avg_sq", "steps"}
    assert {steps for (kind, _), steps in before.items() if kind == "steps"} == {2}
    assert not any(np.isnan(values).any() for values in before.values())
    # The engine computes with the rounding of the float32 weights.
    for name, weight in alone.weights().items():
        if ("master", name) in before:  # a tied head is there once
            master = torch.tensor(before["master", name])
            wanted = master.bfloat16().float() if dtype is Dtype.bfloat16 else master
            np.testing.assert_array_equal(weight.reshape(-1), wanted.numpy())


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_ranks_take_over_what_one_wrote(stage, ranks, folder, tmp_path):
    alone = shared_ranks(1)
    alone.start(folder, settings(1, Dtype.bfloat16), vocab_size=VOCAB, head=teacher_head())
    step(alone, 0)
    alone.call("engine.save", str(tmp_path / "one"))
    ranks.start(folder, settings(stage, Dtype.float32), vocab_size=VOCAB)
    ranks.call("engine.load", str(tmp_path / "one"))
    ranks.call("engine.save", str(tmp_path / "two"))
    assert_same(whole_state(tmp_path / "one"), whole_state(tmp_path / "two"))


def test_two_ranks_of_stage_3_then_one_of_stage_0_then_three_of_stage_2(ranks, folder, tmp_path):
    """Losses, gradients and weights are those of a run that nothing broke."""
    places = [(ranks, 3), (shared_ranks(1), 0), (shared_ranks(3), 2)]

    def losses(stats):
        return sum(s.loss_sum for s in stats), stats[0].grad_norm

    ranks.start(folder, settings(3, Dtype.float32), vocab_size=VOCAB, head=teacher_head())
    unbroken = [losses(step(ranks, number)) for number in range(6)]
    wanted = ranks.weights()
    found = []
    for turn, (group, stage) in enumerate(places):
        group.start(folder, settings(stage, Dtype.float32), vocab_size=VOCAB, head=teacher_head())
        if turn:
            group.call("engine.load", str(tmp_path / str(turn - 1)))
        found += [losses(step(group, 2 * turn + number)) for number in range(2)]
        group.call("engine.save", str(tmp_path / str(turn)))
    np.testing.assert_allclose(found, unbroken, rtol=1e-4)
    for name, weight in places[-1][0].weights().items():
        np.testing.assert_allclose(weight, wanted[name], rtol=1e-4, atol=1e-5, err_msg=name)
    # It matters: an optimizer without its state goes elsewhere at learning rates like this.
    assert max(abs(wanted[n] - w).max() for n, w in first_steps_alone(ranks, folder)) > 1e-3


def first_steps_alone(ranks, folder):
    ranks.start(folder, settings(3, Dtype.float32), vocab_size=VOCAB, head=teacher_head())
    for number in range(4, 6):
        step(ranks, number)
    return ranks.weights().items()


@pytest.mark.parametrize(
    ("stage", "dtype"), [(0, Dtype.float32), (1, Dtype.bfloat16), (3, Dtype.bfloat16)]
)
def test_an_engine_that_has_stepped_goes_back_to_what_it_loads(
    stage, dtype, ranks, folder, tmp_path
):
    """Also to a state from before the first step."""
    ranks.start(folder, settings(stage, dtype), vocab_size=VOCAB, head=teacher_head())
    ranks.call("engine.save", str(tmp_path / "start"))
    first = [step(ranks, 0), step(ranks, 1), ranks.weights()]
    ranks.call("engine.load", str(tmp_path / "start"))
    second = [step(ranks, 0), step(ranks, 1), ranks.weights()]
    for one, other in zip(first[:2], second[:2], strict=True):
        assert [s.grad_norm for s in one] == [s.grad_norm for s in other]
    assert_same(first[2], second[2])


def test_a_snapshot_is_written_as_it_was_when_it_was_taken(ranks, folder, tmp_path):
    ranks.start(folder, settings(2, Dtype.bfloat16), vocab_size=VOCAB, head=teacher_head())
    step(ranks, 0)
    ranks.call("engine.save", str(tmp_path / "at_once"))
    ranks.call("engine.snapshot")
    machine, needed, free = ranks.call("engine.room_for_snapshot")[0]
    step(ranks, 1)
    sums = ranks.call("engine.write_snapshot", str(tmp_path / "later"))
    at_once, later = (contents(tmp_path / name) for name in ("at_once", "later"))
    assert at_once == later
    assert sums[0].keys() | sums[1].keys() == later.keys()
    own = [len(data) for name, data in later.items() if name.startswith("rank_00000")]
    assert 0 < needed < sum(own) < 1 << 30 < free
    assert machine


def test_a_files_of_a_checkpoint_that_has_changed_is_named(ranks, written):
    target, *_ = written[1, Dtype.float32]
    sums = {name: sum_of(target / name) for name in contents(target)}
    ranks.call("engine.check_files", str(target), sums)
    name = "rank_00001_00000.safetensors"
    content = bytearray((target / name).read_bytes())
    content[-1] ^= 1
    (target / name).write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=f"not whole: {name} has the right size, but not"):
        ranks.call("engine.check_files", str(target), sums)
    content[-1] ^= 1
    (target / name).write_bytes(content)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_settings_of_the_optimizer_are_those_of_the_run_that_goes_on(stage, written, ranks, folder):
    """AdamW takes its decay off the weights by itself: the rest of the step is the same."""
    target, before, _, after = written[stage, Dtype.float32]
    changed = replace(settings(stage, Dtype.float32), weight_decay=0.6)
    ranks.start(folder, changed, vocab_size=VOCAB, head=teacher_head())
    ranks.call("engine.load", str(target))
    step(ranks, 2)
    for name, weight in ranks.weights().items():
        # At a learning rate of 0.01, and a decay of 0.1 before.
        wanted = after[name] - 0.01 * (0.6 - 0.1) * before[name]
        np.testing.assert_allclose(weight, wanted, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("stage", "dtype"), [(1, Dtype.float32), (2, Dtype.bfloat16)])
def test_the_bound_of_gradients_is_that_of_the_run_that_goes_on(
    stage, dtype, written, ranks, folder
):
    target, *_ = written[stage, dtype]
    changed = replace(settings(stage, dtype), max_grad_norm=0.25)
    ranks.start(folder, changed, vocab_size=VOCAB, head=teacher_head())
    ranks.call("engine.load", str(target))
    bound = ranks.call("engine._engine.optimizer.__getattribute__", "clip_grad")
    assert bound == [0.25, 0.25]


@pytest.mark.parametrize(("stage", "dtype"), LAYOUTS)
def test_a_checkpoint_is_exported_without_its_engine(stage, dtype, written, folder, tmp_path):
    target, weights, *_ = written[stage, dtype]
    student = StudentSettings(path=str(folder))
    export_checkpoint(target, student, settings(stage, dtype), tmp_path / "export")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert str(model.dtype) == f"torch.{dtype}"
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.detach().float().numpy(), weights[name])
    assert contents(tmp_path / "export") == contents(target.with_suffix(".export"))


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("dtype", [Dtype.float32, Dtype.bfloat16])
def test_an_export_holds_what_the_students_folder_holds(dtype, written, folder):
    target, *_ = written[1, dtype]
    found, own = contents(target.with_suffix(".export")), contents(folder)
    assert found.keys() == own.keys() - set(LEFT_OUT)
    assert {name: found[name].decode() for name in OWN_FILES} == OWN_FILES
    changed = {name for name in found if found[name] != own[name]}
    assert changed - {"config.json"} == {"model.safetensors"}
    configs = [json.loads(files["config.json"]) for files in (found, own)]
    assert configs[0] == configs[1] | {"torch_dtype": dtype.value}
    assert list(configs[0])[:2] == ["own_key", "torch_dtype"]


def test_a_checkpoint_is_exported_after_its_base_is_gone(written, folder, tmp_path):
    target, *_ = written[1, Dtype.float32]
    gone = StudentSettings(path=str(tmp_path / "gone"))
    chosen = settings(1, Dtype.float32)
    export_checkpoint(target, gone, chosen, tmp_path / "export")
    wanted = contents(target.with_suffix(".export"))
    assert contents(tmp_path / "export") == wanted
    export_checkpoint(target, gone, chosen, tmp_path / "other", base=folder)
    assert contents(tmp_path / "other") == wanted
    stranger = make_tiny_qwen3(tmp_path / "stranger", vocab=ROWS, layers=1, hidden=128)
    with pytest.raises(CheckpointMismatch, match=r"another model than .*stranger: .* has shape"):
        export_checkpoint(target, gone, chosen, tmp_path / "third", base=stranger)
    assert not (tmp_path / "third").exists()


def test_big_weights_come_in_several_files(written, tmp_path, monkeypatch):
    target, weights, *_ = written[1, Dtype.float32]
    monkeypatch.setattr("actors.trainer.student._SHARD_SIZE", "100KB")
    out = tmp_path / "export"
    out.mkdir()
    (out / "model-00001-of-00099.safetensors").write_text("of an earlier export")
    export_checkpoint(target, StudentSettings(path=""), settings(1, Dtype.float32), out)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = {path.name for path in out.glob("*.safetensors")}
    assert shards == set(index["weight_map"].values())
    assert len(shards) > 2
    model = AutoModelForCausalLM.from_pretrained(out)
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), weights[name])


def test_a_missing_checkpoint_is_not_exported(folder, tmp_path):
    student = StudentSettings(path=str(folder))
    with pytest.raises(CheckpointMismatch, match="holds no checkpoint of a trainer"):
        export_checkpoint(tmp_path, student, settings(0, Dtype.float32), tmp_path / "export")


def test_a_missing_checkpoint_is_named(ranks, folder, tmp_path):
    ranks.start(folder, settings(0, Dtype.float32), vocab_size=VOCAB)
    with pytest.raises(CheckpointMismatch, match="holds no checkpoint of a trainer"):
        ranks.call("engine.load", str(tmp_path))


@pytest.mark.parametrize("damage", ["no file of rank 1", "DeepSpeed's own", "cut", "no JSON"])
def test_what_is_no_whole_checkpoint_is_refused(damage, written, ranks, folder, tmp_path):
    target = tmp_path / "broken"
    shutil.copytree(written[1, Dtype.float32][0], target)
    file = target / "rank_00001_00000.safetensors"
    if damage == "no file of rank 1":
        file.unlink()
        expected = (
            r"broken is not whole: of master of \S+ \d+ follows on \d+; use an older checkpoint"
        )
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
        expected = r"rank_00001_00000.safetensors: .*; use an older checkpoint"
    elif damage == "no JSON":
        (target / "layout.json").write_text("{")
        expected = r"layout.json: .*; use an older checkpoint"
    else:
        (target / "layout.json").write_text('{"ranks": 2, "zero_stage": 1, "dtype": "float32"}')
        expected = "holds a trainer's checkpoint of format 1, this version reads 2"
    ranks.start(folder, settings(1, Dtype.float32), vocab_size=VOCAB)
    before = ranks.weights()
    with pytest.raises(CheckpointMismatch, match=expected):
        ranks.call("engine.load", str(target))
    assert_same(before, ranks.weights())


def test_a_checkpoint_of_another_model_changes_nothing(written, ranks, tmp_path):
    other = make_tiny_qwen3(tmp_path / "other", vocab=ROWS, layers=1)
    ranks.start(other, settings(2, Dtype.float32), vocab_size=VOCAB)
    before = ranks.weights()
    target, *_ = written[3, Dtype.float32]
    with pytest.raises(
        CheckpointMismatch,
        match=r"weights of another model: model\.layers\.1\.\S+ has shape \[.*\] there, none in",
    ):
        ranks.call("engine.load", str(target))
    assert_same(before, ranks.weights())


def test_an_export_after_scores_without_a_step_is_that_of_the_last_step(ranks, folder, tmp_path):
    """DeepSpeed has asked for weights ahead by then, for a backward pass that never came."""
    ranks.start(folder, settings(3, Dtype.float32), vocab_size=VOCAB, head=teacher_head())
    items, signals = ragged_items(7)
    plan = [(part, signals) for part in share_out(items, 2, 2)]
    for seed in range(3):
        ranks.call_each("score", plan)
        step(ranks, seed)
    wanted = ranks.weights()
    ranks.call_each("score", plan)
    ranks.call("engine.save", str(tmp_path / "checkpoint"))
    ranks.call("engine.export", str(tmp_path / "export"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), wanted[name])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stage", [0, 3])
def test_an_export_is_the_same_model_in_transformers(stage, tied, ranks, tmp_path):
    folder = make_tiny_qwen3(tmp_path / "student", vocab=ROWS, tied=tied)
    ranks.start(folder, settings(stage, Dtype.float32), vocab_size=VOCAB, head=teacher_head())
    step(ranks, 0)
    target = tmp_path / "export"
    ranks.call("engine.export", str(target))

    model = AutoModelForCausalLM.from_pretrained(target)
    assert model.dtype == torch.float32
    reference = AutoModelForCausalLM.from_pretrained(folder)
    original = {n: w.clone() for n, w in reference.state_dict().items()}
    weights = {n: torch.tensor(w) for n, w in ranks.weights().items()}
    reference.load_state_dict(weights)
    ids_BL = torch.randint(0, VOCAB, (2, 9))
    with torch.no_grad():
        assert torch.equal(model(ids_BL).logits, reference(ids_BL).logits)
    name = "model.embed_tokens.weight"
    assert not torch.equal(weights[name], original[name])

    names = [list(safe_open(f / "model.safetensors", "pt").keys()) for f in (target, folder)]
    assert names[0] == names[1]
    assert AutoTokenizer.from_pretrained(target).encode("3+4") == AutoTokenizer.from_pretrained(
        folder
    ).encode("3+4")
    assert GenerationConfig.from_pretrained(target).eos_token_id == 1
    configs = [AutoConfig.from_pretrained(f).to_diff_dict() for f in (target, folder)]
    assert configs[0] == configs[1]
