"""A hub on this machine: the parts of the Hugging Face Hub's HTTP interface that `huggingface_hub` asks for, in memory.

Repositories have branches, branches have commits, commits have files. Everything is kept in a dictionary; `requests` is
the list of (method, path) that were asked for.
"""
import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class Repository:
    def __init__(self, private):
        self.private, self.commits, self.branches = private, {}, {}
        self.commit("main", {})

    def commit(self, branch, files):
        before = self.commits.get(self.branches.get(branch), {})
        files = {name: data for name, data in {**before, **files}.items() if data is not None}
        oid = sha1(repr((branch, len(self.commits), sorted(files))).encode())
        self.commits[oid], self.branches[branch] = files, oid
        return oid

    def resolve(self, revision):
        return self.branches.get(revision, revision if revision in self.commits else None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if "etag" in headers else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code, message):
        self.answer(404, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def known(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, name):
        found = self.server.repositories.get(name)
        if found is None or found.private and not self.known():
            self.missing("RepoNotFound", "Repository not found")
            return None
        return found

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handle_one(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.requests.append((self.command, path))
        parts = path.split("/")
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            return self.model("/".join(parts[2:4]), parts[4:])
        if len(parts) >= 5 and parts[2] == "resolve":
            return self.file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        if parts == ["api", "repos", "create"]:
            return self.create(json.loads(self.body()))
        if parts == ["api", "validate-yaml"]:
            self.body()
            return self.answer(200, {"errors": [], "warnings": []})
        self.body()
        return self.missing("EntryNotFound", "no such way")

    do_GET = do_HEAD = do_POST = handle_one

    def create(self, asked):
        if not self.known():
            return self.answer(401, {"error": "Invalid credentials"}, X_Error_Message="Invalid credentials")
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.server.repositories:
            return self.answer(409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"})
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.repositories[name] = Repository(bool(private))
        return self.answer(200, {"url": f"{self.server.url}/{name}", "name": name, "id": "1"})

    def model(self, name, rest):
        body = self.body()
        repository = self.repository(name)
        if repository is None:
            return None
        word, revision = (rest + ["revision", "main"])[:2] if rest else ("revision", "main")
        if word == "branch":
            repository.branches.setdefault("/".join(rest[1:]), repository.branches["main"])
            return self.answer(200, {})
        oid = repository.resolve(revision)
        if oid is None:
            return self.missing("RevisionNotFound", f"Invalid rev id: {revision}")
        files = repository.commits[oid]
        if word == "revision":
            return self.answer(200, {"id": name, "modelId": name, "sha": oid, "private": repository.private, "tags": [],
                                     "downloads": 0, "likes": 0, "siblings": [{"rfilename": f} for f in files]})
        if word == "tree":
            return self.answer(200, [{"type": "file", "path": f, "size": len(d), "oid": sha1(d)} for f, d in files.items()])
        if not self.known():
            return self.answer(403, {"error": "no right to write"}, X_Error_Message="no right to write")
        if word == "preupload":
            asked = [entry["path"] for entry in json.loads(body)["files"]]
            return self.answer(200, {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]})
        if word == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            sent = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
            gone = {line["value"]["path"]: None for line in lines if line["key"] == "deletedFile"}
            oid = repository.commit(revision, {**sent, **gone})
            return self.answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}",
                                     "hookOutput": ""})
        return self.missing("EntryNotFound", f"no such way: {word}")

    def file(self, name, revision, path):
        repository = self.repository(name)
        if repository is None:
            return None
        oid = repository.resolve(revision)
        if oid is None or path not in repository.commits[oid]:
            return self.missing("RevisionNotFound" if oid is None else "EntryNotFound", "not found")
        data = repository.commits[oid][path]
        return self.answer(200, data, etag=f'"{sha1(data)}"', X_Repo_Commit=oid)


class StandInHub(ThreadingHTTPServer):
    "`with StandInHub() as hub:` serves at `hub.url` until the block ends."

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url, self.repositories, self.requests = f"http://127.0.0.1:{self.server_port}", {}, []

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
