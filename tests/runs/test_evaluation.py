"""Evaluations on real engines: one that was killed and resumed, and a benchmark by its name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import torch
from launching import PATIENCE_S, end
from tiny_models import make_gapped_student
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from opd_ray.cli import main

_EXCERPTS = Path(__file__).parents[1] / "unit" / "excerpts"

_TASK = (
    "eval.tasks=[{name: sums, task: chain_sum, problems: 64, "
    "data: {kind: chain_sum, chain_sum: {split: heldout, count: 64}, max_prompt_tokens: 32}}]"
)
# The demo's student as good as ever, though its end token has a higher id than tokens are many.
_STUDENT = "gapped"


def command(out: Path) -> list[str]:
    model = str(out.parent / _STUDENT)
    return [
        *("eval", "--config", "demo", "--model", model, "--greedy", "--samples", "8"),
        *(_TASK, "cluster.num_cpus=2", "rollout.max_num_seqs=16", "--out", str(out)),
    ]


def start(out: Path) -> subprocess.Popen[str]:
    """The command in a process group of its own, printing to a file beside its folder."""
    with out.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "opd_ray", *command(out)],
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=out.parent,
            start_new_session=True,
            env={**os.environ, "RAY_ADDRESS": ""},
        )


def sampled(out: Path) -> list[str]:
    """The lines of the sampled records, a cut-off one included."""
    path = out / "sums" / "sampled.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_killed_and_resumed_like_unbroken(
    ray_address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_gapped_student(tmp_path / _STUDENT)
    joined = f"cluster.address={ray_address}"
    monkeypatch.chdir(tmp_path)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run = start(broken)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while len(sampled(broken)) < 5:
            assert run.poll() is None, broken.with_suffix(".log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        end(run)
    before = sampled(broken)
    assert 5 <= len(before) < 64
    assert not (broken / "results.json").exists()
    # From here on in this process, which saves the imports.
    assert main([*command(broken), joined]) == 0
    # What was there stayed: those problems were not asked again.
    complete = [line for line in before if line.endswith("}")]
    assert sampled(broken)[: len(complete)] == complete

    assert main([*command(whole), joined, "--actors", "2"]) == 0
    for name in ("greedy", "sampled"):
        one, other = (
            {
                record["id"]: record
                for record in map(json.loads, (out / "sums" / f"{name}.jsonl").open())
            }
            for out in (whole, broken)
        )
        assert len(one) == 64
        assert one == other
    figures = json.loads((whole / "results.json").read_text())["figures"]
    assert json.loads((broken / "results.json").read_text())["figures"] == figures
    mean, two, eight = (figures[f"eval/sums/{name}"] for name in ("mean@8", "pass@2", "pass@8"))
    assert 0 < mean < two < eight <= 1
    assert 0 < figures["eval/sums/maj@8"] <= eight
    assert 0.5 < figures["eval/sums/accuracy"] < 1
    assert figures["eval/sums/truncated"] < 0.1

    capsys.readouterr()
    # Everything is there: the same command only shows it, and another one is refused.
    assert main([*command(whole), joined]) == 0
    assert "| sums | 64 " in capsys.readouterr().out
    assert not ray.is_initialized()
    assert main([*command(whole), joined, "--temperature", "0.5"]) == 2
    assert "sampled.temperature: 1.0 -> 0.5" in capsys.readouterr().err


def save_byte_model(folder: Path) -> None:
    """A random Llama that reads and writes bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: number for number, token in enumerate(["<eos>", *alphabet])}
    inner = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4096,
        eos_token_id=0,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)


def test_a_benchmark_by_its_name(
    ray_address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_byte_model(tmp_path / "bytes")
    assert main(["prepare", "math500", "--from", str(_EXCERPTS / "math500.jsonl")]) == 0
    command = ["eval", "--model", "bytes", "--tasks", "math500", "--problems", "2"]
    command += ["--samples", "2", "--max-new-tokens", "16", f"cluster.address={ray_address}"]
    assert main(command) == 0
    out = Path("outputs/eval/bytes")
    records = [json.loads(line) for line in (out / "math500" / "sampled.jsonl").open()]
    lines = Path("data/math500.jsonl").read_text().splitlines()[:2]
    answers = {problem["id"]: problem["answer"] for problem in map(json.loads, lines)}
    assert {record["id"]: record["answer"] for record in records} == answers
    for record in records:
        first, second = record["responses"]
        assert first != second
        assert all(1 <= tokens <= 16 for tokens in record["tokens"])
        for tokens, reason in zip(record["tokens"], record["finish_reasons"], strict=True):
            assert reason == "stop" or tokens == 16
    results = json.loads((out / "results.json").read_text())
    assert results["settings"]["dtype"] == "bfloat16"
    assert results["figures"]["eval/math500/mean@2"] == 0
    assert 0 < results["figures"]["eval/math500/tokens@2"] <= 16

    capsys.readouterr()
    assert main(command) == 0
    assert not ray.is_initialized()
    assert f"results: {out}/results.md" in capsys.readouterr().out
