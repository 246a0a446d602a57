"""What turns cost an engine: tokens/s beside single responses, and seconds of a slow tool.

    python benchmarks/tool_turns.py [--repeats 3] [--threads 2] [--rollouts 64]

A random model (Qwen3, 8 layers, hidden size 512) writes rollouts of four turns with three tool
calls between them, on the engine of the rollout actors. Beside it, in turns, another engine with
the same weights writes single responses of the same lengths: each as many tokens as the student
wrote in that rollout, with a prompt that is longer by what the tools wrote. The share is one of
tokens/s of the student. Then the tool takes a second: what that adds to the whole, beside the calls
that follow one another. Writes results/tool_turns.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from page import publish

from actors.process import OPENMP_WAITING, vllm_environment
from opd_ray.config.environment import EnvironmentSet, EnvironmentSettings
from opd_ray.config.schema import RolloutSettings, StudentSettings, SyncSettings
from opd_ray.environments.calls import AssistantTurn, ToolCall
from opd_ray.environments.environment import Message, ToolResult, ToolSchema
from opd_ray.types import EpisodeStart, Rollout, RolloutRequest, Sampling

RESULTS = Path(__file__).parent / "results" / "tool_turns.md"
CALLS, CONTEXT, LONGEST = 3, 1024, 900  # a rollout's calls; tokens
QUESTION = [{"role": "user", "content": "Table 12: start at a and follow x"}]
SAMPLING = Sampling(temperature=1.5, max_tokens=LONGEST)


class EveryTurnCalls:
    """Reads any turn as a call: a random model writes none."""

    def parse(self, text: str, tools: Sequence[ToolSchema]) -> AssistantTurn:
        """One call of the only tool."""
        return AssistantTurn("", (ToolCall("wait", {}),))


class Waits:
    """A tool that takes a while and says 24 digits."""

    tools: Sequence[ToolSchema] = (
        {
            "type": "function",
            "function": {
                "name": "wait",
                "description": "Waits.",
                "parameters": {"type": "object", "properties": {}},
            },
        },
    )

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds, self._calls = seconds, 0

    def reset(self, row: Mapping[str, Any]) -> list[Message]:
        """The row's own messages."""
        return list(row["prompt"])

    def call_tool(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        """Digits, after a while; the call behind the last turn ends the rollout."""
        self._calls += 1
        if self._calls <= CALLS:
            time.sleep(self._seconds)
        return ToolResult("0123456789" * 2 + "0123", done=self._calls > CALLS)

    def verify(self, messages: Sequence[Message]) -> dict[str, float]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """Nothing is held."""


def make_model(folder: Path, *, ends: bool) -> str:
    """A random model that ends its turns, or one with the same weights that never does."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from opd_ray.models.pairs.tools_tokenizer import tools_tokenizer

    tokenizer = tools_tokenizer()
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        eos_token_id=tokenizer.eos_token_id if ends else None,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    if not ends:
        # vLLM takes the tokenizer's end token for one of the model's.
        tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": config.eos_token_id})
    )
    return str(folder)


def start(folder: str, threads: int, rollouts: int) -> Any:
    """The engine of a rollout actor."""
    from actors.rollout.engine import RolloutEngine

    settings = RolloutSettings(
        threads=threads,
        max_num_seqs=rollouts,
        max_num_batched_tokens=2048,
        kv_cache_bytes=rollouts * CONTEXT * 8 * 2 * 256 * 4,
    )
    student = StudentSettings(folder, context_length=CONTEXT)
    return RolloutEngine(student, settings, SyncSettings())


def with_tools(engine: Any, folder: str, seconds: float, rollouts: int) -> Any:
    """The same engine, taking turns with a tool that takes ``seconds``."""
    from actors.rollout.episodes import EpisodeEngine
    from opd_ray.models.tokenizer import describe_model

    settings = EnvironmentSettings(
        path="tool_turns:Waits", parser="tool_turns:EveryTurnCalls", arguments={"seconds": seconds}
    )
    model = describe_model(folder)
    environments = EnvironmentSet(settings, {})
    return EpisodeEngine(engine, environments, model.tokenizer, model.eos_ids, rollouts)


def acting_requests(folder: str, rollouts: int, repeat: int) -> list[RolloutRequest]:
    """One prompt, many samples; the seeds are the repeat's own."""
    from opd_ray.models.tokenizer import describe_model

    tokenizer = describe_model(folder).tokenizer
    text = tokenizer.apply_chat_template(
        QUESTION, tools=list(Waits.tools), tokenize=False, add_generation_prompt=True
    )
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
    start = EpisodeStart({"prompt": QUESTION}, {})
    return [
        RolloutRequest(f"r{n}", "p", n, ids, 1000 * repeat + n, episode=start)
        for n in range(rollouts)
    ]


def write(engine: Any, asked: Sequence[tuple[RolloutRequest, Sampling]]) -> tuple[Any, float]:
    """All rollouts, and the seconds that they took."""
    begin = time.perf_counter()
    for request, sampling in asked:
        engine.add([request], sampling, True)
    ended: list[Rollout] = []
    while engine.has_unfinished():
        ended += engine.step()
    return ended, time.perf_counter() - begin


def single(rollouts: Sequence[Rollout]) -> list[tuple[RolloutRequest, Sampling]]:
    """Single responses that read and write as many tokens as these rollouts."""
    from opd_ray.models.pairs.tools_tokenizer import VOCABULARY

    draw = np.random.default_rng(0)
    asked = []
    for rollout in rollouts:
        written = len(rollout.rows)
        others = draw.integers(8, len(VOCABULARY), len(rollout.response_ids) - written)
        prompt = np.concatenate([rollout.prompt_ids, others]).astype(np.int32)
        request = RolloutRequest(rollout.rollout_id, "p", rollout.sample, prompt, rollout.sample)
        asked.append((request, replace(SAMPLING, max_tokens=written)))
    return asked


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rollouts", type=int, default=64)
    args = parser.parse_args()
    os.environ.update(OPENMP_WAITING | vllm_environment(args.threads))
    rows, shares, added = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        acts = make_model(Path(folder) / "acts", ends=True)
        never = make_model(Path(folder) / "never", ends=False)
        acting, plain = (start(path, args.threads, args.rollouts) for path in (acts, never))
        for repeat in range(args.repeats + 1):
            asked = [(r, SAMPLING) for r in acting_requests(acts, args.rollouts, repeat)]
            turns, turn_seconds = write(with_tools(acting, acts, 0.0, args.rollouts), asked)
            alone, alone_seconds = write(plain, single(turns))
            slow, slow_seconds = write(with_tools(acting, acts, 1.0, args.rollouts), asked)
            if repeat == 0:  # the first of each warms up
                continue
            written = sum(len(rollout.rows) for rollout in turns)
            assert written == sum(len(rollout.rows) for rollout in alone)
            share = alone_seconds / turn_seconds
            shares.append(share)
            added.append(slow_seconds - turn_seconds)
            cached = sum(r.figures["cached_tokens"] for r in turns)
            read = sum(r.figures["prompt_tokens"] for r in turns)
            calls = sum(r.figures["calls"] for r in turns) / len(turns)
            rows.append(
                f"| {repeat} | {written:,} | {calls:.1f} | {written / alone_seconds:,.0f} | "
                f"{written / turn_seconds:,.0f} | {share:.2f} | {cached / read:.2f} | "
                f"{added[-1]:.2f} | {len(slow)} |"
            )
            print(rows[-1], flush=True)
    text = "\n".join(
        [
            "# Rollouts of several turns beside single responses",
            "",
            f"`python benchmarks/tool_turns.py --repeats {args.repeats} --threads {args.threads} "
            f"--rollouts {args.rollouts}`, {platform.machine()}, no GPU, {os.cpu_count()} CPUs.",
            "",
            f"Tokens/s of turns: **{statistics.median(shares):.2f}** of single responses of the "
            f"same lengths (median). A tool that takes a second, {CALLS} times in a row in each of "
            f"{args.rollouts} rollouts, costs **{statistics.median(added):.2f} s** in all.",
            "",
            "| repeat | tokens written | calls a rollout | tokens/s single | tokens/s in turns | "
            "share | prompt tokens from the cache | seconds that slow tools add | rollouts |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
    publish(text, RESULTS)


if __name__ == "__main__":
    main()
