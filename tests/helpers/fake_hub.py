# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""What publishing asks of `HfApi`, over folders. A repository is a folder, and a commit its content."""

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import httpx2
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError


def refusal(status, message, kind=HfHubHTTPError):
    """The client's error for an answer of the Hub."""
    response = httpx2.Response(status, request=httpx2.Request("POST", "https://hub.test"))
    return kind(f"{status} {message}", response=response, server_message=message)


class FakeHub:
    """Stands for the class `HfApi`. `accounts` are by token the user and the namespaces that the user may write to;
    `before_commit` is called before a commit and may raise; `token` is None until somebody asks."""

    endpoint = "https://hub.test"

    def __init__(self, folder, accounts):
        self.folder, self.accounts, self.private, self.token = Path(folder), accounts, set(), None
        self.before_commit = lambda: None

    def __call__(self, token):
        self.token = token
        return self

    def whoami(self):
        if self.token not in self.accounts:
            raise refusal(401, "Invalid username or password.")
        return {"name": self.accounts[self.token][0]}

    def head(self, repo):
        """The digest of all names and bytes of a repository."""
        digest = hashlib.sha256()
        for path in sorted((self.folder / repo).iterdir()):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def model_info(self, repo):
        if not (self.folder / repo).is_dir():
            raise refusal(404, "Repository not found", RepositoryNotFoundError)
        files = [SimpleNamespace(rfilename=path.name) for path in (self.folder / repo).iterdir()]
        return SimpleNamespace(private=repo in self.private, sha=self.head(repo), siblings=files)

    def create_repo(self, repo, private=None):
        if repo.split("/")[0] not in self.accounts[self.token][1]:
            raise refusal(403, "You don't have the rights")
        if (self.folder / repo).is_dir():
            raise refusal(409, "You already created this model repo")
        (self.folder / repo).mkdir(parents=True)
        self.private |= {repo} if private else set()

    def create_commit(self, repo, operations, commit_message):
        self.before_commit()
        for each in operations:
            path = self.folder / repo / each.path_in_repo
            if hasattr(each, "path_or_fileobj"):
                shutil.copy(each.path_or_fileobj, path)
            else:
                path.unlink()
        return SimpleNamespace(oid=self.head(repo))


def put_into_cache(folder, cache, repo, subfolder=""):
    """Puts a folder into the client's cache, as if it had read it from a repository; gives the place of its files."""
    repository, commit = Path(cache, f"models--{repo.replace('/', '--')}"), "0" * 40
    place = shutil.copytree(folder, repository / "snapshots" / commit / subfolder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return place
