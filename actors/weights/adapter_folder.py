"""An adapter as a folder, which is what peft, transformers and vLLM read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from opd_ray.borders import writing
from opd_ray.models.folder import ADAPTER

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def save_adapter(config: Mapping[str, Any], state: Mapping[str, Tensor], folder: str) -> None:
    """Write a folder that peft, transformers and vLLM read as an adapter.

    What is at ``folder`` is replaced, once the new one is whole.

    Args:
        config: peft's adapter_config.json.
        state: A and B of every layer, by peft's names.
        folder: where to.

    Raises:
        WriteError: it cannot be written; what is there stays.
    """
    target = Path(folder)
    draft = target.with_name(f"{target.name}.tmp")
    with writing(target):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        text = json.dumps(config, indent=2, sort_keys=True)
        (draft / ADAPTER).write_text(text, encoding="utf-8")
        save_file({n: t.contiguous() for n, t in state.items()}, draft / ADAPTER_WEIGHTS)
        # safetensors lets nobody else read what it writes, whatever the umask says.
        shutil.copymode(draft / ADAPTER, draft / ADAPTER_WEIGHTS)
        if target.exists():
            shutil.rmtree(target)
        os.replace(draft, target)
