"""Finding tasks by name and by import path."""

import subprocess
import sys

import pytest

from opd_ray.errors import ConfigError
from opd_ray.tasks import Task, get_task, verify_many


class ShoutTask:
    """A task of a user's own, without a batch method."""

    name = "shout"

    def extract(self, response_text: str) -> str | None:
        return response_text.upper()

    def verify(self, response_text: str, answer: str) -> bool:
        return self.extract(response_text) == answer


SHOUT = ShoutTask()
NOT_A_TASK = 7


def test_a_name_gives_one_shared_task() -> None:
    assert get_task("chain_sum").name == "chain_sum"
    assert get_task("chain_sum") is get_task("chain_sum")


@pytest.mark.parametrize("attribute", ["ShoutTask", "SHOUT"])
def test_an_import_path_gives_a_class_or_an_object(attribute: str) -> None:
    task = get_task(f"{__name__}:{attribute}")
    assert isinstance(task, Task)
    assert verify_many(task, [("yes", "YES"), ("no", "YES")]) == [True, False]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("maths", "use one of chain_sum, environment, math"),
        ("no_such_module:task", "cannot be imported"),
        (f"{__name__}:MISSING", "cannot be imported"),
        (f"{__name__}:NOT_A_TASK", "needs name, extract and verify"),
    ],
)
def test_what_is_no_task_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        get_task(name)


def test_tasks_and_data_settings_import_nothing_heavy() -> None:
    code = (
        "import sys; import opd_ray.tasks, opd_ray.tasks.math_task, opd_ray.data.load;"
        "from opd_ray.tasks import get_task; get_task('math'), get_task('chain_sum');"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'sympy'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
