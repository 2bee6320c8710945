# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Sends a folder to the Hub as one commit, so that a reader sees the old checkpoint or the new one, never a mixture.

`HfApi.upload_folder` splits large folders into several commits, so it is not used. Weights are uploaded before the
commit and become visible with it. An interrupted upload changes nothing, and the next one sends only what is missing.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from modeling_mcm.checkpoint_mcm import EXTRACTOR_NAME, VOCABULARIES_NAME, WEIGHT_FILES

from .folder import CARD_NAME, CODE_ENDING, CONFIG_NAME, WEIGHTS_NAME, code_files

NAMED_FILES = {CARD_NAME, CONFIG_NAME, EXTRACTOR_NAME, VOCABULARIES_NAME, WEIGHTS_NAME}
LOG_IN = "run `hf auth login`, or set HF_TOKEN to a token with the right to write"
TOKENS = re.compile(r"\bhf_\w{8,}")
LOGIN = re.compile(r"(?<=://)\S*@")  # a name and a password in an address


class PublishingError(ValueError):
    """A checkpoint was not published. The message says why and what to do, and contains no token."""


class Published(NamedTuple):
    """The result of publishing: page and commit of the checkpoint, whether anything was new (if not, no commit was
    made), and whether the repository is new."""

    url: str
    commit: str
    changed: bool
    created: bool


def files_to_publish(folder: str | Path) -> list[Path]:
    """Lists the files of an upload folder, sorted by name. Raises `PublishingError` if the folder holds another file,
    or lacks one. No file is left out without a message."""
    paths, known = sorted(Path(folder).iterdir()), NAMED_FILES | {path.name for path in code_files()}
    names = [path.name for path in paths]
    if wrong := [name for name in names if name not in known]:
        raise PublishingError(
            f"{folder} holds {', '.join(wrong)}, which a published checkpoint does not: publish a folder that "
            "`write_upload_folder` wrote."
        )
    if missing := NAMED_FILES - {*names}:
        raise PublishingError(f"{folder} has no {', '.join(sorted(missing))}: write it again.")
    return paths


def publish(folder: str | Path, repo_id: str, token: str | None = None, private: bool = False) -> Published:
    """Publishes an upload folder with its card. A repository that exists gets a new commit if anything changed.

    Args:
        repo_id (`str`): Name on the Hub. Without a namespace it is that of the token's user.
        token (`str`, *optional*): The token. By default that of the environment or of `hf auth login`.
        private (`bool`): Whether a new repository is private. It is an error if it exists and is public.

    Raises:
        PublishingError: If the checkpoint could not be published.
    """
    files = files_to_publish(folder)
    check_name(repo_id)
    token = token or get_token()
    if not token:
        raise PublishingError(f"There is no token for the Hub: {LOG_IN}.")
    for path in files:
        if token.encode() in path.read_bytes():
            raise PublishingError(f"{path.name} holds the token itself: take it out, then publish again.")
    api = HfApi(token=token)
    try:
        user = api.whoami()["name"]
        name = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        before = None
        with suppress(RepositoryNotFoundError):
            before = api.model_info(name)
        if before is None:
            api.create_repo(name, private=private or None)
        elif private and not before.private:
            raise PublishingError(
                f"{name} exists and is public, and nothing was sent: make it private in its settings, or choose "
                "another name."
            )
        old = {file.rfilename for file in (before and before.siblings) or []} - {path.name for path in files}
        # Code and weights of an earlier version would be read beside the new ones.
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationDelete(file)
            for file in sorted(old)
            if WEIGHT_FILES.fullmatch(file) or file.endswith(CODE_ENDING)
        ]
        operations += [CommitOperationAdd(path.name, path) for path in files]
        commit = api.create_commit(name, operations, commit_message="Publish MCM")
        return Published(
            url=f"{LOGIN.sub('', api.endpoint)}/{name}",
            commit=commit.oid,
            changed=before is None or commit.oid != before.sha,
            created=before is None,
        )
    except PublishingError:
        raise
    except (HTTPError, HFValidationError, OSError, ValueError) as error:  # errors of `HTTPError` say little themselves
        text = f"{type(error).__name__}: {_redact(str(error), token)}"
    # Not raised of the client's error, whose text may hold secrets
    raise PublishingError(
        f"{repo_id} was not published ({text}). A push is one commit, so the repository is as it was before or whole: "
        f"check the name, {LOG_IN}, and run the same command again."
    )


def check_name(repo_id: str) -> None:
    """Raises `PublishingError` if a name is not possible on the Hub."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishingError(f"{repo_id!r} is no name for the Hub: {error}") from None


def _redact(text: str, token: str) -> str:
    return LOGIN.sub("", TOKENS.sub("hf_...", text.replace(token, "hf_...")))
