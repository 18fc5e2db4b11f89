"""Random weights in the shape of TinyLlama (1.1 billion parameters), with a tokenizer of as many words and a text of them."""

import json
import random
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

out, layers = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
config = LlamaConfig(vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers, num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=2048, tie_word_embeddings=False, torch_dtype="float32")
with torch.device("cuda"):
    model = LlamaForCausalLM(config)
model.float().save_pretrained(out, max_shard_size="2GB")
words = {f"w{i}": i for i in range(32000)}
json.dump({"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None, "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"}}, open(out + "/tokenizer.json", "w"))
rng = random.Random(1)
open(out + "/text.txt", "w").write("\n".join(" ".join(f"w{rng.randrange(32000)}" for _ in range(70)) for _ in range(800)))
print(sum(p.numel() for p in model.parameters()), "parameters")
