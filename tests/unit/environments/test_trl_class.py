"""The same class in TRL's own trainer and here: the same tools, the same reset, the same prompt.

Needs TRL, which is no dependency: ``pip install --no-deps trl`` beside the pinned packages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_tokenizer import chat_tokenizer
from trl_classes import Shop

from opd_ray.environments.tool_class import ToolClass


class Reached(Exception):
    """TRL would let the student write now."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(300)
def test_tools_reset_and_prompt_are_those_of_trl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trl = pytest.importorskip(
        "trl", minversion="1.16", reason="compares with the package itself: pip install 'trl>=1.16'"
    )
    from datasets import Dataset
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import get_json_schema

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    template = Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"
    tokenizer = chat_tokenizer(template.read_text())
    one = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    size = Qwen2Config(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, **one)
    rows = [{"prompt": [{"role": "user", "content": f"Buy {n}."}], "budget": n} for n in (1, 2)]
    made: list[Shop] = []

    def factory() -> Shop:
        made.append(Shop())
        return made[-1]

    settings = trl.GRPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        num_generations=2,
        per_device_train_batch_size=4,
        max_steps=1,
        report_to=[],
        shuffle_dataset=False,
    )
    trainer = trl.GRPOTrainer(
        model=Qwen2ForCausalLM(size),
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        environment_factory=factory,
    )
    prompts: list[Any] = []

    def write(asked: list[Any]) -> None:
        prompts.extend(asked)
        raise Reached

    monkeypatch.setattr(trainer, "_generate", write)
    with pytest.raises(Reached):
        trainer.train()

    theirs = {tool.__name__: get_json_schema(tool) for tool in trainer._env_tools[None]}
    ours = {tool["function"]["name"]: tool for tool in ToolClass(Shop()).tools}
    assert ours == theirs
    assert sorted(theirs) == ["buy", "convert", "order", "weigh"]
    assert len(prompts) == len(made) == 4
    for prompt, environment in zip(prompts, made, strict=True):
        here = Shop()
        assert ToolClass(here).reset(environment.row) == prompt
        assert here.row == environment.row
    assert prompts[0][0]["content"].endswith("Budget: 1")
