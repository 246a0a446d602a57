"""``python -m opd_ray``: the same as the command ``opd-ray``."""

from opd_ray.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
