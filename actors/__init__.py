"""The Ray actors: rollout (vLLM), teacher, trainer (DeepSpeed), and their weight transfer."""

import os
from contextlib import suppress

# The current folder of the run that started this process. A Ray that runs already starts actors in
# one of its own, where relative paths of the configuration would mean something else. On a machine
# that has no such folder they do.
FOLDER_VARIABLE = "OPD_RAY_FOLDER"
if FOLDER_VARIABLE in os.environ:
    with suppress(OSError):
        os.chdir(os.environ[FOLDER_VARIABLE])
