"""The demo pair: a tiny teacher and a warmed-up student for chain sums, shipped in here."""

from pathlib import Path

from opd_ray.demo.recipe import make_pair

__all__ = ["make_pair", "pair_folder"]


def pair_folder() -> Path:
    """The packaged pair: Hugging Face folders `teacher` and `student`, and a README of both."""
    return Path(__file__).with_name("pair")
