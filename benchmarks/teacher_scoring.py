"""What a teacher costs: tokens/s beside a bare forward pass, memory, bytes of its signals.

    python benchmarks/teacher_scoring.py [--repeats 3] [--threads 2] [--dtype bfloat16]

A random model of SmolLM2-135M's shape (30 layers, hidden size 576, 49,152 tokens, tied head)
judges sequences of 64 prompt and 192 response tokens. Throughput: kinds `vllm` and `hf`, signal
`topk` of k = 32 and the student's top-16, beside the *same vLLM engine* reading the same sequences
without any scores, in turns, and beside that and the matrix product of the response rows with the
output head, which no scores can do without. Memory: the peak of a call above what the process
holds, for growing numbers of sequences a call. Payload: bytes a token of every signal, all rows
against the kept rows of the filter, and of the whole logits that no signal sends. Needs Linux
(/proc). Writes results/teacher_scoring.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from page import publish
from process_memory import MIB, process_memory, settle
from worker import Worker

from actors.process import OPENMP_WAITING, vllm_environment
from opd_ray.config.choices import Dtype, SignalChoice
from opd_ray.config.teacher import TeacherSettings
from opd_ray.types import ScoreRequest, TeacherAnswer, TopK

RESULTS = Path(__file__).parent / "results" / "teacher_scoring.md"
VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS = 49_152, 576, 30, 9, 3
PROMPT, RESPONSE, STUDENT_TOPK, TOPK = 64, 192, 16, 32  # tokens
SEQUENCES = 16  # of one call where throughput is measured
GROWTH = (16, 64, 256)  # sequences a call where memory is measured
BARE, HEAD = "bare vLLM forward", "bare + output head"
VLLM, HF = "vllm, k = 32", "hf, k = 32"


@dataclass(frozen=True)
class Plan:
    """What every process is told."""

    folder: str
    threads: int
    dtype: str

    def settings(self, kind: str, signal: SignalChoice = SignalChoice.topk) -> TeacherSettings:
        return TeacherSettings(
            kind=kind,
            path=self.folder,
            threads=self.threads,
            dtype=Dtype(self.dtype),
            signal=signal,
            topk=TOPK,
            batch_tokens=2048,
        )


def make_model(folder: str) -> int:
    """Save the random teacher; returns its parameters."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=1536,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCAB)}, "w0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return model.num_parameters()


def make_requests(count: int) -> list[ScoreRequest]:
    """Random texts with a random student's top-K."""
    rng = np.random.default_rng(0)
    requests = []
    for number in range(count):
        ids = rng.integers(0, VOCAB, PROMPT + RESPONSE).astype(np.int32)
        topk = (rng.permutation(VOCAB)[:STUDENT_TOPK] for _ in range(RESPONSE))
        likeliest = TopK(
            np.stack(list(topk)).astype(np.int32),
            np.full((RESPONSE, STUDENT_TOPK), -np.log(VOCAB), np.float32),
        )
        requests.append(ScoreRequest(str(number), ids[:PROMPT], ids[PROMPT:], likeliest))
    return requests


def read_only(teacher: Any, requests: Sequence[ScoreRequest]) -> None:
    """The same sequences through the vllm teacher's engine, nothing scored."""
    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind

    engine = teacher._engine
    params = SamplingParams(
        temperature=0.0, max_tokens=1, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
    )
    for request in requests:
        text = np.concatenate((request.prompt_ids, request.response_ids))[:-1]
        engine.add_request(f"bare {request.rollout_id}", tokens_input(text.tolist()), params)
    while engine.has_unfinished_requests():
        engine.step()


