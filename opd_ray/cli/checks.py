"""What the commands that check something of the user's have in common."""

from __future__ import annotations

from collections.abc import Sequence

from opd_ray.config.load import config_from, load_config
from opd_ray.config.schema import Config
from opd_ray.errors import RUN_FAILED

# What every config must hold, and a check without a config does not read.
_WITHOUT_MODELS = {"student": {"path": "none"}, "teacher": {"path": "none"}}


def config_of_check(config: str | None, overrides: Sequence[str], command: str) -> Config:
    """The config of that name or path; of None the defaults, without models.

    Args:
        config: as on the command line.
        overrides: ``key=value`` texts.
        command: its name, for messages.

    Raises:
        ConfigError: no such config, or overrides that do not fit.
    """
    if config is None:
        return config_from(_WITHOUT_MODELS, overrides, command)
    return load_config(config, overrides)


def tell(violations: Sequence[str], of: str) -> int:
    """Print what is broken, and how much ``of`` what; the exit code, 0 where there is nothing."""
    for violation in violations:
        print(f"- {violation}")
    if not violations:
        return 0
    print(f"{len(violations)} violations of {of}")
    return RUN_FAILED
