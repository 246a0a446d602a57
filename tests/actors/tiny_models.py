"""Tiny random Qwen3 models with a character tokenizer, for tests on the real engines.

A model is made in well under a second and needs no download.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

PAD, EOS, BOS = 0, 1, 2
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
HEAD_SIZE = 32  # the smallest that vLLM's CPU attention takes


def character_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Ids 0, 1, 2 are <pad>, <eos>, <bos>; then one id a character, as many as ``vocab`` allows."""
    tokens = ["<pad>", "<eos>", "<bos>", *CHARACTERS][:vocab]
    inner = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<pad>")
    )
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )


def make_tiny_qwen3(
    folder: Path | str,
    *,
    hidden: int = 64,
    layers: int = 2,
    vocab: int = 96,
    tied: bool = True,
    experts: int = 0,
    seed: int = 0,
) -> Path:
    """Save a random float32 Qwen3 and its tokenizer to ``folder``; returns it.

    Weights are scaled up so that next-token distributions are far from uniform.

    Args:
        folder: where to; made if missing.
        hidden: hidden size, a multiple of 64 (two query heads share one key-value head).
        layers: decoder layers.
        vocab: rows of the embedding; beyond the tokenizer's tokens they are padding.
        tied: the output head shares the embedding's weights.
        experts: of a mixture, of which a token takes two; 0 for a dense model.
        seed: of the random weights.
    """
    folder = Path(folder)
    mixture = {
        "num_experts": experts,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": hidden,
        "norm_topk_prob": True,
    }
    config = AutoConfig.for_model(
        "qwen3_moe" if experts else "qwen3",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // HEAD_SIZE,
        num_key_value_heads=hidden // (2 * HEAD_SIZE),
        head_dim=HEAD_SIZE,
        max_position_embeddings=1024,
        tie_word_embeddings=tied,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **(mixture if experts else {}),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(12.0 if "embed" in name or "lm_head" in name else 5.0)
    model.save_pretrained(folder)
    character_tokenizer(vocab).save_pretrained(folder)
    return folder
