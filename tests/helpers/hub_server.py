# Copyright 2026 The MCM Authors
# SPDX-License-Identifier: Apache-2.0
"""A small Hub on loopback: the calls that the client makes to publish and to read models, over real git repositories.

    with HubServer(folder, tokens={"hf_ann": Account("ann", ["ann", "org"])}) as hub:
        ...  # HF_ENDPOINT=hub.url HF_HUB_DISABLE_XET=1 HF_TOKEN=hf_ann

Repositories are bare git repositories, whose files `git clone` reads. Large files are stored by their digest and
are LFS pointers in the repository, as on the Hub. Every request is kept with its body, so a test can look at each byte
that was sent; `hub.interrupt` makes the server vanish in the middle of a call, or refuse it where it raises a
`Refusal`.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

LARGE = (".safetensors", ".bin", ".pt", ".pkl", ".onnx")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
WHO = {f"GIT_{role}_NAME": "hub" for role in ("AUTHOR", "COMMITTER")}
WHO |= {f"GIT_{role}_EMAIL": "hub@localhost" for role in ("AUTHOR", "COMMITTER")}
WHO |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}


@dataclass
class Account:
    """The user of a token, and the namespaces that the user may write to."""

    name: str
    writes: Sequence[str] = ()


@dataclass
class Request:
    """One call as it came in."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


