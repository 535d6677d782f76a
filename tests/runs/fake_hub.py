"""A small Hugging Face hub on a port of this machine: repositories, uploads as git blobs and by LFS, commits."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _body(request):
    if request.headers.get("transfer-encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("content-length") or 0))
    body = b""
    while size := int(request.rfile.readline(), 16):
        body += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return body


class FakeHub:
    """Keeps what is uploaded.

    Attributes:
        repos: of each repository its visibility, commit messages and files, by name.
        refusals: (status, message) by the end of a path, for requests that are to be refused.
        token: the one that it knows.
    """

    def __init__(self):
        self.repos, self.refusals, self.token, self._blobs = {}, {}, "hf_right", {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                hub._answer(self)

            do_PUT = do_GET = do_POST

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request):
        path = request.path.partition("?")[0]
        body = _body(request)
        status, answer = self._refused(request, path) or self._dispatch(request.command, path, body)
        data = json.dumps(answer).encode()
        request.send_response(status)
        request.send_header("content-type", "application/json")
        request.send_header("content-length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _refused(self, request, path):
        for end, (status, message) in self.refusals.items():
            if path.endswith(end):
                return status, {"error": message}
        known = path.startswith("/lfs/") or request.headers.get("authorization") == f"Bearer {self.token}"
        return None if known else (401, {"error": "Invalid credentials"})

    def _dispatch(self, method, path, body):
        if path.startswith("/lfs/"):
            self._blobs[path.removeprefix("/lfs/")] = body
            return 200, {}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            taken = name in self.repos
            self.repos.setdefault(name, {"visibility": asked.get("visibility"), "messages": [], "files": {}})
            return (409 if taken else 200), {
                "url": f"{self.address}/{name}",
                "error": "You already created this model repo",
            }
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/info/lfs/objects/batch"):
            found = [
                {**file, "actions": {"upload": {"href": f"{self.address}/lfs/{file['oid']}"}}}
                for file in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": found}
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith("tensors") else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return 200, {"files": modes}
        if "/commit/" in path:
            self._commit(self.repos[name], [json.loads(line) for line in body.splitlines()])
            return 200, {"commitUrl": f"{self.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
        if method == "GET" and "/tree/" in path:
            return 200, [{"type": "file", "path": file, "size": 1, "oid": COMMIT} for file in self.repos[name]["files"]]
        return 404, {"error": f"no such route {path}"}

    def _commit(self, repo, lines):
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repo["messages"].append(value["summary"])
            elif line["key"] == "file":
                repo["files"][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo["files"][value["path"]] = self._blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del repo["files"][value["path"]]
