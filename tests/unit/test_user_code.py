"""Code of the user's that raises is named by its own file and line, without frames of others."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from actors.teacher.registry import make_teacher
from opd_ray.config.data import DataKind, DataSettings
from opd_ray.config.teacher import TeacherSettings
from opd_ray.data.load import load_prompts
from opd_ray.data.rows import DataError
from opd_ray.errors import ConfigError, exit_code
from opd_ray.tasks import get_task
from opd_ray.tasks.task import verify_many
from opd_ray.user_code import UserCodeError, place_in, users_code

SOURCE = '''"""Code with a fault in every part."""
import json

from opd_ray.types import TeacherInfo


class Task:
    name = "own"

    def extract(self, response_text):
        return json.loads(response_text)

    def verify(self, response_text, answer):
        raise SystemExit


class Unmade(Task):
    def __init__(self):
        raise OSError


class Teacher:
    def __init__(self, size=8):
        self.vocab_size = size // (size - 7)

    def info(self):
        return TeacherInfo("own", self.vocab_size, 64, ("topk",))

    def score(self, requests):
        return requests[len(requests)]

    def close(self):
        pass


def rows():
    yield {"prompt": "1+1="}
    raise KeyError("answer")


class Rows(list):
    def __getitem__(self, number):
        return 1 / 0


def lazy():
    return Rows([1, 2])
'''


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_faults.py").write_text(SOURCE)
    importlib.invalidate_caches()
    module = importlib.import_module("own_faults")
    yield importlib.reload(module)
    get_task.cache_clear()


def line(words: str) -> int:
    return 1 + [text.strip() for text in SOURCE.splitlines()].index(words)


def test_a_task_is_named_and_libraries_are_left_out(tmp_path: Path) -> None:
    task = get_task("own_faults:Task")
    assert task.name == "own"
    with pytest.raises(UserCodeError) as raised:
        task.extract("{")
    number = line("return json.loads(response_text)")
    assert str(raised.value) == (
        "task = 'own_faults:Task': JSONDecodeError: Expecting property name enclosed in double "
        f"quotes: line 1 column 2 (char 1) ({tmp_path}/own_faults.py, line {number}, in extract)"
    )
    assert exit_code(raised.value) == 1
    with pytest.raises(UserCodeError, match=r"SystemExit \(.*line \d+, in verify\)"):
        verify_many(task, [("a", "b")])


def test_what_a_constructor_raises_is_bad_input() -> None:
    with pytest.raises(ConfigError, match=r"task = 'own_faults:Unmade': OSError \(.*in __init__"):
        get_task("own_faults:Unmade")


def test_a_teacher_is_named_at_its_start_and_at_work() -> None:
    settings = TeacherSettings(kind="class", class_path="own_faults:Teacher")
    teacher = make_teacher(settings, vocab_size=8)
    with pytest.raises(UserCodeError) as raised:
        teacher.score([])
    said = "teacher.class_path = 'own_faults:Teacher': IndexError: list index out of range ("
    assert str(raised.value).startswith(said)
    assert f"own_faults.py, line {line('return requests[len(requests)]')}, in score)" in str(
        raised.value
    )
    settings.arguments = {"size": 7}
    with pytest.raises(UserCodeError, match=r"ZeroDivisionError: .* in __init__\)"):
        make_teacher(settings, vocab_size=8)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("rows", "data.path = 'own_faults:rows': KeyError: 'answer' ("),
        ("lazy", "data.path = 'own_faults:lazy', row 1: ZeroDivisionError: division by zero ("),
    ],
)
def test_a_data_source_is_named_with_its_row(function: str, words: str) -> None:
    settings = DataSettings(kind=DataKind.python, path=f"own_faults:{function}")
    with pytest.raises(DataError) as raised:
        load_prompts(settings)
    assert str(raised.value).startswith(words)
    assert "own_faults.py, line " in str(raised.value)


def test_known_errors_pass_and_the_cause_is_kept_for_a_traceback() -> None:
    known = ConfigError("run.steps = 0")
    with pytest.raises(ConfigError) as raised, users_code("tip.rule = 'a:b'"):
        raise known
    assert raised.value is known
    with pytest.raises(UserCodeError) as other, users_code("tip.rule = 'a:b'"):
        np.zeros(3)[5]
    assert isinstance(other.value.__cause__, IndexError)


def test_the_place_in_a_traceback_that_ray_brings() -> None:
    import ray

    library = Path(ray.__file__).parent / "_private" / "worker.py"
    text = (
        "ray::Soft.score() (pid=1, ip=10.0.0.1)\n"
        '  File "python/ray/_raylet.pyx", line 3198, in ray._raylet.execute_task\n'
        '  File "/home/ray/code/soft.py", line 12, in score\n    return self.model(x)\n'
        f'  File "{library}", line 7, in inner\n    pass\n'
        "ValueError: bad\n"
    )
    assert place_in(text) == " (/home/ray/code/soft.py, line 12, in score)"
    assert place_in("ValueError: bad") == ""
