"""One SPSA step in PyTorch on a card: as its users write it, and as a good engineer would.

usage: torch_step.py MODEL_FOLDER BATCH TOKENS STEPS
"""

import sys
import time

import torch
import triton
import triton.language as tl
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

folder, (batch, tokens, steps) = sys.argv[1], [int(a) for a in sys.argv[2:5]]
torch.manual_seed(0)
causal = AutoConfig.from_pretrained(folder).model_type in ("llama", "qwen2", "mistral")
kind = AutoModelForCausalLM if causal else AutoModel
model = kind.from_pretrained(folder, dtype=torch.float32).eval().cuda()
params = list({id(p): p for p in model.parameters()}.values())
ids = torch.randint(1000, 20000, (batch, tokens), device="cuda")
mask = torch.ones_like(ids)
EPS = 2.0**-8


@torch.inference_mode()
def loss():
    if causal:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return torch.nn.functional.normalize(hidden.mean(1), dim=1).square()[:, :7].sum().item()


@torch.inference_mode()
def users():
    """In-place normal numbers, drawn again in each of four passes: plus, minus, restore, update."""

    def shift(scale):
        generator = torch.Generator("cuda").manual_seed(7)
        for p in params:
            z = torch.empty_like(p).normal_(generator=generator)
            p.add_(z, alpha=scale)

    shift(EPS)
    plus = loss()
    shift(-2 * EPS)
    minus = loss()
    shift(EPS)
    shift(-1e-9 * (plus - minus) / (2 * EPS))


@triton.jit
def add_signs(p, count, seed_a, a, seed_b, b, BLOCK: tl.constexpr):
    """p += a * signs(seed_a) + b * signs(seed_b); a sign is one bit of Philox."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    x = tl.load(p + at, mask=inside)
    word = tl.randint(seed_a, (at // 32).to(tl.int32))
    x += tl.where(((word >> (at % 32).to(tl.int32)) & 1) != 0, -a, a)
    word = tl.randint(seed_b, (at // 32).to(tl.int32))
    x += tl.where(((word >> (at % 32).to(tl.int32)) & 1) != 0, -b, b)
    tl.store(p + at, x, mask=inside)


@torch.inference_mode()
def engineer():
    """One fused kernel a tensor, signs of one random bit each; two visits, as restoring and updating wait for the
    next step's first."""

    def shift(seed_a, a, seed_b, b):
        for at, p in enumerate(params):
            grid = (triton.cdiv(p.numel(), 1024),)
            add_signs[grid](p, p.numel(), seed_a + at, a, seed_b + at, b, BLOCK=1024)

    shift(6000, EPS, 7000, EPS)
    plus = loss()
    shift(7000, -2 * EPS, 0, 0.0)
    minus = loss()
    return plus, minus


def median(f):
    times = []
    for step in range(steps + 3):
        torch.cuda.synchronize()
        began = time.perf_counter()
        f()
        torch.cuda.synchronize()
        if step >= 3:
            times.append(1e3 * (time.perf_counter() - began))
    times.sort()
    return times[len(times) // 2], times[0]


print("part,median_ms,least_ms")
for name, f in [("users' step", users), ("engineer's step", engineer), ("two forwards", lambda: (loss(), loss()))]:
    print("%s,%.2f,%.2f" % (name, *median(f)), flush=True)
print("peak memory of the card, MB,%.0f," % (torch.cuda.max_memory_allocated() / 1e6))
