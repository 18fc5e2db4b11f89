"""Peak resident memory of a process that makes two steps of a BERT encoder in PyTorch on the CPU.

usage: torch_memory.py MODEL_FOLDER load|forward|sgd|adam [BATCH TOKENS]
"""

import resource
import sys

import torch
from transformers import AutoModel

folder, what = sys.argv[1:3]
batch, tokens = [int(a) for a in (sys.argv[3:] + [16, 64][len(sys.argv) - 3:])]
torch.set_num_threads(2)
model = AutoModel.from_pretrained(folder)
ids = torch.randint(1000, 20000, (batch, tokens))
mask = torch.ones_like(ids)


def loss():
    return model(input_ids=ids, attention_mask=mask).last_hidden_state.mean(1).square().sum()


if what == "forward":
    with torch.inference_mode():
        for _ in range(2):
            loss()
elif what in ("sgd", "adam"):
    make = {"sgd": lambda p: torch.optim.SGD(p, 1e-6), "adam": lambda p: torch.optim.AdamW(p, 1e-6)}[what]
    optimizer = make(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
print(what, batch, tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "MiB")
