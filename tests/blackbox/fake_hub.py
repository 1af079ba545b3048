"""A small Hugging Face hub on two ports of this machine: the hub itself, and the "CDN" that large files are on.

It speaks what huggingface_hub 2 asks for: model info, tree, HEAD and GET of /resolve with X-Repo-Commit, X-Linked-Etag,
X-Linked-Size, redirects, Range, and the hub's refusals with X-Error-Code. Faults can be put in the way of any path.
"""
import hashlib
import http.client
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"
LFS = (".safetensors", ".gguf", ".bin")


def etag_of(name, data):
    if name.endswith(LFS):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    files: dict
    commit: str = "a" * 40
    branches: tuple = ("main",)
    gated: bool = False  # TOKEN's account has not accepted the terms
    private: bool = False  # TOKEN may read it
    moved_to: str = ""
    blobs: bool = True  # the listing has sizes and hashes; some mirrors give none
    listing: dict = field(default_factory=dict)  # a listing of another content than what is served


@dataclass
class Fault:
    """Of the next `times` requests of a path. `status` answers so; `cut` ends the connection after so many bytes of the
    body; `slow` is bytes a second; `data` is served in place of the content."""

    status: int = 0
    headers: dict = field(default_factory=dict)
    cut: int = -1
    slow: int = 0
    data: bytes = b""
    no_range: bool = False  # a Range is answered with all of it
    times: int = 1


@dataclass
class Seen:
    port: str  # "hub" or "cdn"
    method: str
    path: str
    headers: dict
    status: int = 0
    sent: int = 0  # bytes of the body


