"""Every method on a GPU: the CPU's tokens in fp32, and no wait for the host inside `attend`."""

from __future__ import annotations

import pytest
import torch

from macbench.attention import Geometry, create
from macbench.attention.base import Lists
from macbench.engine import Engine, Request
from macbench.engine.backend import make
from macbench.kernels import paged
from macbench.models import Source, load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

METHODS = [
    ("full", {}),
    ("full", {"passes": 2}),
    ("mac", {"tau": 0.3, "K": 64, "r": 16}),
    ("mac", {"tau": 0.3, "K": 48, "r": 16, "sink": 4, "max_chain": 3, "match_on": "post_rope"}),
    ("mac", {"tau": 0.4, "K": 64, "r": 16, "refresh_mixed_groups": True}),
    ("mac", {"tau": 0.4, "K": 64, "r": 16, "rotate": True}),
    ("mac", {"tau": 0.3, "K": 64, "r": 16, "match": "random_lag"}),
    ("mac", {"tau": 0.3, "K": 64, "r": 16, "match": "previous", "sink": 4}),
    ("quest", {"budget": 0.9, "dense_layers": 1}),
    ("quest", {"budget": 0.9, "dense_layers": 1, "shared": True}),
    ("streaming_llm", {"budget": 0.3}),
    ("snapkv", {"budget": 0.3}),
    ("snapkv", {"budget": 0.3, "recompress": 5}),
    ("snapkv", {"budget": 0.3, "ada": True, "pool": "avg", "group": "max"}),
    ("pyramidkv", {"budget": 0.3}),
    ("h2o", {"budget": 0.3}),
    ("h2o", {"budget": 0.3, "normalise": True}),
    ("tova", {"budget": 0.3}),
    ("tova", {"budget": 0.3, "per_kv_head": True}),
    ("kivi", {"bits": 4, "group_size": 8, "residual": 16}),
    ("rocketkv", {"budget": 0.4, "window": 8}),
    ("rocketkv", {"budget": 0.7, "window": 8, "dense_layers": 1}),
    ("multipole", {"budget": 0.7, "interval": 16, "per_cluster": 8}),  # k-means may round apart
    ("twilight", {"candidates": 128, "dense_layers": 1}),
    ("twilight", {"base": "all", "dense_layers": 0, "shared": True}),
    ("double_sparsity", {"budget": 0.8, "dense_layers": 1}),
    ("double_sparsity", {"budget": 0.6, "dense_layers": 0, "bits": 16, "shared": True}),
    ("oracle_topk", {"tokens": 0.2}),
    ("random", {"tokens": 0.5}),
]


def answers(
    device: str,
    backend: str = "torch",
    guard: bool = False,
    dtype: str = "float32",
):
    torch.manual_seed(0)
    model = load(Source("tiny", "tiny-llama", init="random", dtype=dtype, device="cpu"))
    moved = load(Source("tiny", "tiny-llama", init="random", dtype=dtype, device=device))
    moved.lm.load_state_dict(model.lm.state_dict())  # random weights depend on where they are drawn
    moved.stop_ids = range(0, moved.vocab, 23)  # so that some methods are through before others
    methods = [create(name, knobs) for name, knobs in METHODS]
    if guard:
        for method in methods:
            method.attend = strict(method.attend)
            method.settle = strict(method.settle)
    engine = Engine(moved, methods, slots=2, max_prompt=300, max_new=24, backend=backend)
    draw = torch.Generator().manual_seed(1)
    requests = [
        Request(torch.randint(moved.vocab, (n,), generator=draw).tolist(), 24, key=n, hold=hold)
        for n, hold in ((300, 5), (171, 0))
    ]
    engine.run(requests)
    return engine.run(requests)  # a second block on the same memory


