"""A Space in the ZeroGPU mode of the `spaces` package, with stand-ins for what is not here.

tests/zerogpu/test_runs.py runs it as a program: the package's own decorator, fork, queues and emulation of
CUDA, `app.space_engine()` with a converted full model at tiny width, styles with weights and a safety
checker, a page served by Gradio, and a scheduler that lends a GPU to everybody. The stand-ins: that
scheduler's HTTP interface, the weights' way to the GPU, which ends on the CPU, and torch's word that it knows
CUDA where it does not. Prints what happened, as JSON.
"""

import contextlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

calls: list[tuple[str, dict[str, str]]] = []  # what the scheduler was asked


class Scheduler(BaseHTTPRequestHandler):
    """Lends the same GPU whenever it is asked, to a worker that is still there if there is one."""

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        calls.append((url.path, dict(parse_qsl(url.query))))
        lent = {"idle": True, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "token"}
        body = json.dumps(lent if url.path == "/schedule" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


folder = Path(tempfile.mkdtemp())
scheduler = ThreadingHTTPServer(("127.0.0.1", 0), Scheduler)
threading.Thread(target=scheduler.serve_forever, daemon=True).start()
(folder / "cgroup").write_text("0::/space\n")
os.environ |= {
    "SPACES_ZERO_GPU": "true",
    "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{scheduler.server_port}",
    "ZEROGPU_OFFLOAD_DIR": str(folder / "tensors"),
    "ZEROGPU_PROC_SELF_CGROUP_PATH": str(folder / "cgroup"),
    "HF_HUB_OFFLINE": "1",
}

import torch  # noqa: E402

torch.version.cuda = torch.version.cuda or "12.8"  # what `spaces` emulates follows from it
if not hasattr(torch._C, "_cuda_init"):

    def is_in_bad_fork() -> bool:
        return False

    torch._C._cuda_init, torch.cuda._is_in_bad_fork = lambda: None, is_in_bad_fork

import spaces  # noqa: E402, F401 - before what knows of CUDA, as on a Space
import spaces.zero.torch as emulation  # noqa: E402
from spaces.zero.torch import patching  # noqa: E402

sys.path[:0] = [str(path) for path in (Path(__file__).parents[1], Path(__file__).parents[2])]

import gradio as gr  # noqa: E402
import httpx  # noqa: E402
import numpy as np  # noqa: E402
from helpers.checkpoints import LAYERS, kohya_lora, random_lora, write  # noqa: E402
from helpers.published import write_base, write_sources  # noqa: E402
from helpers.tiny_models import tiny_checker  # noqa: E402
from helpers.waiting import PATIENCE  # noqa: E402

from live2diff.errors import GpuSessionOver  # noqa: E402
from live2diff.streaming import content_filter  # noqa: E402
from live2diff.streaming.settings import StreamSettings  # noqa: E402
from live2diff.zerogpu.button import gpu_session_button  # noqa: E402
from live2diff.zerogpu.engine import ZeroGpuEngine  # noqa: E402


def to_the_cpu(callback: object = None) -> None:
    """As `spaces` moves the weights to the GPU: from the file that it packed them into."""
    for pack in patching.tensor_packs:
        data = Path(pack.path()).read_bytes()
        offset = 0
        for tensor, size, aligned_size in [entry for batch in pack.batches for entry in batch]:
            storage = torch.frombuffer(bytearray(data[offset : offset + size]), dtype=torch.uint8)
            weights = torch.tensor([], dtype=tensor.dtype)
            weights.set_(storage.untyped_storage(), 0, tensor.shape, tensor.stride())
            for fake in pack.fakes[tensor]:
                fake.data = weights
            offset += aligned_size


emulation.init = lambda _: None
emulation.move = to_the_cpu


@contextlib.contextmanager
def clicked(url: str, button: int, key: str) -> Iterator[None]:
    """The page's click; the page is closed with the block."""
    leave = threading.Event()

    def listen() -> None:
        with (
            contextlib.suppress(httpx.HTTPError),
            client.stream("GET", "/gradio_api/queue/data", params={"session_hash": key}) as events,
        ):
            for _ in events.iter_lines():
                if leave.is_set():
                    return

    with httpx.Client(base_url=url, timeout=PATIENCE) as client:
        click = {"data": [key], "fn_index": button, "session_hash": key}
        client.post("/gradio_api/queue/join", json=click).raise_for_status()
        listener = threading.Thread(target=listen)
        listener.start()
        yield
        leave.set()
        listener.join(PATIENCE)


def write_model() -> None:
    """Write what a Space would fetch, and the options of its app."""
    from live2diff.loading import convert

    convert(folder / "model", write_sources(write_base(folder / "base"), folder / "parts"), torch.float32)
    tiny_checker().save_pretrained(folder / "checker")
    write(kohya_lora(random_lora(LAYERS, seed=7)), folder / "felt.safetensors")
    styles = {"felt": {"title": "Felt", "template": "felt, {}", "loras": [["felt.safetensors", 1]]}}
    styles["plain"] = {"title": "Plain", "template": "felt, {}"}
    (folder / "styles.json").write_text(json.dumps(styles))
    content_filter.CHECKER = str(folder / "checker")
    os.environ["SPACE_ID"] = "owner/name"  # so that results are checked
    options = f"--model {folder / 'model'} --styles {folder / 'styles.json'} --style felt --size 128"
    os.environ["LIVE2DIFF_OPTIONS"] = options


def main() -> None:
    write_model()
    import app  # which loads the model, as on a Space

    assert isinstance(app.ENGINE, ZeroGpuEngine), "this is no Space"
    engine, pipe = app.ENGINE, app.ENGINE.pipe
    with gr.Blocks() as demo:
        gpu_session_button(engine)
    button = next(index for index, function in demo.fns.items() if function.name == "visit")
    _, url, _ = demo.queue().launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    clip = list(np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), dtype=np.uint8))

    engine.open("ann", StreamSettings(style="felt", steps=1))
    with clicked(url, button, "ann"):
        answers = [engine.push("ann", frame, tag=tag).result(PATIENCE) for tag, frame in enumerate(clip)]
        engine.update("ann", StreamSettings(style="plain")).result(PATIENCE)  # to other weights
        changed = engine.push("ann", clip[-1], tag="changed").result(PATIENCE)
        run = engine.registry.get("ann").run
    run.done.wait(PATIENCE)
    try:
        engine.push("ann", clip[0])
        over = False
    except GpuSessionOver:
        over = True
    engine.open("ann", StreamSettings(style="neon", steps=1))
    with clicked(url, button, "ann"):
        continued = engine.push("ann", clip[0], tag="on").result(PATIENCE)
    engine.close("ann").result(PATIENCE)

    outs = {}
    for style in ("felt", "plain"):
        with engine.clip("ann/clip", StreamSettings(style=style, seed=1), frames=200) as stream:
            translated = [out for frame in clip for out in stream.push(frame)] + stream.flush()
        outs[style] = [int(out.astype(int).sum()) for out in translated]
    result = {
        "device": str(pipe.unet.device),
        "about": engine.about,
        "changed": [int(out.astype(int).sum()) for out in changed.frames],
        "tags": [answer.tag for answer in answers],
        "over": over,
        "continued": [continued.tag, continued.warm],
        "clips": outs,
        "calls": calls,
        "free": len(engine.pipes.free) == len(engine.pipes.ends),
    }
    print("RESULT " + json.dumps(result), flush=True)
    demo.close()
    engine.shutdown()


if __name__ == "__main__":
    main()
