"""What the makers of small pairs share: tokenizers, tiny models, supervised training, storing."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# As a whole: it imports a class's file when the class is first used, which takes seconds.
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from opd_ray.borders import writing
from opd_ray.models.weights import load_causal_lm


@dataclass(frozen=True)
class MadeModel:
    """What one model of a pair is and how well it does after rounding to bf16."""

    folder: Path
    parameters: int
    steps: int
    heldout_accuracy: float


@dataclass(frozen=True)
class MadePair:
    teacher: MadeModel
    student: MadeModel

    def table(self, figure: str) -> str:
        """Both models in Markdown; ``figure`` is what their held-out accuracy is called."""
        rows = [
            f"| {made.folder.name} | {made.parameters:,} | {made.steps} | "
            f"{made.heldout_accuracy:.1%} |"
            for made in (self.teacher, self.student)
        ]
        head = f"| model | parameters | supervised steps | held-out {figure} |"
        return "\n".join([head, "| --- | --- | --- | --- |", *rows])


def word_tokenizer(
    vocabulary: Sequence[str], words: str, special: Sequence[str] = (), **options: Any
) -> transformers.PreTrainedTokenizerFast:
    """A fast tokenizer of whole words, which adds no special token by itself.

    Args:
        vocabulary: the words by their ids.
        words: regular expression of what is one word; so is what lies between.
        special: of the vocabulary, those that are no text beside the tokens that options name.
        options: of the tokenizer; ``unk_token`` stands for a word that is not in the vocabulary.
    """
    ids = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=options["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(words), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **options,
    )


def tiny_qwen3(
    tokenizer: transformers.PreTrainedTokenizerBase,
    layers: int,
    hidden: int,
    seed: int,
    feed_forward: int = 4,
) -> transformers.Qwen3ForCausalLM:
    """A randomly initialised Qwen3 over a tokenizer's vocabulary, with tied embeddings.

    Args:
        tokenizer: which also says how long texts may be.
        layers: of the trunk.
        hidden: size of a hidden state, a multiple of 64.
        seed: of the weights.
        feed_forward: width between, in hidden sizes.
    """
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=feed_forward * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        head_dim=32,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.Qwen3ForCausalLM(config)


def store(
    model: transformers.Qwen3ForCausalLM,
    tokenizer: transformers.PreTrainedTokenizerBase,
    folder: Path,
) -> transformers.Qwen3ForCausalLM:
    """Write a model in bf16 with its tokenizer; what was written, read back in fp32."""
    stored = copy.deepcopy(model).to(torch.bfloat16)
    with writing(folder):
        stored.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return load_causal_lm(str(folder), dtype=torch.float32)


def train(
    model: transformers.Qwen3ForCausalLM,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    rates: Iterable[float],
    beta2: float = 0.999,
) -> Iterator[tuple[int, float]]:
    """Cross-entropy on a batch of ids and labels a learning rate; yields (step, loss in nats)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, beta2), weight_decay=0.01)
    for step, rate in enumerate(rates, start=1):
        ids, labels = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = rate
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            # Padding is on the right, so causal attention alone keeps it out of real rows.
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield step, loss.item()


def as_batch(
    rows: list[tuple[list[int], list[int]]], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and labels ``[rows, longest]`` of rows of both; the loss skips labels of -100."""
    longest = max(len(ids) for ids, _ in rows)
    all_ids = torch.full((len(rows), longest), pad_id)
    all_labels = torch.full((len(rows), longest), -100)
    for row, (ids, labels) in enumerate(rows):
        all_ids[row, : len(ids)] = torch.tensor(ids)
        all_labels[row, : len(labels)] = torch.tensor(labels)
    return all_ids, all_labels


def one_cycle(steps: int, peak: float, rise_share: float) -> list[float]:
    """Linear rise to ``peak`` over the first share of the steps, then cosine to zero."""
    rise = max(1, round(rise_share * steps))
    return [
        peak * (step + 1) / rise
        if step < rise
        else peak * 0.5 * (1 + math.cos(math.pi * (step - rise + 1) / (steps - rise + 1)))
        for step in range(steps)
    ]
