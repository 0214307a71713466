"""A frame of the full model launches no more kernels than before, counted on tensors without memory."""

from collections.abc import Iterator

import pytest
from helpers import graph_emulator
from helpers.frame_audit import Audit, FlashAttention, Streams, full_model, table

from live2diff.runtime.cuda_graphs import CudaRuntime, Way

pytest.importorskip("triton", reason="on Linux only")

# Kernels, TFLOP, GB: lower them when a change of the code does; runtime/NOTES.md has the history.
MOST = {1: (1475, 2.9, 16.7), 8: (1692, 23.0, 114)}


@pytest.fixture(scope="module")
def streams() -> Iterator[Streams]:
    with pytest.MonkeyPatch.context() as patched, FlashAttention(), Audit() as mode:
        graphs = graph_emulator.emulate(patched)
        streams = Streams(full_model(), mode)
        streams.pipeline.runtime = CudaRuntime(streams.pipeline, Way(attention=True, fused=True))
        streams.graphs = graphs
        yield streams


@pytest.mark.slow
@pytest.mark.parametrize("viewers", sorted(MOST))  # the same streams: more join
def test_a_frame_launches_no_more_than_it_did(streams, viewers):
    streams.join(viewers - len(streams.streams))
    streams.push()
    audit = streams.audit()
    print(table(audit))
    whole, (kernels, teraflop, gigabytes) = audit.total(), MOST[viewers]
    assert whole.kernels <= kernels
    assert whole.flop / 1e12 <= teraflop
    assert whole.bytes / 1e9 <= gigabytes
    # The images and whether they are finite; nothing else.
    assert whole.synchronisations == ["aten::_to_copy"] * 2
    assert audit.parts["rest"].synchronisations == whole.synchronisations
