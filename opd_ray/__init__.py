"""opd-ray: on-policy distillation with token selection (TIP) on Ray, vLLM and DeepSpeed.

Whole runs: :func:`load_config`, :func:`train`, :func:`evaluate`, :func:`read_run`. Their parts, for
a training loop of your own: :class:`TipFilter` chooses tokens, :func:`linear_divergence` is the
loss. ``import opd_ray`` loads none of them: each comes when its name is first used.
"""

import sys
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where a name is kept. What type checkers read is __init__.pyi.
_PUBLIC = {
    "Config": "opd_ray.config.schema",
    "EvaluationResult": "opd_ray.api",
    "HiddenTarget": "opd_ray.divergence",
    "LogitsTarget": "opd_ray.divergence",
    "RunPaths": "opd_ray.api",
    "RunResult": "opd_ray.api",
    "SampledTarget": "opd_ray.divergence",
    "Selection": "opd_ray.tip",
    "TipFilter": "opd_ray.tip",
    "TipSettings": "opd_ray.tip",
    "TokenScores": "opd_ray.tip",
    "TopKTarget": "opd_ray.divergence",
    "evaluate": "opd_ray.api",
    "exact_scores": "opd_ray.divergence",
    "linear_divergence": "opd_ray.divergence",
    "load_config": "opd_ray.config.load",
    "read_run": "opd_ray.api",
    "selection_rule": "opd_ray.tip",
    "train": "opd_ray.api",
}
__all__ = ["__version__", "errors", *_PUBLIC]

_MOVED = {
    "opd_ray.alignment": "opd_ray.batching.alignment",
    "opd_ray.balance": "opd_ray.batching.micro_batches",
    "opd_ray.demo": "opd_ray.models.pairs.demo",
    "opd_ray.model_facts": "opd_ray.models.tokenizer",
    "opd_ray.packing": "opd_ray.batching.packing",
    "opd_ray.pairing": "opd_ray.preflight.pairing",
    "opd_ray.submit": "opd_ray.cluster.submit",
    "opd_ray.wire": "opd_ray.types, its functions are to_array and to_tensor",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used."""
    if name == "errors":
        return import_module("opd_ray.errors")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'opd_ray' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_PUBLIC[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _MovedModules:
    """The last finder of modules: says where one of 0.1 is now."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name in _MOVED:
            raise ModuleNotFoundError(f"{name} has moved to {_MOVED[name]}", name=name)


sys.meta_path.append(_MovedModules)
