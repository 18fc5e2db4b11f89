"""One SPSA step of a BERT encoder in PyTorch on the CPU: as its users write it, and as a good engineer would.

usage: torch_step.py MODEL_FOLDER [BATCH TOKENS THREADS STEPS]
"""

import sys
import time

import torch
from transformers import AutoModel

folder, (batch, tokens, threads, steps) = sys.argv[1], [int(a) for a in (sys.argv[2:] + [16, 64, 2, 9][len(sys.argv) - 2:])]
torch.set_num_threads(threads)
torch.manual_seed(0)
model = AutoModel.from_pretrained(folder).eval()
params = list(model.parameters())
ids = torch.randint(1000, 20000, (batch, tokens))
mask = torch.ones_like(ids)
EPS = 2.0**-8


@torch.inference_mode()
def loss():
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return torch.nn.functional.normalize(hidden.mean(1), dim=1).square()[:, :7].sum().item()


@torch.inference_mode()
def users():
    """In-place normal numbers, drawn again in each of four passes: plus, minus, restore, update."""

    def shift(scale):
        generator = torch.Generator().manual_seed(7)
        for p in params:
            z = torch.empty_like(p).normal_(generator=generator)
            p.add_(z, alpha=scale)

    shift(EPS)
    plus = loss()
    shift(-2 * EPS)
    minus = loss()
    shift(EPS)
    shift(-1e-9 * (plus - minus) / (2 * EPS))


TABLE = torch.tensor([[1.0 if byte >> bit & 1 == 0 else -1.0 for bit in range(8)] for byte in range(256)])
CHUNK = 1 << 16


@torch.inference_mode()
def engineer():
    """Signs of one random bit each through a table of bytes, in chunks that stay in the cache; two passes, as
    restoring and updating wait for the next step's first pass."""

    def shift(seeds):
        generators = [(torch.Generator().manual_seed(seed), scale) for seed, scale in seeds]
        for p in params:
            flat = p.view(-1)
            for at in range(0, flat.numel(), CHUNK):
                piece = flat[at : at + CHUNK]
                for generator, scale in generators:
                    bytes_ = torch.randint(0, 256, ((piece.numel() + 7) // 8,), generator=generator)
                    piece.add_(TABLE[bytes_].view(-1)[: piece.numel()], alpha=scale)

    # Restore and update of the last step, and the plus of this one, in one visit.
    shift([(6, EPS), (7, EPS)])
    plus = loss()
    shift([(7, -2 * EPS)])
    minus = loss()
    return plus, minus


def median(f):
    times = []
    for step in range(steps + 2):
        began = time.perf_counter()
        f()
        if step >= 2:
            times.append(1e3 * (time.perf_counter() - began))
    times.sort()
    return times[len(times) // 2], times[0]


print("part,median_ms,least_ms")
for name, f in [("users' step", users), ("engineer's step", engineer), ("two forwards", lambda: (loss(), loss()))]:
    print("%s,%.2f,%.2f" % (name, *median(f)), flush=True)
