"""Sentence vectors and hidden states of a BERT encoder by PyTorch, for the fixture of the tests.

usage: torch_forward.py MODEL_FOLDER > tests/fixtures/minilm.json
"""

import json
import sys

import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModel.from_pretrained(sys.argv[1]).eval()
texts = [
    "a gripping movie , played with performances that are all understated and touching .",
    "it 's slow -- very , very slow .",
    "Unbelievable!",
]
rows = []
for text in texts:
    encoded = tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**encoded).last_hidden_state[0]
    vector = torch.nn.functional.normalize(hidden.mean(0), dim=0)
    rows.append({
        "text": text,
        "tokens": encoded["input_ids"][0].tolist(),
        "first": hidden[0, :16].tolist(),
        "last": hidden[-1, :16].tolist(),
        "vector": vector[:32].tolist(),
    })
json.dump(rows, sys.stdout, indent=1)
