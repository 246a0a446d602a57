"""Names of the Hugging Face hub: can this machine get the model, asked once and without retries."""

from __future__ import annotations

from pathlib import Path

from opd_ray.borders import border
from opd_ray.errors import OpdError
from opd_ray.models.folder import model_folder
from opd_ray.models.weight_files import weight_files

# Seconds for the hub to say anything; the libraries try for half a minute.
ANSWER_WITHIN = 5.0
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


class HubError(OpdError, ValueError):
    """A model that is neither a folder here nor to be had from the hub."""


def check_reachable(name: str, *, weights: bool) -> None:
    """Refuse a model that no library could get here.

    A folder that is there, and a model that the hub's cache holds whole, need no network. Nothing
    is downloaded.

    Args:
        name: as in the configuration.
        weights: whether they are needed, beside config and tokenizer.

    Raises:
        InputError: no folder, and no name that a hub model can have.
        HubError: what is not here, why the hub does not give it, and the remedy.
    """
    if Path(name).is_dir():
        return
    folder = model_folder(name)
    if folder is None:
        lacking = "is not in the hub's cache here"
    elif not any((folder / file).is_file() for file in _TOKENIZERS):
        lacking = "has no tokenizer in the hub's cache here"
    elif weights and weight_files(name) is None:
        lacking = "has not all its weights in the hub's cache here"
    else:
        return
    _ask(name, f"is no folder in {Path.cwd()}, {lacking}, and")


def _ask(name: str, before: str) -> None:
    """Let the hub be asked for the model's config, once; ``before`` starts every message."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    hub = constants.ENDPOINT
    fetch = (
        f"give a folder, or run `hf download {name}` where there is a network and bring its cache "
        f"to {constants.HF_HUB_CACHE} (HF_HUB_CACHE)"
    )
    with border(f"{before} {hub} cannot be asked", fetch, HubError):
        try:
            get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=ANSWER_WITHIN)
        except OfflineModeIsEnabled as error:
            raise HubError(f"{before} HF_HUB_OFFLINE forbids to ask {hub}; {fetch}") from error
        except GatedRepoError as error:
            raise HubError(
                f"{before} {hub} gives it to those alone who accepted its licence; accept it at "
                f"{hub}/{name} and run `hf auth login`"
            ) from error
        except RepositoryNotFoundError as error:
            raise HubError(
                f"{before} {hub} shows no model of that name; correct it, or run `hf auth login` "
                "if it is private"
            ) from error
        except EntryNotFoundError as error:
            raise HubError(
                f"{before} {hub}/{name} has no config.json; give a model in Hugging Face's format"
            ) from error
