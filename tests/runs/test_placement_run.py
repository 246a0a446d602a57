"""The demo with its roles apart, side by side and one after another ends with the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_process import run
from test_deterministic_run import figures

_TASK = (
    "{task: chain_sum, problems: 4, data: {kind: chain_sum, max_prompt_tokens: 32, "
    "chain_sum: {terms: 3, digits: 2, split: heldout, count: 4}}}"
)
_RUN = (
    "run.deterministic=true",
    "run.steps=3",
    "run.checkpoint_every=2",
    "run.export_at_end=true",
    "scoring=exact",  # from hidden states: teachers hand over their heads, trainers look twice
    "eval.every=2",
    f"eval.tasks=[{_TASK}]",
    "eval.kl_prompts=4",
    # Else a role that is alone takes all cores, and matrix products round by their number.
    "rollout.threads=1",
    "teacher.threads=1",
    "trainer.threads=1",
)


@pytest.mark.timeout(1200)
def test_where_roles_are_decides_nothing_of_what_they_do(ray_address: str, tmp_path: Path) -> None:
    for placement in ("separate", "shared", "turns"):
        run(
            tmp_path / placement,
            *_RUN,
            f"cluster.address={ray_address}",
            f"cluster.placement={placement}",
        )
    found = {folder.name: figures(folder) for folder in tmp_path.iterdir()}
    assert [row["step"] for row in found["separate"] if "train/loss" in row] == [1, 2, 3]
    assert "eval/kl" in found["separate"][0]
    assert found["shared"] == found["separate"]
    assert found["turns"] == found["separate"]
    exports = {
        folder.name: (folder / "export" / "model.safetensors").read_bytes()
        for folder in tmp_path.iterdir()
    }
    assert exports["shared"] == exports["separate"]
    assert exports["turns"] == exports["separate"]
