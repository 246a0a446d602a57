"""One part, in a process of its own: ``python -m gpu_check.child MODULE ARGUMENT DEVICE FILE``."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from pathlib import Path

from gpu_check.findings import Findings


def main(module: str, argument: str, device: str, file: str) -> int:
    """Run it; 1 where a check did not hold or something was raised, the reason printed last."""
    findings = Findings(Path(file))
    try:
        import_module(module).run(findings, device, argument)
    except Exception:
        traceback.print_exc()
        return 1
    for line in findings.failed:
        print(line, file=sys.stderr)
    return int(bool(findings.failed))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
