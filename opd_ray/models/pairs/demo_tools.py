"""The pair that calls tools, which comes with the package, and its making.

The teacher goes on from the demo's student, which knows some sums, over 48 tokens: by supervised
learning on conversations that a worker leads through reference tables without a mistake. The
student is the teacher half-way, which then learns from a careless worker: one who slips into the
wrong column now and then, which makes the student unsure there, and who forgets to carry, of which
it is sure and wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import transformers

from opd_ray.borders import writing
from opd_ray.models.pairs import demo
from opd_ray.models.pairs.greedy_look_ups import greedy_success, heldout_problems
from opd_ray.models.pairs.supervised import (
    MadeModel,
    MadePair,
    one_cycle,
    store,
    tiny_qwen3,
    train,
)
from opd_ray.models.pairs.tools_tokenizer import tools_tokenizer
from opd_ray.models.pairs.worked_look_ups import Worker
from opd_ray.models.weights import load_causal_lm
from opd_ray.seeds import derive_seed
from opd_ray.whole_file import write_whole

# Tokens whose embeddings the demo's student brings along.
_KNOWN = "0123456789+="
TEACHER_RATE, STUDENT_RATE, RISE_SHARE, BETA2 = 2e-3, 1e-3, 0.1, 0.98
# Of the teacher's steps, those that the student has made with it.
PARTING = 200
TEACHER = Worker(detours=0.2)
STUDENT = Worker(detours=0.2, slips=0.25, carries=False)
PROBLEMS_CHECKED = 500


def make_tools_pair(
    folder: str | Path,
    *,
    seed: int = 0,
    teacher_steps: int = 500,
    student_steps: int = 150,
    batch_rows: int = 16,
    say: Callable[[str], None] = print,
) -> MadePair:
    """Train and write ``folder/teacher``, ``folder/student`` and ``folder/README.md``.

    Weights are stored in bf16; success (greedy, 500 held-out problems) is measured on the stored
    weights read back in fp32. Uses the caller's number of torch threads.

    Raises:
        ValueError: a number that no recipe can have.
    """
    for name, count in (("teacher_steps", teacher_steps), ("student_steps", student_steps)):
        if count < 1:
            raise ValueError(f"{name} = {count}: use at least 1")
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tools_tokenizer()
    heldout = heldout_problems(PROBLEMS_CHECKED)

    def trained(
        name: str, model: transformers.Qwen3ForCausalLM, worker: Worker, steps: int, peak: float
    ) -> Iterator[int]:
        batches = worker.batches(tokenizer, batch_rows, derive_seed(seed, name))
        for step, loss in train(model, batches, one_cycle(steps, peak, RISE_SHARE), BETA2):
            if step % 50 == 0:
                say(f"{name} step {step}/{steps} loss {loss:.4f}")
            yield step

    def finish(name: str, model: transformers.Qwen3ForCausalLM, steps: int) -> MadeModel:
        target = folder / name
        success = greedy_success(store(model, tokenizer, target), tokenizer, heldout)
        say(f"{name}: {steps} steps, held-out success {success:.3f}")
        return MadeModel(target, model.num_parameters(), steps, success)

    teacher = _begun(tokenizer, seed)
    parting = min(PARTING, teacher_steps)
    for step in trained("teacher", teacher, TEACHER, teacher_steps, TEACHER_RATE):
        if step == parting:
            student = copy.deepcopy(teacher)
    made_teacher = finish("teacher", teacher, teacher_steps)
    for _ in trained("student", student, STUDENT, student_steps, STUDENT_RATE):
        pass
    pair = MadePair(made_teacher, finish("student", student, parting + student_steps))
    command = (
        f"opd-ray make-tools-pair --seed {seed} --teacher-steps {teacher_steps} "
        f"--student-steps {student_steps} --out FOLDER"
    )
    write_whole(folder / "README.md", _readme(pair, seed, parting, command))
    return pair


def _begun(
    tokenizer: transformers.PreTrainedTokenizerBase, seed: int
) -> transformers.Qwen3ForCausalLM:
    """The demo's student over another vocabulary; tokens that it lacks are drawn anew."""
    old = load_causal_lm(str(demo.pair_folder() / "student"), dtype=torch.float32)
    known = demo.character_tokenizer()
    weights = old.state_dict()
    layers, hidden = old.config.num_hidden_layers, old.config.hidden_size
    model = tiny_qwen3(tokenizer, layers, hidden, seed)
    brought = old.get_input_embeddings().weight.data
    embedding = model.get_input_embeddings().weight.data
    embedding *= brought.std() / embedding.std()
    for token in _KNOWN:
        embedding[tokenizer.convert_tokens_to_ids(token)] = brought[
            known.convert_tokens_to_ids(token)
        ]
    for tied in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[tied] = embedding.clone()
    model.load_state_dict(weights)
    return model


def _readme(pair: MadePair, seed: int, parting: int, command: str) -> str:
    return f"""# Pair that calls tools

Two Qwen3-shaped models over 48 tokens that answer questions about reference tables by look-ups
(seed {seed}). The teacher went on from the demo's student, which knows some sums. Made by

```bash
{command}
```

{pair.table("success")}

Success: greedy, {PROBLEMS_CHECKED} held-out problems, weights rounded to bf16 (as stored) and read
back in fp32. No table of a held-out problem is ever one of training.

The student is the teacher after {parting} steps, which then learnt from a careless worker: one who
takes {STUDENT.slips:.0%} of references and numbers from the wrong column, and forgets what units
carry to the tens. So it is unsure of columns, and sure and wrong of half of all sums.

Another processor or number of threads gives slightly different weights.
"""


def pair_folder() -> Path:
    """The packaged pair: Hugging Face folders ``teacher`` and ``student``, and a README of both."""
    return Path(__file__).with_name("demo_tools_pair")