def read_and_project(teacher: Any, requests: Sequence[ScoreRequest]) -> None:
    """As :func:`read_only`, then response rows times the output head, a chunk at a time."""
    import torch

    read_only(teacher, requests)
    head_VD = teacher._engine.collective_rpc(lambda worker: worker.get_model().lm_head.weight)[0]
    hidden_CD = torch.ones(512, HIDDEN, dtype=head_VD.dtype)
    with torch.inference_mode():
        for _ in range(len(requests) * RESPONSE // len(hidden_CD)):
            torch.nn.functional.linear(hidden_CD, head_VD[:VOCAB])


def size(answer: TeacherAnswer) -> int:
    """Bytes of all that an answer holds."""
    arrays = (answer.logprob, answer.at_student_topk, answer.entropy)
    return answer.signal.nbytes + sum(array.nbytes for array in arrays if array is not None)


def timed(call: Any, *arguments: Any) -> tuple[float, float]:
    """Seconds of wall and of CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    call(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu


def work(pipe: Connection, kind: str, plan: Plan) -> None:
    """Load one kind; then one answer for every word received."""
    import torch

    from actors.teacher.registry import make_teacher

    torch.set_num_threads(plan.threads)
    teacher = make_teacher(plan.settings(kind))
    requests = make_requests(max(GROWTH))
    teacher.score(requests[:2])
    pipe.send("ready")
    while (word := pipe.recv()) is not None:
        what, count = word
        if what == "memory":
            held = settle()
            answers = teacher.score(requests[:count])
            peak = process_memory("VmHWM") - held
            pipe.send((peak, sum(map(size, answers))))
        elif what == "bare":
            pipe.send(timed(read_only, teacher, requests[:count]))
        elif what == "head":
            pipe.send(timed(read_and_project, teacher, requests[:count]))
        else:
            pipe.send(timed(teacher.score, requests[:count]))
    teacher.close()


def worker_of(kind: str, plan: Plan) -> Worker:
    """One kind of teacher in a process of its own, loaded."""
    worker = Worker(work, kind, plan)
    worker.receive()
    return worker


def throughput(vllm: Worker, hf: Worker, repeats: int) -> list[str]:
    """Tokens/s of each, in turns after a round that is not counted."""
    asked = {BARE: (vllm, "bare"), HEAD: (vllm, "head"), VLLM: (vllm, "score"), HF: (hf, "score")}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in asked}
    for repeat in range(repeats + 1):
        for name, (worker, what) in asked.items():
            seconds = worker.ask((what, SEQUENCES))
            print(f"{name:20} {seconds[0]:6.2f} s wall, {seconds[1]:6.2f} s CPU", flush=True)
            if repeat:
                times[name].append(seconds)
    tokens = SEQUENCES * (PROMPT + RESPONSE)
    lines = [
        "| teacher | wall, s | tokens/s | / bare | / bare + head | CPU, s "
        "| tokens per CPU second / bare | / bare + head |",
        "|---|---|---|---|---|---|---|---|",
    ]
    wall = {name: statistics.median(w for w, _ in own) for name, own in times.items()}
    cpu = {name: statistics.median(c for _, c in own) for name, own in times.items()}
    for name in times:
        lines.append(
            f"| {name} | {wall[name]:.2f} | {tokens / wall[name]:,.0f} | "
            f"{wall[BARE] / wall[name]:.2f} | {wall[HEAD] / wall[name]:.2f} | {cpu[name]:.2f} | "
            f"{cpu[BARE] / cpu[name]:.2f} | {cpu[HEAD] / cpu[name]:.2f} |"
        )
    return lines


def memory(workers: dict[str, Worker]) -> list[str]:
    """Peak above what is held, for growing calls; and without the answers themselves."""
    lines = [
        "| teacher | sequences a call | tokens | peak above held, MiB | of it the answers, MiB |",
        "|---|---|---|---|---|",
    ]
    for name, worker in workers.items():
        for count in GROWTH:
            peak, answers = worker.ask(("memory", count))
            print(f"{name:20} {count:4} sequences {peak / MIB:7.0f} MiB", flush=True)
            tokens = count * (PROMPT + RESPONSE)
            lines.append(
                f"| {name} | {count} | {tokens:,} | {peak / MIB:.0f} | {answers / MIB:.1f} |"
            )
    return lines


def payload(plan: Plan) -> list[str]:
    """Bytes of real signals, as they leave the teacher for the trainers."""
    from actors.teacher.kinds.hf import HfTeacher
    from actors.teacher.service import TeacherServer

    requests = make_requests(2)
    rows = RESPONSE * len(requests)
    lines = [
        "| signal | bytes a token, all rows | rho = 0.5 | rho = 0.1 | all rows / full logits |",
        "|---|---|---|---|---|",
        f"| full logits, float32 (never sent) | {4 * VOCAB:,} | {4 * VOCAB // 2:,} | "
        f"{4 * VOCAB // 10:,} | 1 |",
    ]
    for signal in (SignalChoice.hidden, SignalChoice.topk, SignalChoice.sampled):
        settings = plan.settings("hf", signal)
        server = TeacherServer(HfTeacher(settings), settings)
        sent = []
        for share in (1.0, 0.5, 0.1):
            server.score(requests)
            kept = np.arange(int(share * RESPONSE), dtype=np.int32)
            taken = server.signals.take({request.rollout_id: kept for request in requests})
            sent.append(sum(part.nbytes for part in taken.values()) / rows)
        cells = " | ".join(f"{value:,.1f}" for value in sent)
        lines.append(f"| {signal.value} | {cells} | {sent[0] / (4 * VOCAB):.5f} |")
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtype", choices=[d.value for d in Dtype], default=Dtype.bfloat16.value)
    arguments = parser.parse_args()
    # Inherited by the workers, whose OpenMP reads its number of threads when it loads.
    os.environ |= vllm_environment(arguments.threads) | OPENMP_WAITING
    with tempfile.TemporaryDirectory() as folder:
        parameters = make_model(folder)
        plan = Plan(folder, arguments.threads, arguments.dtype)
        vllm, hf = worker_of("vllm", plan), worker_of("hf", plan)
        speed = throughput(vllm, hf, arguments.repeats)
        peaks = memory({VLLM: vllm, HF: hf})
        for worker in (vllm, hf):
            worker.close()
        bytes_sent = payload(plan)
    text = "\n".join(
        [
            "# Teacher scoring",
            "",
            f"Made by `python benchmarks/teacher_scoring.py --repeats {arguments.repeats} "
            f"--threads {arguments.threads} --dtype {arguments.dtype}`:",
            f"median of {arguments.repeats} rounds in turns, {arguments.threads} thread(s) of "
            f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU, under a load of "
            f"{os.getloadavg()[1]:.1f}.",
            f"A random Llama of {parameters / 1e6:.0f} M parameters, {VOCAB:,} tokens; "
            f"{PROMPT} + {RESPONSE} tokens a sequence, {SEQUENCES} sequences a call,",
            f"2,048 tokens a forward pass; top-k of {TOPK}, student's top-{STUDENT_TOPK}, entropy "
            "and the sampled token's log-probability.",
            "",
            "## Throughput",
            "",
            *speed,
            "",
            "## Memory",
            "",
            *peaks,
            "",
            "## Payload",
            "",
            *bytes_sent,
            "",
            "`bare + output head`: the forward pass and one matrix product of the response rows "
            "with the head; their share decides how near to `bare` any scoring can come.",
            "A signal's bytes do not depend on the vocabulary. `hidden` needs the output head at "
            "the trainers too, once a run.",
            "",
        ]
    )
    publish(text, RESULTS)


if __name__ == "__main__":
    main()
