"""One stage of end_to_end.py in a process of its own; roofline.py starts it.

python roofline_stage.py STAGE PLAN.json    (rollout, teacher or trainer; writes the plan's folder)
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from end_to_end import LEARNING_RATE, NEW_TOKENS, PROMPTS, read_prompts
from end_to_end_own import CONTEXT, ROW_TOKENS
from one_rank import one_rank

from actors.process import (
    OPENMP_WAITING,
    teacher_environment,
    trainer_environment,
    vllm_environment,
)
from opd_ray.config.choices import Dtype, SignalChoice
from opd_ray.config.schema import (
    RolloutSettings,
    StudentSettings,
    SyncSettings,
    TrainerSettings,
)
from opd_ray.config.teacher import TeacherSettings
from opd_ray.types import Rollout, RolloutRequest, Sampling, ScoreRequest, TrainItem

RUNS = 3  # measured, after one that is not


class Stage:
    """The settings of a plan, and the files that stages leave each other."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.pair, self.folder = Path(plan["pair"]), Path(plan["folder"])
        self.data, self.threads = Path(plan["data"]), int(plan["threads"])
        dtype = Dtype(plan["dtype"])
        self.student = StudentSettings(path=str(self.pair / "student"), context_length=CONTEXT)
        self.rollout_settings = RolloutSettings(
            dtype=dtype, max_num_seqs=64, max_num_batched_tokens=2048, threads=self.threads
        )
        self.teacher_settings = TeacherSettings(
            path=str(self.pair / "teacher"),
            dtype=dtype,
            signal=SignalChoice.hidden,
            batch_tokens=2048,
            threads=self.threads,
        )
        self.trainer_settings = TrainerSettings(
            dtype=dtype,
            micro_batch_tokens=ROW_TOKENS,
            learning_rate=LEARNING_RATE,
            weight_decay=0.0,
            threads=self.threads,
        )

    def environment(self, name: str) -> dict[str, str]:
        """Of the stage's process, as a run sets it."""
        of_stage = {
            "rollout": lambda: vllm_environment(self.threads),
            "teacher": lambda: teacher_environment(self.teacher_settings),
            "trainer": lambda: trainer_environment(self.trainer_settings),
        }
        return {**OPENMP_WAITING, **of_stage[name]()}

    def rollout(self) -> tuple[Callable[[int], dict[str, float]], Callable[[], None]]:
        """One turn writes the responses to one step's prompts."""
        from transformers import AutoTokenizer

        from actors.rollout.engine import RolloutEngine

        engine = RolloutEngine(self.student, self.rollout_settings, SyncSettings())
        tokenizer = AutoTokenizer.from_pretrained(self.student.path)
        texts = read_prompts(self.data / "gsm8k_train.jsonl", PROMPTS * (RUNS + 1))
        ids = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                add_generation_prompt=True,
                return_dict=False,
            )
            for text in texts
        ]
        written: list[Rollout] = []

        def turn(number: int) -> dict[str, float]:
            written.clear()
            requests = [
                RolloutRequest(f"{index}", f"{index}", 0, np.array(ids[index], np.int32), index)
                for index in range(number * PROMPTS, (number + 1) * PROMPTS)
            ]
            engine.add(requests, Sampling(max_tokens=NEW_TOKENS), record=True)
            steps = 0
            while engine.has_unfinished():
                written.extend(engine.step())
                steps += 1
            return {
                "prompt": sum(len(r.prompt_ids) for r in written),
                "response": sum(len(r.response_ids) for r in written),
                "squares": sum((len(r.prompt_ids) + len(r.response_ids)) ** 2 for r in written),
                "steps": steps,
            }

        return turn, lambda: self._leave("rollouts", written)

    def teacher(self) -> tuple[Callable[[int], dict[str, float]], Callable[[], None]]:
        """One turn scores all rollouts at once."""
        import torch

        from actors.teacher.kinds.hf import HfTeacher

        torch.set_num_threads(self.threads)
        rollouts: list[Rollout] = self._find("rollouts")
        teacher = HfTeacher(self.teacher_settings)
        requests = [
            ScoreRequest(r.rollout_id, r.prompt_ids, r.response_ids, r.topk) for r in rollouts
        ]
        answers: list[Any] = []

        def turn(number: int) -> dict[str, float]:
            answers[:] = teacher.score(requests)
            return {"rows": sum(len(r.response_ids) for r in rollouts)}

        def leave() -> None:
            signals = {answer.rollout_id: answer.signal for answer in answers}
            self._leave("signals", (signals, teacher.output_head()))

        return turn, leave

    def trainer(self) -> tuple[Callable[[int], dict[str, float]], Callable[[], None]]:
        """One turn is a gradient step."""
        import torch

        from opd_ray.batching.micro_batches import plan_micro_batches, width_of

        torch.set_num_threads(self.threads)
        rollouts: list[Rollout] = self._find("rollouts")
        signals, head = self._find("signals")
        settings = self.trainer_settings
        trainer = one_rank(self.student, settings, *head)
        items = []
        for r in rollouts:
            rows = np.arange(len(r.response_ids), dtype=np.int32)
            ones = np.ones(len(rows), np.float32)
            items.append(
                TrainItem(r.rollout_id, r.prompt_ids, r.response_ids, rows, ones, r.logprob)
            )
        width = width_of(on_gpu=False, bfloat16=settings.dtype is Dtype.bfloat16)
        texts = [item.text_ids for item in items]
        (plan,) = plan_micro_batches(texts, 1, settings.micro_batch_tokens, width)
        batches = [[items[index] for index in group] for group in plan]
        total = float(sum(len(item.rows) for item in items))

        def turn(number: int) -> dict[str, float]:
            account = trainer.train_step(batches, total, LEARNING_RATE, signals)
            return {"trunk": account.trunk_tokens, "rows": account.kept_tokens}

        return turn, lambda: None

    def _leave(self, name: str, what: Any) -> None:
        (self.folder / f"{name}.pickle").write_bytes(pickle.dumps(what))

    def _find(self, name: str) -> Any:
        return pickle.loads((self.folder / f"{name}.pickle").read_bytes())


def main() -> None:
    """Turns of the stage; what each took, and of how many tokens."""
    name, plan_file = sys.argv[1:]
    plan = json.loads(Path(plan_file).read_text())
    stage = Stage(plan)
    environment = stage.environment(name)
    if not environment.items() <= os.environ.items():
        # OpenMP and the allocator read them when they load.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | environment)
    turn, leave = getattr(stage, name)()
    turn(0)
    found = []
    for number in range(1, RUNS + 1):
        before, main_before = resource.getrusage(resource.RUSAGE_SELF), time.thread_time()
        begin = time.perf_counter()
        counts = turn(number)
        seconds = time.perf_counter() - begin
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        main_thread = time.thread_time() - main_before
        found.append({**counts, "seconds": seconds, "cpu": cpu, "main": main_thread})
    leave()
    Path(plan["folder"], f"{name}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