def strict(attend):
    def guarded(*args):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return attend(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return guarded


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_gpu_gives_the_tokens_and_reads_of_a_cpu(backend):
    """Captured as a graph, with tokens held back, in torch and in our kernels (fp32 products)."""
    ours, theirs = answers("cuda", backend), answers("cpu")
    for (name, knobs), cpu, gpu in zip(METHODS, theirs, ours, strict=True):
        for a, b in zip(cpu, gpu, strict=True):
            assert a.tokens == b.tokens, (name, knobs)
            assert a.reads.keys() == b.reads.keys()
            for stat in ("head_tokens", "kv_tokens", "meta_bytes", "hit", "gap", "depth"):
                if stat in a.reads:
                    one, other = torch.tensor(a.reads[stat]), torch.tensor(b.reads[stat])
                    torch.testing.assert_close(one, other, rtol=0.02, atol=2)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_no_method_waits_for_the_host_inside_a_step(backend):
    answers("cuda", backend, guard=True)


@pytest.fixture
def flashinfer():
    """FlashInfer's attention of three rows, and random q, pools and table for it."""
    pytest.importorskip("flashinfer", reason="needs flashinfer-python")
    g = Geometry(
        layers=1,
        q_heads=6,
        kv_heads=2,
        head_dim=64,
        scale=0.1,
        device=torch.device("cuda"),
        dtype=torch.bfloat16,
        rotate=lambda x, *_: x,
        backend="flashinfer",
    )
    pages = 3 * 20
    draw = torch.Generator("cuda").manual_seed(0)
    k, v = torch.randn(2, pages, 2, 16, 64, generator=draw, device="cuda").bfloat16()
    q = torch.randn(3, 6, 64, generator=draw, device="cuda").bfloat16()
    table = torch.randperm(pages, generator=draw, device="cuda").view(3, -1)
    return make(g, 3), g, (q, k, v, table)


def alike(ours, exact):
    torch.testing.assert_close(ours[0].float(), exact[0].float(), rtol=0.02, atol=0.01)
    torch.testing.assert_close(ours[1], exact[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("lens", [(1, 16, 300), (17, 255, 129)])
def test_flashinfer_attends_like_torch(flashinfer, lens):
    kernels, g, inputs = flashinfer
    for more in range(3):  # planned anew for every step
        now = torch.tensor(lens, device="cuda") + more
        kernels.plan(inputs[-1], now.tolist())
        page = torch.arange(20, device="cuda").expand(3, 2, -1)
        counts = ((now + 15) // 16)[:, None].expand(3, 2)
        exact = paged.attend_pages(*inputs, page, counts, now, g.scale)
        alike(kernels.over(*inputs, now, now > 0), exact)


@pytest.mark.parametrize("piece", [paged.PAGE, 1], ids=["pages", "tokens"])
@pytest.mark.parametrize("per_row", [2, 6], ids=["a group's", "a head's"])
def test_flashinfer_attends_over_lists_like_torch(flashinfer, piece, per_row):
    """Lists of unequal length, the newest piece first; a captured call follows the next plan."""
    kernels, g, (q, k, v, table) = flashinfer
    lists = torch.empty(3, per_row, 9, dtype=torch.int64, device="cuda")
    counts = torch.empty(3, per_row, dtype=torch.int64, device="cuda")
    lens = torch.empty(3, dtype=torch.int64, device="cuda")

    def prepare(now: tuple[int, ...], most: tuple[int, ...]) -> None:
        lens.copy_(torch.tensor(now))
        held = [-(-n // piece) for n in now]
        for row, n in enumerate(held):
            for head in range(per_row):
                others = torch.randperm(n - 1)[:8]  # a list names no page twice
                lists[row, head] = 0
                lists[row, head, : 1 + len(others)] = torch.tensor([n - 1, *others.tolist()])
        own = [min(a, b) for a, b in zip(most, held, strict=True)]
        counts.copy_(torch.tensor(own)[:, None].expand(3, per_row))
        kernels.plan(table, list(now), Lists(own, piece, per_row))

    def ours():
        return kernels.over(q, k, v, table, lens, lens > 0, lists, counts, piece)

    def exact():
        if piece == 1:
            return paged.attend_tokens(q, k, v, table, lists, counts, g.scale)
        return paged.attend_pages(q, k, v, table, lists, counts, lens, g.scale)

    prepare((31, 160, 300), (9, 4, 7))
    alike(ours(), exact())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ours()
    prepare((300, 33, 161), (2, 9, 5))
    for out in captured:
        out.fill_(torch.nan)
    graph.replay()
    alike(captured, exact())
