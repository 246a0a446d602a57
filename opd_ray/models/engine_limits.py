"""What the installed engines cannot run, as far as a model's config.json tells.

Importing vLLM takes seconds, so what it knows is written down here or read from its source; tests
hold the two together.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from opd_ray.models.context import text_part
from opd_ray.models.shape import KNOWN_TYPES, ModelShape, ModelShapeError

# CPUAttentionBackend.get_supported_head_sizes()
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
# vLLM fills the vocabulary up to a multiple before it splits it.
VOCABULARY_MULTIPLE = 64
# vLLM's dictionaries of models that write text.
_GENERATING = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
# What a model draws at random while it trains, and never while it writes.
DROPOUT_RATES = (
    "attention_dropout",
    "hidden_dropout",
    "resid_pdrop",
    "attn_pdrop",
    "embd_pdrop",
    "router_jitter_noise",
    "input_jitter_noise",
)
# Keys with a value beyond which logits are not the head's projection of the last hidden states, or
# attention is more than the dot product.
_NEUTRAL: Mapping[str, Any] = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
}

# Keys that say how many experts a layer of a mixture has.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def vllm_problems(described: Mapping[str, Any], *, on_cpu: bool, split: int) -> Iterator[str]:
    """Why no vLLM engine runs the model, each with what to change.

    Args:
        described: its config.json.
        on_cpu: the engine has no GPU.
        split: processes or GPUs over which it is split (tensor parallel).
    """
    text = text_part(described)
    yield from _architecture_problems(described)
    head_dim = _head_dim(text)
    if on_cpu and head_dim is not None and head_dim not in CPU_HEAD_SIZES:
        yield (
            f"attention heads of {head_dim} (head_dim), and vLLM's attention on CPUs takes "
            f"{', '.join(map(str, CPU_HEAD_SIZES))}; use another model, or GPUs"
        )
    if split > 1:
        yield from _split_problems(text, split)


def packed_problems(described: Mapping[str, Any]) -> Iterator[str]:
    """Why neither trainer nor ``hf`` teacher computes the model, with what to do."""
    text = text_part(described)
    for name, neutral in _NEUTRAL.items():
        value = text.get(name)
        if value is not None and value != neutral:
            yield (
                f"{name} = {value}: the model caps or scales its attention or its logits, which "
                "trainers and hf teachers do not; use another model"
            )


def trained_problems(described: Mapping[str, Any]) -> Iterator[str]:
    """Why the model cannot be trained, with what to do."""
    text = text_part(described)
    rates = {name: text[name] for name in DROPOUT_RATES if text.get(name)}
    if rates:
        shown = ", ".join(f"{name} = {rate}" for name, rate in rates.items())
        yield (
            f"{shown}: vLLM writes the rollouts without it, so the trainer would see another "
            "model; set it to 0 in its config.json"
        )
    if described.get("quantization_config"):
        yield (
            "quantization_config: its weights are quantised, and a student is trained in full "
            "numbers; give the model that was quantised"
        )


def lora_problems(described: Mapping[str, Any], *, on_cpu: bool) -> Iterator[str]:
    """Why no vLLM engine adds an adapter to the model, with what to do.

    Args:
        described: its config.json.
        on_cpu: the engine has no GPU.
    """
    text = text_part(described)
    experts = next((name for name in _EXPERTS if (text.get(name) or 0) > 1), None)
    if on_cpu and experts:
        yield (
            f"{experts} = {text[experts]}: vLLM adds adapters to mixtures of experts on GPUs "
            "alone; use sync.lora=merged"
        )
    names = described.get("architectures") or []
    names = [names] if isinstance(names, str) else names
    known = [name for name in names if name in _registry()]
    if known and not any(_takes_adapters(*_registry()[name]) for name in known):
        yield (
            f"architectures = {', '.join(known)}: the installed vLLM adds no adapters to such a "
            "model; use sync.lora=merged"
        )


def _head_dim(text: Mapping[str, Any]) -> int | None:
    """Elements of an attention head; None where config.json alone does not tell."""
    if text.get("kv_lora_rank"):  # compressed attention has backends of its own
        return None
    if text.get("model_type") in KNOWN_TYPES:
        try:
            return ModelShape.from_config(text).head_dim
        except ModelShapeError:
            return None
    return text.get("head_dim")


def _split_problems(text: Mapping[str, Any], split: int) -> Iterator[str]:
    heads = text.get("num_attention_heads")
    keys = text.get("num_key_value_heads") or heads
    rows = text.get("vocab_size")
    wide = text.get("intermediate_size")
    if heads and heads % split:
        yield f"num_attention_heads = {heads}: no multiple of {split}"
    elif keys and max(keys, split) % min(keys, split):
        yield f"num_key_value_heads = {keys}: neither a multiple nor a divisor of {split}"
    if wide and wide % split:
        yield f"intermediate_size = {wide}: no multiple of {split}"
    if rows:
        padded = -(-rows // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        if padded % split:
            yield f"vocab_size = {rows}, which vLLM pads to {padded}: no multiple of {split}"


def _architecture_problems(described: Mapping[str, Any]) -> Iterator[str]:
    names = described.get("architectures") or []
    names = [names] if isinstance(names, str) else names
    if described.get("auto_map") or not vllm_architectures():
        return
    if names and not any(
        name in vllm_architectures() or _runs_by_transformers(name) for name in names
    ):
        yield (
            f"architectures = {', '.join(names)}: the installed vLLM knows no model of that name "
            "that writes text; use another model"
        )


def vllm_architectures() -> frozenset[str]:
    """Of the installed vLLM; empty where there is none."""
    return frozenset(_registry())


@cache
def _registry() -> Mapping[str, tuple[str, str]]:
    """vLLM's modules and classes of models that write text, by architecture, from its source."""
    found: dict[str, tuple[str, str]] = {}
    for statement in _source("registry").body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            (target,) = statement.targets
            if isinstance(target, ast.Name) and target.id in _GENERATING:
                for key, value in zip(statement.value.keys, statement.value.values, strict=True):
                    if isinstance(key, ast.Constant):
                        found[str(key.value)] = ast.literal_eval(value)
    return found


@cache
def _source(module: str) -> ast.Module:
    """A module of vLLM's models, parsed; an empty one where there is none."""
    spec = find_spec("vllm")
    folders = (spec.submodule_search_locations or []) if spec else []
    files = [Path(folder) / "model_executor" / "models" / f"{module}.py" for folder in folders]
    file = next((file for file in files if file.is_file()), None)
    return ast.parse(file.read_text(encoding="utf-8") if file else "")


def _takes_adapters(module: str, name: str) -> bool:
    """Whether a class of vLLM's models is a SupportsLoRA; one whose source is elsewhere counts."""
    body = _source(module).body
    made = next((one for one in body if isinstance(one, ast.ClassDef) and one.name == name), None)
    imports = [one for one in body if isinstance(one, ast.ImportFrom) and one.module]
    if made is None:
        of = next((one for one in imports if any(a.name == name for a in one.names)), None)
        if of is None or of.module is None:
            return not body
        relative = of.module.removeprefix("vllm.model_executor.models.")
        within = of.level == 1 or relative != of.module
        return within and _takes_adapters(relative, name)
    bases = [base.id for base in made.bases if isinstance(base, ast.Name)]
    return "SupportsLoRA" in bases or any(_takes_adapters(module, base) for base in bases)


def _runs_by_transformers(name: str) -> bool:
    """Whether vLLM can run transformers' own class of that name."""
    import transformers

    made = getattr(transformers, name, None)
    return made is not None and name.endswith(("ForCausalLM", "ForConditionalGeneration"))
