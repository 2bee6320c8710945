# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""Sends a folder to the Hub as one commit: a reader sees the old checkpoint or the new one, never a mixture.

`HfApi.upload_folder` splits large folders into several commits, so it is not used. Weights are stored before the
commit and count only with it: a push that was interrupted leaves nothing to see, and the next one sends what is left.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo

from modeling_mcm.hub.folder import (
    CARD_NAME,
    CODE,
    CONFIG_NAME,
    PACKAGE,
    PREPROCESSOR_NAME,
    VOCABULARIES_NAME,
    WEIGHTS,
    WEIGHTS_INDEX,
)

NAMED_FILES = {CARD_NAME, CONFIG_NAME, PREPROCESSOR_NAME, VOCABULARIES_NAME, WEIGHTS_INDEX}
LOG_IN = "run `hf auth login`, or set HF_TOKEN to a token with the right to write"
TOKENS = re.compile(r"\bhf_\w{8,}")
UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT, SERVER_ERROR = 401, 403, 404, 409, 500


class PublishingError(RuntimeError):
    """A push that did not take place; the message says why and what to do, and holds no token."""


@dataclass(frozen=True)
class Published:
    """What a push did.

    Args:
        repo_id (`str`): Name on the Hub, with its namespace.
        url (`str`): Page of the checkpoint.
        commit (`str`): The commit that holds it.
        changed (`bool`): Whether there was anything new; if not, no commit was made.
        created (`bool`): Whether the repository is new.
    """

    repo_id: str
    url: str
    commit: str
    changed: bool
    created: bool


def is_publishable(name: str) -> bool:
    """Whether a file of this name belongs into a published checkpoint."""
    return name in NAMED_FILES or bool(WEIGHTS.fullmatch(name)) or name in {path.name for path in PACKAGE.glob(CODE)}


def files_to_publish(folder: str | Path) -> list[Path]:
    """The files of an upload folder, sorted by name.

    Raises:
        PublishingError: if something else is among them: nothing is left out silently, and nothing slips through.
    """
    found = sorted(Path(folder).iterdir())
    if wrong := [path.name for path in found if not path.is_file() or not is_publishable(path.name)]:
        raise PublishingError(
            f"{folder} holds {', '.join(wrong)}, which a published checkpoint does not: publish a folder that "
            "`write_upload_folder` wrote."
        )
    if missing := {CARD_NAME, CONFIG_NAME, PREPROCESSOR_NAME, VOCABULARIES_NAME} - {path.name for path in found}:
        raise PublishingError(f"{folder} has no {', '.join(sorted(missing))}: write it again.")
    return found


def publish(
    folder: str | Path,
    repo_id: str,
    token: str | None = None,
    private: bool = False,
    create_only: bool = False,
    message: str = "Publish MCM",
) -> Published:
    """Publishes an upload folder with its card; a repository that exists gets a new commit if anything changed.

    Args:
        folder: what `write_upload_folder` wrote, and the card as README.md.
        repo_id: name on the Hub; without a namespace, that of the token's user.
        token: that of the environment or of `hf auth login` if not given.
        private: makes a new repository private. One that is there must be private already.
        create_only: refuses a repository that exists.
        message: of the commit.

    Raises:
        PublishingError: if it did not take place.
    """
    files = files_to_publish(folder)
    token = token or get_token()
    if not token:
        raise PublishingError(f"There is no token for the Hub: {LOG_IN}.")
    for path in files:
        if token.encode() in path.read_bytes():
            raise PublishingError(f"{path.name} holds the token itself: take it out, then publish again.")
    api = HfApi(token=token)
    with _clear_errors(repo_id, api.endpoint, token):
        user = api.whoami()["name"]
        name = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        before = _existing(api, name)
        if before is not None and create_only:
            raise PublishingError(f"{name} exists already: choose another name, or allow a new commit to it.")
        if before is not None and private and not before.private:
            raise PublishingError(
                f"{name} exists and is public, and nothing was sent: make it private in its settings, or choose "
                "another name."
            )
        if before is None:
            api.create_repo(name, private=private or None, exist_ok=True)
        ours = {path.name for path in files}
        there = [file.rfilename for file in (before.siblings or [])] if before is not None else []
        # Code and weights of an earlier version would be read beside the new ones.
        stale = [file for file in there if file not in ours and (WEIGHTS.fullmatch(file) or file.endswith(CODE[1:]))]
        stale += [file for file in there if file == WEIGHTS_INDEX and file not in ours]
        operations: list[Any] = [CommitOperationDelete(file) for file in stale]
        operations += [CommitOperationAdd(path.name, str(path)) for path in files]
        commit = api.create_commit(name, operations, commit_message=message)
    return Published(
        repo_id=name,
        url=f"{api.endpoint}/{name}",
        commit=commit.oid,
        changed=before is None or commit.oid != before.sha,
        created=before is None,
    )


def _existing(api: HfApi, name: str) -> ModelInfo | None:
    try:
        return api.model_info(name)
    except RepositoryNotFoundError:
        return None


@contextmanager
def _clear_errors(repo_id: str, endpoint: str, token: str) -> Iterator[None]:
    """Raises what the client raises as a `PublishingError` without its cause, whose text could hold headers."""
    try:
        yield
        return
    except HfHubHTTPError as error:
        text = _explain(error.response.status_code, repo_id, endpoint, _redact(error.server_message or "", token))
    except HTTPError as error:  # of the library that the client speaks with, which it does not wrap
        text = (
            f"The connection to {endpoint} was lost ({type(error).__name__}). A push is one commit, so {repo_id} is "
            "as it was before or whole: run the same command again."
        )
    except HFValidationError as error:
        text = f"{repo_id!r} is no name for the Hub: {_redact(str(error), token)}"
    except (OSError, ValueError) as error:
        text = f"{repo_id} was not published: {_redact(str(error), token)}"
    raise PublishingError(text)


def _explain(status: int, repo_id: str, endpoint: str, said: str) -> str:
    answer = f"{endpoint} answered {status}" + (f" ({said})" if said else "")
    if status == UNAUTHORIZED:
        return f"{answer}: it does not accept the token; {LOG_IN}."
    if status == FORBIDDEN:
        return (
            f"{answer}: the token has no right to write to {repo_id}. Take a token with the role `write`, a name in "
            "your own namespace, or ask an administrator of the organization."
        )
    if status == NOT_FOUND:
        return f"{answer}: there is no {repo_id}, or the token may not see it. Check the name."
    if status == CONFLICT:
        return f"{answer}: someone else is changing {repo_id}. Run the same command again."
    if status >= SERVER_ERROR:
        return f"{answer}: the Hub has a problem. {repo_id} is as it was before; run the same command again later."
    return f"{answer}: {repo_id} was not published."


def _redact(text: str, token: str) -> str:
    return TOKENS.sub("hf_...", text.replace(token, "hf_..."))


__all__ = ["Published", "PublishingError", "files_to_publish", "publish"]
