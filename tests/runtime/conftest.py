"""A tiny model under CUDA graphs: emulated on a CPU, and on a GPU where there is one."""

from collections.abc import Iterator

import pytest
import torch
from helpers.graph_emulator import emulate
from helpers.tiny_models import build_tiny_pipeline

from live2diff import Live2DiffPipeline

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture(scope="module", params=["emulated", pytest.param("gpu", marks=on_gpu)])
def on_cuda(request, tmp_path_factory) -> Iterator[Live2DiffPipeline]:
    """A pipeline in full single precision, so that rounding makes no difference."""
    pipeline = build_tiny_pipeline(tmp_path_factory.mktemp("tokenizer"))
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "emulated":
            pipeline.graphs = emulate(patched)
        else:
            pipeline.to("cuda")
            patched.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
            patched.setattr(torch.backends.cudnn, "allow_tf32", False)
        yield pipeline
