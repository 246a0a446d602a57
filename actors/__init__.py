"""The Ray actors: rollout (vLLM), teacher, trainer (DeepSpeed), and their weight transfer."""

import os

# The current folder of the run that started this process. A Ray that runs already starts actors in
# one of its own, where relative paths of the configuration would mean something else. On a machine
# that has no such folder they do, see actors.run_folder.
FOLDER_VARIABLE = "OPD_RAY_FOLDER"
# Why this process is not in that folder; "" where it is, or there is none.
folder_missing = ""
if FOLDER_VARIABLE in os.environ:
    try:
        os.chdir(os.environ[FOLDER_VARIABLE])
    except OSError as error:
        folder_missing = error.strerror or str(error)
