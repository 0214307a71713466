"""Find weights by name, against a local server as the Hub.

The real client library talks to it in a process of its own, as it reads its settings once.
"""

import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from live2diff.weights.hub import is_hub_name

COMMIT = "c" * 40
ASK = """
    import sys
    from live2diff.weights.hub import find
    for name in sys.argv[1:]:
        try:
            path = find(name)
            files = sorted(p.name for p in path.rglob("*")) if path.is_dir() else path.stat().st_size
            print("OK", path, files)
        except (ValueError, OSError) as error:
            print(type(error).__name__, error)
"""


class Hub(ThreadingHTTPServer):
    """Repositories of files, as the client library asks for them.

    Attributes:
        files: by repository and name.
        cut: each answer ends after so many bytes; None for whole ones.
        ranges: the ranges of partial requests.
    """

    def __init__(self, files: dict[str, dict[str, bytes]]):
        super().__init__(("127.0.0.1", 0), Request)
        self.files, self.cut, self.ranges = files, None, []
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class Request(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        repository = "/".join(re.sub(r"^/api/models", "", path).strip("/").split("/")[:2])
        if repository == "some/gated":
            return self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if repository not in self.server.files:
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        files = self.server.files[repository]
        if path.startswith("/api/"):
            listed = [
                {"type": "file", "path": n, "rfilename": n, "size": len(b), "oid": sha256(b).hexdigest()[:40]}
                for n, b in files.items()
            ]
            about = {"id": repository, "sha": COMMIT, "siblings": listed, "tags": []}
            return self.answer(200, json.dumps(listed if "/tree/" in path else about).encode())
        name = path.split("/resolve/")[1].split("/", 1)[1]
        if name not in files:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        headers = {"ETag": f'"{sha256(files[name]).hexdigest()}"', "X-Repo-Commit": COMMIT}
        self.answer(200, files[name], headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        begin = 0
        if status == 200 and (requested := self.headers.get("Range")):
            self.server.ranges.append(requested)
            begin, status = int(re.search(r"\d+", requested)[0]), 206
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[begin:][: self.server.cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub of three repositories, one of pickles only; a fourth, `some/gated`, wants a token."""
    weights = os.urandom(25_000_000)  # the client writes down pieces of 10 MB
    parts = {
        "model_index.json": b"{}",
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": weights,
        "unet/diffusion_pytorch_model.fp16.safetensors": weights,
        "unet/diffusion_pytorch_model.bin": weights,
        "text_encoder/model.safetensors": b"words",
        "safety_checker/model.safetensors": weights,
        "style.ckpt": weights,
    }
    old = {"unet/diffusion_pytorch_model.bin": b"old", "unet/config.json": b"{}"}
    with Hub(
        {"some/style": parts, "some/old": old, "some/lora": {"folder/lora.safetensors": weights}}
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(home: Path, names: list[str], **settings: str) -> list[str]:
    """Return the result of `find` for each name, in a fresh process."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} | settings
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ASK), *names],
        env=known | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name", True),
        ("owner/name-1.5", True),
        ("owner/name/file.safetensors", True),
        ("owner/name/folder/file.ckpt", True),
        ("loras/ink.safetensors", False),
        ("models/base.ckpt", False),
        ("ink.safetensors", False),
        ("./owner/name", False),
        ("../models/name", False),
        ("~/models/name", False),
        ("/models/name", False),
        ("C:/models/name", False),
        ("C:\\models\\name", False),
        ("owner//name", False),
        ("owner/", False),
        ("no such thing", False),
    ],
)
def test_a_hub_name_is_a_repository_or_a_file_in_one_and_no_local_file(name, expected):
    assert is_hub_name(name) is expected


def test_a_repository_is_fetched_once_without_unused_files_and_then_found_offline(hub, tmp_path):
    names = ["some/style", "some/old", "some/lora/folder/lora.safetensors"]
    online = ask(tmp_path, names, HF_ENDPOINT=hub.address)
    assert [line.split()[0] for line in online] == ["OK"] * 3
    assert "fp16" not in online[0] and ".bin" not in online[0] and "safety" not in online[0]
    assert "diffusion_pytorch_model.bin" in online[1] and online[2].endswith(" 25000000")
    assert ask(tmp_path, names, HF_HUB_OFFLINE="1") == online


def test_every_error_of_the_hub_says_what_to_do(hub, tmp_path):
    names = [
        "some/gated",
        "some/nothing",
        "some/lora/other.safetensors",
        "no such thing",
        "absent.safetensors",
        "loras/absent.safetensors",
    ]
    lines = ask(tmp_path, names, HF_ENDPOINT=hub.address)
    expected = [
        "OSError some/gated is gated: accept its terms on its page, then log in",
        "ValueError The Hub has no public repository 'some/nothing': check the name.",
        "ValueError some/lora on the Hub has no file 'other.safetensors'.",
        "ValueError There is no model 'no such thing': give a folder, a file or a Hub name",
        "ValueError There is no file 'absent.safetensors', neither here nor in the folder 'models'.",
        "ValueError There is no file 'loras/absent.safetensors', neither here nor in the folder 'models'.",
    ]
    for line, beginning in zip(lines, expected, strict=True):
        assert line.startswith(beginning), line
    (alone,) = ask(tmp_path, ["some/style"], HF_ENDPOINT="http://127.0.0.1:9")
    beginning = "OSError some/style is not on this machine, and the Hub cannot be reached, "
    assert alone.startswith(beginning), alone
    assert "Connect to the network" in alone, alone


def test_an_interrupted_download_resumes_and_is_never_taken_as_complete(hub, tmp_path):
    name = "some/lora/folder/lora.safetensors"
    hub.cut = 0
    (broken,) = ask(tmp_path, [name], HF_ENDPOINT=hub.address)
    assert broken.startswith("OSError The connection to the Hub broke off"), broken
    hub.cut = 12_000_000
    hub.ranges.clear()
    (whole,) = ask(tmp_path, [name], HF_ENDPOINT=hub.address)
    assert whole.endswith(" 25000000") and hub.ranges[0].startswith("bytes=10485760-")