class FakeHub:
    def __init__(self, repos, tls=None):
        self.repos = repos
        self.seen = []
        self.faults = {}  # the path's end -> Fault
        self.hub = self._serve("hub")
        self.cdn = self._serve("cdn")
        if tls:  # an ssl.SSLContext: the hub's port alone speaks TLS
            self.hub.socket = tls.wrap_socket(self.hub.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.hub.server_port}"
        self.cdn_url = f"http://127.0.0.1:{self.cdn.server_port}"

    def _serve(self, port):
        handler = type("Handler", (Handler,), {"fake": self, "port": port})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def stop(self):
        for server in (self.hub, self.cdn):
            server.shutdown()
            server.server_close()

    def gets(self, end="", port=None):
        return [s for s in self.seen if s.method == "GET" and s.path.endswith(end) and port in (None, s.port)]

    def content_gets(self):
        return [s for s in self.gets() if "/resolve/" in s.path or s.port == "cdn"]

    def fault(self, path):
        for end, fault in self.faults.items():
            if path.endswith(end) and fault.times > 0:
                fault.times -= 1
                return fault
        return Fault()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.handle_one()

    def do_GET(self):
        self.handle_one()

    def handle_one(self):
        path = unquote(urlsplit(self.path).path)
        self.record = Seen(self.port, self.command, path, {k.lower(): v for k, v in self.headers.items()})
        self.fake.seen.append(self.record)
        self.broken = self.fake.fault(path) if self.command == "GET" else Fault()
        if self.broken.status:
            return self.answer(self.broken.status, b"", self.broken.headers)
        if self.port == "cdn":
            return self.content(self.blob(path.rsplit("/", 1)[1]), {"ETag": '"of-the-cdn"'})
        if path.startswith("/api/models/"):
            return self.api(path.removeprefix("/api/models/"))
        name, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        return self.resolve(name, revision, file)

    def blob(self, etag):
        for repo in self.fake.repos.values():
            for name, data in repo.files.items():
                if etag_of(name, repo.listing.get(name, data)) == etag:
                    return data
        return b""

    def answer(self, status, body=b"", headers=None):
        self.record.status = status
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code, text):
        self.answer(status, json.dumps({"error": text}).encode(), {"X-Error-Code": code, "X-Error-Message": text})

    def may_read(self, name, repo, content):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token != TOKEN:
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif repo is None or (repo.private and token != TOKEN):
            self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif repo.gated and content:
            text = f"Access to model {name} is restricted and you are not in the authorized list."
            self.refuse(403 if token else 401, "GatedRepo", text)
        else:
            return True
        return False

    def api(self, path):
        what = "tree" if "/tree/" in path else "revision"
        name, _, revision = path.partition(f"/{what}/")
        repo = self.fake.repos.get(name)
        if not self.may_read(name, repo, content=False):
            return None
        if repo.moved_to:
            return self.answer(307, b"", {"Location": self.path.replace(name, repo.moved_to)})
        if revision not in (*repo.branches, repo.commit):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        listed = {name: repo.listing.get(name, data) for name, data in repo.files.items()}
        if what == "tree":
            return self.answer(200, json.dumps([tree_entry(*item) for item in listed.items()]).encode())
        siblings = [sibling(*item, "blobs=true" in self.path and repo.blobs) for item in listed.items()]
        return self.answer(200, json.dumps({"id": name, "sha": repo.commit, "siblings": siblings}).encode())

    def resolve(self, name, revision, file):
        repo = self.fake.repos.get(name)
        if not self.may_read(name, repo, content=True):
            return None
        if repo.moved_to:
            return self.answer(307, b"", {"Location": self.path.replace(name, repo.moved_to)})
        if file not in repo.files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        data = repo.files[file]
        etag = etag_of(file, repo.listing.get(file, data))
        headers = {"X-Repo-Commit": repo.commit}
        if not file.endswith(LFS):
            return self.content(data, {**headers, "ETag": f'"{etag}"'})
        linked = {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data)), "ETag": '"of-the-redirect"'}
        return self.answer(302, b"moved", {**headers, **linked, "Location": f"{self.fake.cdn_url}/cdn/{etag}"})

    def content(self, data, headers):
        data = self.broken.data or data
        start = 0
        if (wanted := self.headers.get("Range")) and not self.broken.no_range:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            headers = {**headers, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            if start >= len(data):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        body = data[start:]
        self.record.status = 206 if "Content-Range" in headers else 200
        self.send_response(self.record.status)
        for key, value in {**headers, "Accept-Ranges": "bytes", "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        return self.send_slowly(body)

    def send_slowly(self, body):
        limit = self.broken.cut if self.broken.cut >= 0 else len(body)
        step = max(1, self.broken.slow // 20) if self.broken.slow else 1 << 16
        try:
            while self.record.sent < limit:
                piece = body[self.record.sent : min(limit, self.record.sent + step)]
                self.wfile.write(piece)
                self.record.sent += len(piece)
                if self.broken.slow:
                    time.sleep(0.05)
        except OSError:  # the client has gone
            self.close_connection = True
        if limit < len(body):
            self.close_connection = True


def sibling(name, data, blobs):
    entry = {"rfilename": name}
    if blobs:
        entry |= {"size": len(data), "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
        if name.endswith(LFS):
            entry["lfs"] = {"sha256": etag_of(name, data), "size": len(data), "pointerSize": 130}
    return entry


def tree_entry(name, data):
    entry = {"type": "file", "path": name, "size": len(data), "oid": etag_of("", data)}
    if name.endswith(LFS):
        entry["lfs"] = {"oid": etag_of(name, data), "size": len(data), "pointerSize": 130}
    return entry


class Proxy:
    """An HTTP proxy for http:// URLs: notes each and passes it on without a proxy of its own."""

    def __init__(self):
        self.seen = []
        proxy = self

        class Forward(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                proxy.seen.append(self.path)
                url = urlsplit(self.path)
                onward = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
                onward.request("GET", self.path.split(url.netloc, 1)[1], headers=dict(self.headers))
                answer = onward.getresponse()
                body = answer.read()
                self.send_response(answer.status)
                for key, value in answer.getheaders():
                    if key.lower() not in ("connection", "content-length", "transfer-encoding", "date", "server"):
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                onward.close()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Forward)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def running(thing):
    try:
        yield thing
    finally:
        thing.stop()
