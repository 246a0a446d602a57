"""What travels with a job, and the paths of its config that would lead nowhere on a cluster."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from omegaconf import OmegaConf

from opd_ray.borders import writing
from opd_ray.config.choices import CacheMode
from opd_ray.config.data import DataKind, DataSettings
from opd_ray.config.files import SUFFIXES, layers
from opd_ray.config.load import load_config
from opd_ray.config.schema import Config
from opd_ray.errors import ConfigError
from opd_ray.whole_file import write_whole

PACKAGES = ("opd_ray", "actors", "configs")
JOB_CONFIG = "job.yaml"
# Ray refuses to carry more than 500 MiB; a folder so large holds more than code.
MOST_BYTES = 500 << 20
_LEFT_OUT = ("__pycache__", "*.pyc", ".git", ".venv", ".gitignore")


def stage(
    folder: Path,
    config: str,
    overrides: Sequence[str],
    modules: Sequence[Path] = (),
    working_dir: Path | None = None,
) -> list[str]:
    """Fill ``folder`` with all that travels; the arguments of ``opd-ray`` for the cluster.

    Args:
        folder: empty; the job will run in a copy of it.
        config: a packaged config's name or a file.
        overrides: ``key=value``.
        modules: files and package folders of the user's.
        working_dir: a folder all of whose contents travel.

    Raises:
        ConfigError: the config or an override is wrong, or names a relative path that does not
            travel: on the cluster it would be inside Ray's temporary copy of ``folder``.
    """
    loaded = load_config(config, overrides)
    if problems := list(_path_problems(loaded, working_dir)):
        raise ConfigError("\n".join(problems))
    if working_dir is not None:
        _carry_all(working_dir, folder)
    for module in modules:
        _carry_module(module, folder)
    for package in PACKAGES:
        if (folder / package).exists():
            raise ConfigError(f"{package} is the name of a package of opd-ray: rename your own")
        code = Path(str(resources.files(package)))
        _copy(code, folder / package)
    for note in _module_notes(loaded, folder):
        print(f"submit.sh: {note}", file=sys.stderr)
    if config.endswith(SUFFIXES):
        # One file out of all it inherits, its ${...} left for the cluster to resolve.
        merged = OmegaConf.merge(*(OmegaConf.create(layer.values) for layer in layers(config)))
        write_whole(folder / JOB_CONFIG, OmegaConf.to_yaml(merged))
        config = JOB_CONFIG
    return ["train", "--config", config, *overrides, "cluster.address=auto"]


def _path_problems(config: Config, working_dir: Path | None) -> Iterator[str]:
    """Relative paths that lead to nothing, or to what is deleted with the job."""
    for key, path in (("run.output_dir", config.run.output_dir), *_kept_folders(config)):
        if not Path(path).is_absolute():
            yield (
                f"{key} = {path!r}: a job's results would be deleted with its working folder; give "
                f"the path of a folder that the cluster keeps, e.g. {key}=/shared/runs/first"
            )
    for key, path in _inputs(config):
        if Path(path).is_absolute() or path.startswith("~"):
            continue
        if working_dir is not None and _is_there(working_dir, path):
            continue
        yield (
            f"{key} = {path!r}: a relative path, which the cluster does not have; give an absolute "
            "path that every node sees, or carry it along (--working-dir)"
        )


def _kept_folders(config: Config) -> Iterator[tuple[str, str]]:
    if config.run.resume not in ("auto", "never"):
        yield "run.resume", config.run.resume
    for name, teacher in config.teacher_set.models.items():
        if teacher.cache is not CacheMode.off and teacher.cache_dir:
            yield f"{name}.cache_dir", teacher.cache_dir


def _inputs(config: Config) -> Iterator[tuple[str, str]]:
    """Files and folders that a run reads, by key; names of a hub are none."""
    models = [("student.path", config.student.path)]
    models += [(f"{name}.path", t.path) for name, t in config.teacher_set.models.items() if t.path]
    for key, path in models:
        if _is_local(path):
            yield key, path
    for key, settings in config.data_sections.items():
        if _reads_files(settings):
            yield f"{key}.path", settings.path


def _reads_files(settings: DataSettings) -> bool:
    match settings.kind:
        case DataKind.jsonl | DataKind.parquet:
            return True
        case DataKind.datasets:
            return _is_local(settings.path)
        case DataKind.prepared:  # a name alone is looked for in OPD_RAY_DATA
            return Path(settings.path).parent != Path()
        case _:
            return False


def _is_local(name: str) -> bool:
    """A folder here, not the name of something on a hub."""
    return name.startswith(".") or Path(name).exists()


def _is_there(working_dir: Path, path: str) -> bool:
    return (working_dir / path).exists() or any(working_dir.glob(path))


def _carry_all(working_dir: Path, folder: Path) -> None:
    if not working_dir.is_dir():
        raise ConfigError(f"--working-dir = {str(working_dir)!r}: no such folder")
    _check_size("--working-dir", working_dir)
    _copy(working_dir, folder)


def _carry_module(module: Path, folder: Path) -> None:
    target = folder / module.absolute().name
    if target.exists():
        raise ConfigError(f"--py-modules = {str(module)!r}: {target.name} travels already")
    if module.is_dir():
        _check_size("--py-modules", module)
        _copy(module, target)
    elif module.is_file() and module.suffix == ".py":
        with writing(target):
            shutil.copy(module, target)
    else:
        raise ConfigError(
            f"--py-modules = {str(module)!r}: name a Python file or the folder of a package"
        )


def _copy(source: Path, target: Path) -> None:
    with writing(target):
        ignored = shutil.ignore_patterns(*_LEFT_OUT)
        shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)


def _check_size(option: str, folder: Path) -> None:
    """Refuse a folder that Ray would not carry, before it is copied."""
    total = 0
    for path in folder.rglob("*"):
        if path.is_file() and not {".git", ".venv", "__pycache__"} & set(path.parts):
            total += path.stat().st_size
            if total > MOST_BYTES:
                raise ConfigError(
                    f"{option} = {str(folder)!r}: more than {MOST_BYTES >> 20} MiB; a job carries "
                    "code, so put models and data where every node sees them"
                )


def _module_notes(config: Config, folder: Path) -> Iterator[str]:
    """Modules of the user's that are found here and do not travel."""
    installed = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    for key, path in _import_paths(config):
        top = path.partition(":")[0].partition(".")[0]
        if not top or (folder / top).is_dir() or (folder / f"{top}.py").is_file():
            continue
        spec = None if top == "__main__" else importlib.util.find_spec(top)
        places = () if spec is None else (spec.origin, *(spec.submodule_search_locations or ()))
        origin = next(filter(None, places), None)
        if origin is not None and not origin.startswith((*installed, "built-in", "frozen")):
            file = Path(origin)
            source = file.parent if file.name == "__init__.py" else file
            yield (
                f"{key} = {path!r}: its module does not travel; unless every node has it, add "
                f"--py-modules {source}"
            )


def _import_paths(config: Config) -> Iterator[tuple[str, str]]:
    """Objects of the user's own, by key."""
    paths = [("tip.rule", config.tip.rule)]
    paths += [(f"{n}.class_path", t.class_path or "") for n, t in config.teacher_set.models.items()]
    paths += [(f"{key}.task", task.task) for key, task in config.named_tasks.items()]
    paths += [
        (f"{key}.path", data.path)
        for key, data in config.data_sections.items()
        if data.kind is DataKind.python
    ]
    return ((key, path) for key, path in paths if ":" in path)