class HubServer:
    """The server, with its files in a folder and accounts by token; a context manager that runs it in a thread."""

    def __init__(self, folder: Path, tokens: Mapping[str, Account]):
        self.tokens, self.lock = tokens, threading.Lock()
        self.reset(folder)
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def reset(self, folder: Path) -> None:
        """Starts empty in another folder, at the same address."""
        self.folder = folder
        self.requests: list[Request] = []
        self.private: set[str] = set()
        self.interrupt: Callable[[Request], bool] = lambda request: False
        (folder / "large").mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def find_path(self, repo: str) -> Path:
        return self.folder / "repositories" / f"{repo}.git"

    def git(self, repo: str, *words: str, given: bytes = b"", index: Path | None = None) -> bytes:
        """What a git command says in a repository."""
        environment = {**os.environ, **WHO, "GIT_DIR": str(self.find_path(repo))}
        if index is not None:
            environment["GIT_INDEX_FILE"] = str(index)
        done = subprocess.run(["git", *words], env=environment, input=given, capture_output=True, check=True)
        return done.stdout

    def head(self, repo: str, revision: str = "main") -> str:
        """The commit of a revision."""
        try:
            return self.git(repo, "rev-parse", "--verify", f"{revision}^{{commit}}").decode().strip()
        except subprocess.CalledProcessError:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound") from None

    def files(self, repo: str, revision: str = "main") -> dict[str, str]:
        """Blob of each file."""
        listed = self.git(repo, "ls-tree", "-r", "-z", self.head(repo, revision)).decode().split("\0")
        return {line.split("\t")[1]: line.split()[2] for line in listed if line}

    def content(self, repo: str, blob: str) -> tuple[bytes, str]:
        """Bytes and ETag of a file, those of the large file where a pointer stands for it."""
        data = self.git(repo, "cat-file", "blob", blob)
        found = re.fullmatch(POINTER.format(oid="([0-9a-f]{64})", size=r"\d+").encode(), data)
        if found is None:
            return data, blob
        oid = found[1].decode()
        return (self.folder / "large" / oid).read_bytes(), oid

    def commit(self, repo: str, message: str, adds: Mapping[str, bytes], deletes: Sequence[str] = ()) -> str:
        """One new commit on main."""
        with self.lock:
            index = self.find_path(repo) / f"index-{threading.get_ident()}"
            parents = []
            if self.git(repo, "for-each-ref", "refs/heads/main"):
                parents = ["-p", self.head(repo)]
                self.git(repo, "read-tree", "main", index=index)
            for path in deletes:
                self.git(repo, "rm", "--cached", "--quiet", path, index=index)
            for path, data in adds.items():
                blob = self.git(repo, "hash-object", "-w", "--stdin", given=data).decode().strip()
                self.git(repo, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", index=index)
            tree = self.git(repo, "write-tree", index=index).decode().strip()
            new = self.git(repo, "commit-tree", tree, *parents, "-m", message).decode().strip()
            self.git(repo, "update-ref", "refs/heads/main", new)
            self.git(repo, "update-server-info")
            index.unlink()
            return new

    def account(self, request: Request) -> Account | None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if given and given not in self.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.tokens.get(given)

    def may_write(self, request: Request, namespace: str) -> None:
        account = self.account(request)
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        if namespace not in account.writes:
            raise Refusal(403, f"You don't have the rights to write under the namespace {namespace!r}")

    def may_read(self, request: Request, repo: str) -> None:
        account = self.account(request)
        hidden = repo in self.private and (account is None or repo.split("/")[0] not in account.writes)
        if hidden or not self.find_path(repo).is_dir():
            raise Refusal(404 if account else 401, "Repository not found", "RepoNotFound")

    def whoami(self, request: Request) -> dict:
        account = self.account(request)
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        return {"type": "user", "id": account.name, "name": account.name, "orgs": []}

    def create(self, request: Request) -> dict:
        given = json.loads(request.body)
        namespace = given.get("organization") or getattr(self.account(request), "name", "")
        self.may_write(request, namespace)
        repo = f"{namespace}/{given['name']}"
        if self.find_path(repo).exists():
            raise Refusal(409, "You already created this model repo")
        subprocess.run(["git", "init", "--quiet", "--bare", "-b", "main", self.find_path(repo)], check=True)
        if given.get("visibility") == "private":
            self.private.add(repo)
        attributes = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE)
        self.commit(repo, "initial commit", {".gitattributes": attributes.encode()})
        return {"url": f"{self.url}/{repo}", "id": repo, "name": repo}

    def info(self, request: Request, repo: str, revision: str = "main") -> dict:
        self.may_read(request, repo)
        files = [{"rfilename": path} for path in self.files(repo, revision)]
        known = {"id": repo, "modelId": repo, "private": repo in self.private, "tags": [], "downloads": 0}
        return known | {"sha": self.head(repo, revision), "siblings": files}

    def tree(self, request: Request, repo: str, revision: str) -> list:
        self.may_read(request, repo)
        entries = []
        for path, blob in self.files(repo, revision).items():
            data, etag = self.content(repo, blob)
            entry = {"type": "file", "path": path, "oid": blob, "size": len(data)}
            if etag != blob:
                entry["lfs"] = {"oid": etag, "size": len(data), "pointerSize": 100}
            entries.append(entry)
        return entries

    def validate_yaml(self, request: Request) -> dict:
        try:
            values = yaml.safe_load(json.loads(request.body)["content"].split("---\n")[1])
            for result in [result for model in values.get("model-index", []) for result in model["results"]]:
                _ = result["task"], result["dataset"], result["metrics"]
        except (IndexError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            errors = [{"message": f"metadata cannot be read: {error!r}"}]
            raise Refusal(400, json.dumps({"errors": errors})) from None
        return {"errors": [], "warnings": []}

    def preupload(self, request: Request, repo: str, revision: str) -> dict:
        self.may_write(request, repo.split("/")[0])
        there, answers = self.files(repo, revision), []
        for given in json.loads(request.body)["files"]:
            path = given["path"]
            answer = {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
            if path in there:
                answer["oid"] = self.content(repo, there[path])[1]
            answers.append(answer)
        return {"files": answers}

    def batch(self, request: Request, repo: str) -> dict:
        self.may_write(request, repo.split("/")[0])
        objects = []
        for given in json.loads(request.body)["objects"]:
            answer = {"oid": given["oid"], "size": given["size"]}
            if not (self.folder / "large" / given["oid"]).exists():
                answer["actions"] = {"upload": {"href": f"{self.url}/large/{given['oid']}", "header": {}}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def store(self, request: Request, oid: str) -> dict:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, "The content does not have its digest")
        (self.folder / "large" / oid).write_bytes(request.body)
        return {}

    def take_commit(self, request: Request, repo: str, revision: str) -> dict:
        self.may_write(request, repo.split("/")[0])
        adds, deletes, message = {}, [], ""
        for line in request.body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                adds[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                stored = self.folder / "large" / value["oid"]
                if not stored.exists():
                    raise Refusal(400, f"{value['path']} was not uploaded")
                size = stored.stat().st_size
                adds[value["path"]] = POINTER.format(oid=value["oid"], size=size).encode()
            elif key == "deletedFile":
                deletes.append(value["path"])
        new = self.commit(repo, message, adds, deletes)
        return {"success": True, "commitOid": new, "commitUrl": f"{self.url}/{repo}/commit/{new}"}


class Handler(BaseHTTPRequestHandler):
    """One connection; finds the answer by method and path."""

    protocol_version = "HTTP/1.1"
    hub: HubServer
    ROUTES = [
        ("GET", r"/api/whoami-v2", HubServer.whoami),
        ("POST", r"/api/repos/create", HubServer.create),
        ("POST", r"/api/validate-yaml", HubServer.validate_yaml),
        ("GET", rf"/api/models/{REPO}", HubServer.info),
        ("GET", rf"/api/models/{REPO}/revision/(?P<revision>[^/]+)", HubServer.info),
        ("GET", rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)", HubServer.tree),
        ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)", HubServer.preupload),
        ("POST", rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)", HubServer.take_commit),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", HubServer.batch),
        ("PUT", r"/large/(?P<oid>[0-9a-f]{64})", HubServer.store),
    ]

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def handle_call(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, self.read_body())
        self.hub.requests.append(request)
        path = unquote(urlsplit(self.path).path)
        try:
            if self.hub.interrupt(request):
                self.close_connection = True
                return
            if resolved := re.fullmatch(rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", path):
                return self.answer_file(request, **resolved.groupdict())
            if git := re.fullmatch(rf"/{REPO}(\.git)?/(?P<rest>HEAD|info/refs|objects/.*)", path):
                return self.answer_git(request, git["repo"], git["rest"])
            for method, pattern, answer in self.ROUTES:
                if method == self.command and (found := re.fullmatch(pattern, path)):
                    return self.answer(200, json.dumps(answer(self.hub, request, **found.groupdict())).encode())
            raise Refusal(404, f"No such call: {self.command} {path}")
        except Refusal as refusal:
            extra = {"X-Error-Message": str(refusal)} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self.answer(refusal.status, json.dumps({"error": str(refusal)}).encode(), extra)

    do_GET = do_HEAD = do_POST = do_PUT = handle_call

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | dict(headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_file(self, request: Request, repo: str, revision: str, file: str) -> None:
        self.hub.may_read(request, repo)
        commit, files = self.hub.head(repo, revision), self.hub.files(repo, revision)
        if file not in files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        data, etag = self.hub.content(repo, files[file])
        self.answer(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Content-Type": "text/plain"})

    def answer_git(self, request: Request, repo: str, rest: str) -> None:
        """The files of a repository, as `git clone` reads them where a server knows nothing of git."""
        self.hub.may_read(request, repo)
        path = self.hub.find_path(repo) / rest
        if not path.is_file():
            raise Refusal(404, "No such file")
        self.answer(200, path.read_bytes(), {"Content-Type": "text/plain"})

    def log_message(self, *words: object) -> None:
        """Says nothing: a test looks at `hub.requests`."""
