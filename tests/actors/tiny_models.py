"""Tiny random Qwen3 models with a character tokenizer, for tests on the real engines.

A model is made in well under a second and needs no download.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from opd_ray.models.pairs.demo import pair_folder

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


def set_positions(folder: Path | str, **changes: Any) -> None:
    """Give the model in ``folder`` other positions; ``changes`` are keys of its config.json."""
    file = Path(folder) / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in config.items() if "rope" not in k} | changes))


GAP_EOS = 30


def make_gapped_student(folder: Path) -> Path:
    """The demo's student with <eos> moved from id 1 to 30; ids 1 and 24 to 29 have no token.

    It is the same model: 24 tokens, of which the last has the highest of 31 ids.
    """
    shutil.copytree(pair_folder() / "student", folder)
    weights = load_file(folder / "model.safetensors")
    old_VD = weights["model.embed_tokens.weight"]
    new_VD = torch.zeros(32, old_VD.shape[1], dtype=old_VD.dtype)
    new_VD[: len(old_VD)] = old_VD
    new_VD[GAP_EOS] = old_VD[EOS]
    new_VD[EOS] = 0
    weights["model.embed_tokens.weight"] = new_VD
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text()) | {"eos_token_id": GAP_EOS}
        if name == "config.json":
            content["vocab_size"] = len(new_VD)
        (folder / name).write_text(json.dumps(content))
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"]["<eos>"] = GAP_EOS
    for token in tokenizer["added_tokens"]:
        if token["content"] == "<eos>":
            token["id"] = GAP_EOS
    file.write_text(json.dumps(tokenizer))
    return folder
