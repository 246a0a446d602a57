"""What is made once for all tests of the folder."""

from __future__ import annotations

import pytest
from synthetic_world import AllTasks


@pytest.fixture(scope="session")
def all_tasks(tmp_path_factory: pytest.TempPathFactory) -> AllTasks:
    return AllTasks(tmp_path_factory.mktemp("all_tasks"))
