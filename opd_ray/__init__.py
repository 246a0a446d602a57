"""opd-ray: on-policy distillation with token selection (TIP) on Ray, vLLM and DeepSpeed."""

import sys

__version__ = "0.1.0"

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


class _MovedModules:
    """The last finder of modules: says where one of 0.1 is now."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name in _MOVED:
            raise ModuleNotFoundError(f"{name} has moved to {_MOVED[name]}", name=name)


sys.meta_path.append(_MovedModules)
