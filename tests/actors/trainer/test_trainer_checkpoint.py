"""Checkpoints continue as if nothing had happened; exports are the same model elsewhere."""

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
from trainer_ranks import Ranks, shared_ranks
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from actors.trainer.engine import CheckpointMismatch
from actors.trainer.export import export_checkpoint
from opd_ray.config.choices import Dtype
from opd_ray.config.schema import StudentSettings, TrainerSettings

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
        ranks.call("engine.save", str(target))
        ranks.call("engine.export", str(target.with_suffix(".export")))
        found[stage, dtype] = target, ranks.weights(), step(ranks, 2), ranks.weights()
    return found


@pytest.fixture(scope="module")
def fresh_ranks(written):
    group = Ranks(2)
    yield group
    group.end()


def step(group, seed):
    items, signals = ragged_items(7, seed=seed)
    plan = share_out(items, group.world_size, 2)
    return group.call_each("train_step", [(p, total_weight(items), 1e-2, signals) for p in plan])


@pytest.mark.parametrize(("stage", "dtype"), LAYOUTS)
def test_the_next_step_in_new_processes_is_bit_for_bit_the_same(
    stage, dtype, written, fresh_ranks, folder
):
    target, _, stats, weights = written[stage, dtype]
    fresh_ranks.start(folder, settings(stage, dtype), vocab_size=VOCAB, head=teacher_head())
    fresh_ranks.call("engine.load", str(target))
    for found, wanted in zip(step(fresh_ranks, 2), stats, strict=True):
        assert (found.loss_sum, found.grad_norm) == (wanted.loss_sum, wanted.grad_norm)
    for name, weight in fresh_ranks.weights().items():
        np.testing.assert_array_equal(weight, weights[name])


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_settings_of_the_optimizer_are_those_of_the_run_that_goes_on(
    stage, written, fresh_ranks, folder
):
    """AdamW takes its decay off the weights by itself: the rest of the step is the same."""
    target, before, _, after = written[stage, Dtype.float32]
    changed = replace(settings(stage, Dtype.float32), weight_decay=0.6)
    fresh_ranks.start(folder, changed, vocab_size=VOCAB, head=teacher_head())
    fresh_ranks.call("engine.load", str(target))
    step(fresh_ranks, 2)
    for name, weight in fresh_ranks.weights().items():
        # At a learning rate of 0.01, and a decay of 0.1 before.
        wanted = after[name] - 0.01 * (0.6 - 0.1) * before[name]
        np.testing.assert_allclose(weight, wanted, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("stage", "dtype"), [(1, Dtype.float32), (2, Dtype.bfloat16)])
def test_the_bound_of_gradients_is_that_of_the_run_that_goes_on(
    stage, dtype, written, fresh_ranks, folder
):
    target, *_ = written[stage, dtype]
    changed = replace(settings(stage, dtype), max_grad_norm=0.25)
    fresh_ranks.start(folder, changed, vocab_size=VOCAB, head=teacher_head())
    fresh_ranks.call("engine.load", str(target))
    bound = fresh_ranks.call("engine._engine.optimizer.__getattribute__", "clip_grad")
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
    # Checkpoints of older versions kept nothing of it.
    old = tmp_path / "old"
    shutil.copytree(target, old, ignore=shutil.ignore_patterns("student"))
    with pytest.raises(CheckpointMismatch, match=r"gone'\): name a folder .* --base FOLDER"):
        export_checkpoint(old, gone, chosen, tmp_path / "other")
    export_checkpoint(old, gone, chosen, tmp_path / "other", base=folder)
    assert contents(tmp_path / "other") == wanted
    stranger = make_tiny_qwen3(tmp_path / "stranger", vocab=ROWS, layers=1, hidden=128)
    with pytest.raises(CheckpointMismatch, match=r"another model than .*stranger: .* has shape"):
        export_checkpoint(old, gone, chosen, tmp_path / "third", base=stranger)
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


def test_a_missing_checkpoint_is_named(fresh_ranks, folder, tmp_path):
    fresh_ranks.start(folder, settings(0, Dtype.float32), vocab_size=VOCAB)
    with pytest.raises(CheckpointMismatch, match="holds no checkpoint of a trainer"):
        fresh_ranks.call("engine.load", str(tmp_path))


def test_a_checkpoint_of_another_layout_is_refused_before_anything_is_read(
    written, fresh_ranks, folder
):
    target, *_ = written[1, Dtype.float32]
    fresh_ranks.start(folder, settings(3, Dtype.float32), vocab_size=VOCAB)
    with pytest.raises(
        CheckpointMismatch,
        match=r"has trainer\.ranks=2, trainer\.zero_stage=1, trainer\.dtype=float32, this run has "
        r"trainer\.ranks=2, trainer\.zero_stage=3",
    ):
        fresh_ranks.call("engine.load", str(target))
    layout = json.loads((target / "layout.json").read_text())
    (target / "layout.json").write_text(json.dumps(layout | {"ranks": 4}))
    fresh_ranks.start(folder, settings(1, Dtype.float32), vocab_size=VOCAB)
    with pytest.raises(CheckpointMismatch, match=r"has trainer\.ranks=4.*this run has .*ranks=2"):
        fresh_ranks.call("engine.load", str(target))


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
