"""TRL's side of end_to_end.py, which runs it in an environment of its own.

python end_to_end_trl.py PLAN.json    (writes the file that the plan names)
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import DistillationConfig, DistillationTrainer


class Clock(TrainerCallback):
    """Seconds of every step, from its beginning (generation included) to its end."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._begin = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds.append(time.perf_counter() - self._begin)


def make_trainer(plan: dict[str, Any], clock: Clock) -> DistillationTrainer:
    """Reverse KL on the whole vocabulary, all tokens; mixed precision as TRL does it."""
    bfloat16 = plan["dtype"] == "bfloat16"
    config = DistillationConfig(
        output_dir=plan["output"],
        beta=1.0,
        per_device_train_batch_size=plan["prompts_per_step"],
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        max_steps=plan["steps"],
        max_completion_length=plan["max_new_tokens"],
        temperature=1.0,
        shuffle_dataset=False,
        learning_rate=plan["learning_rate"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        adam_beta1=plan["adam_beta1"],
        adam_beta2=plan["adam_beta2"],
        max_grad_norm=1.0,
        bf16=bfloat16,
        # The student's own weights stay float32, as the master weights of the other side do.
        model_init_kwargs={"dtype": "float32"},
        teacher_model_init_kwargs={"dtype": plan["dtype"]},
        use_cpu=True,
        seed=plan["seed"],
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in plan["prompts"]]
    return DistillationTrainer(
        model=plan["student"],
        teacher_model=plan["teacher"],
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(plan["student"], padding_side="left"),
        callbacks=[clock],
    )


def loss_of(trainer: DistillationTrainer, rollouts: list[dict[str, list[int]]]) -> float:
    """TRL's loss on given rollouts, nats a response token."""

    def padded(name: str, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(len(rollout[name]) for rollout in rollouts)
        ids = torch.full((len(rollouts), longest), trainer._tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, rollout in enumerate(rollouts):
            length = len(rollout[name])
            place = slice(longest - length, None) if left else slice(length)
            ids[row, place] = torch.tensor(rollout[name])
            mask[row, place] = 1
        return ids, mask

    prompt_ids, prompt_mask = padded("prompt_ids", left=True)
    completion_ids, completion_mask = padded("response_ids", left=False)
    inputs = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
    }
    with torch.no_grad(), trainer.accelerator.autocast():
        loss, *_ = trainer._compute_loss(trainer.model, inputs, completion_mask.sum())
    return float(loss)


def main() -> None:
    """Check the loss, train, save the student, write what was measured."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    clock = Clock()
    trainer = make_trainer(plan, clock)
    loss = loss_of(trainer, plan["rollouts"])
    trainer.train()
    trainer.save_model(plan["output"])
    lengths = [
        log["completions/mean_length"] * plan["prompts_per_step"]
        for log in trainer.state.log_history
        if "completions/mean_length" in log
    ]
    measured = {"seconds": clock.seconds, "tokens": lengths, "loss": loss}
    Path(plan["result"]).write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
