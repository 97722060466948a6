#!/usr/bin/env python3
"""Mixture-of-experts blocks of published models, as Hugging Face transformers computes them.

    python3 moe_blocks.py <the program moe_blocks>          # compare
    python3 moe_blocks.py --save <folder>                   # write the small cases that tests/data holds

Each case is a safetensors file: the weights under the names that the model's checkpoints have (those that
save_pretrained writes), the gradients under the same names behind "grad.", x, dy, y and dx, and the sizes as metadata.
Files beside it hold the weights under the names of the modules in memory and, for DeepSeek-V3, in eight bits.
"""
import copy
import pathlib
import subprocess
import sys
import tempfile
import warnings

try:
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
    from transformers.models.dbrx import modeling_dbrx
    from transformers.models.switch_transformers import modeling_switch_transformers as modeling_switch
except (ImportError, OSError) as problem:  # torch reports libraries that it misses in either way
    print(f"skipped: {problem}")
    sys.exit(0)
if int(transformers.__version__.split(".")[0]) < 5:
    print(f"skipped: transformers {transformers.__version__} has other routers, 5 is needed")
    sys.exit(0)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.filterwarnings("ignore", message="Initializing zero-element tensors")

# Names of config.json for the sizes that the presets of sluice take.
USUAL = {"d_model": "hidden_size", "d_ff": "moe_intermediate_size", "n_experts": "num_experts",
         "top_k": "num_experts_per_tok"}
MIXTRAL = {**USUAL, "d_ff": "intermediate_size", "n_experts": "num_local_experts"}
DEEPSEEK = {**USUAL, "n_experts": "n_routed_experts", "n_groups": "n_group", "kept_groups": "topk_group",
            "scale": "routed_scaling_factor"}
SHARED_TWICE = {"n_shared_experts": 2}  # shared_d_ff is twice d_ff
# Model: type in transformers, names, and whatever else a small one needs.
MODELS = {
    "mixtral": ("mixtral", MIXTRAL, {}),
    "qwen2_moe": ("qwen2_moe", {**USUAL, "shared_d_ff": "shared_expert_intermediate_size"}, {}),
    "qwen3_moe": ("qwen3_moe", USUAL, {"norm_topk_prob": True}),
    "olmoe": ("olmoe", {**USUAL, "d_ff": "intermediate_size"}, {}),
    "deepseek_v2": ("deepseek_v2", DEEPSEEK, {"topk_method": "group_limited_greedy", **SHARED_TWICE}),
    "deepseek_v3": ("deepseek_v3", DEEPSEEK, SHARED_TWICE),
    "deepseek_v4": ("deepseek_v4", {**USUAL, "d_ff": "intermediate_size", "n_experts": "n_routed_experts",
                                    "scale": "routed_scaling_factor", "clamp": "swiglu_limit"},
                    {"mlp_layer_types": ["moe", "moe"], "n_shared_experts": 1}),
    "deepseek_v4_hash": ("deepseek_v4", {**USUAL, "d_ff": "intermediate_size", "n_experts": "n_routed_experts",
                                         "scale": "routed_scaling_factor", "clamp": "swiglu_limit"},
                         {"mlp_layer_types": ["hash_moe", "hash_moe"], "n_shared_experts": 1}),
    "glm4_moe": ("glm4_moe", DEEPSEEK, SHARED_TWICE),
    "minimax_m2": ("minimax_m2", MIXTRAL, {}),
    "gpt_oss": ("gpt_oss", {**MIXTRAL, "clamp": "swiglu_limit"}, {}),
    "granite": ("granitemoe", MIXTRAL, {}),
    "llama4": ("llama4_text", MIXTRAL, {"interleave_moe_layer_step": 1, "intermediate_size_mlp": 8}),
    "dbrx": ("dbrx", {}, {}),
    "switch_transformer": ("switch_transformers", {}, {}),
}
# Sizes of each case: what the presets take, and the number of tokens.
SMALL = {"d_model": 10, "d_ff": 6, "n_experts": 4, "top_k": 2, "n_tokens": 9}
LARGER = {"d_model": 96, "d_ff": 56, "n_experts": 16, "top_k": 4, "n_tokens": 70}
ODD = {"d_model": 37, "d_ff": 29, "n_experts": 12, "top_k": 3, "n_tokens": 41}
# More than a block of eight bits has.
WIDE = {"d_model": 140, "d_ff": 132, "n_experts": 4, "top_k": 2, "n_tokens": 5}
VOCABULARY = 16
GROUPED = ("deepseek_v2", "deepseek_v3", "glm4_moe")


def sizes_of(model, case):
    sizes = dict(case)
    names = MODELS[model][1]
    if model in GROUPED:
        few = case["n_experts"] < 8
        sizes.update(n_groups=2 if few else 4, kept_groups=1 if few else 2)
    if "scale" in names:
        sizes["scale"] = 2.5
    if "clamp" in names:
        sizes["clamp"] = 2.0  # low, so that it is reached
    if "n_shared_experts" in MODELS[model][2]:
        sizes["shared_d_ff"] = MODELS[model][2]["n_shared_experts"] * case["d_ff"]
    if model == "qwen2_moe":
        sizes["shared_d_ff"] = case["d_ff"] + 3
    if model == "llama4":
        sizes["top_k"] = 1
    if model == "switch_transformer":
        del sizes["top_k"]
        sizes["room"] = case["n_tokens"] // case["n_experts"]  # so that some are dropped
    return sizes


def block_of(model, sizes):
    """A module, the model it is in (None where the module's names are those of checkpoints) and its place."""
    if model == "dbrx":
        config = transformers.DbrxConfig(d_model=sizes["d_model"], ffn_config={
            "ffn_hidden_size": sizes["d_ff"], "moe_num_experts": sizes["n_experts"],
            "moe_top_k": sizes["top_k"], "ffn_act_fn": {"name": "silu"}})
        return modeling_dbrx.DbrxFFN(config), None, "transformer.blocks.0.ffn"
    if model == "switch_transformer":
        config = transformers.SwitchTransformersConfig(
            d_model=sizes["d_model"], d_ff=sizes["d_ff"], num_experts=sizes["n_experts"],
            expert_capacity=sizes["room"])
        return modeling_switch.SwitchTransformersSparseMLP(config), None, "encoder.block.1.layer.1.mlp"
    kind, names, more = MODELS[model]
    fields = {names[size]: value for size, value in sizes.items() if size in names}
    config = AutoConfig.for_model(kind, **{
        "vocab_size": VOCABULARY, "num_hidden_layers": 2 if kind == "deepseek_v4" else 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 8, "first_k_dense_replace": 0,
        "q_lora_rank": 4, "kv_lora_rank": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4,
        **more, **fields})
    config._experts_implementation = "eager"
    whole = AutoModelForCausalLM.from_config(config)
    for place, module in whole.named_modules():
        if any(hasattr(module, gate) for gate in ("gate", "router")) and hasattr(module, "experts"):
            return module, whole, place
    raise LookupError(model)


def fill(block, generator):
    """Weights that make outputs of order one; all biases count."""
    tensors = [*block.named_parameters(), *block.named_buffers()]
    for name, t in tensors:
        if name.endswith("tid2eid"):  # each row of different experts
            experts = router_of(block).num_experts
            t.copy_(torch.stack([torch.randperm(experts, generator=generator)[: t.shape[1]] for _ in t]))
            continue
        wide = t.shape[-2] if name.endswith("gate_up_proj") and t.shape[-1] % 2 == 0 else t.shape[-1]
        deviation = 0.3 if t.dim() == 1 or "bias" in name else 1.5 / wide ** 0.5
        t.data.copy_(torch.randn(t.shape, generator=generator) * deviation)


def router_of(block):
    return block.gate if hasattr(block, "gate") else block.router


def choices(block, x):
    """Which experts each row goes to, in order of their number."""
    with torch.no_grad():
        if isinstance(block, modeling_switch.SwitchTransformersSparseMLP):
            return router_of(block)(x[None])[2][0].argmax(-1, keepdim=True)
        if isinstance(block, modeling_dbrx.DbrxFFN):
            return block.route_tokens_to_experts(router_of(block)(x))[1].sort().values
        extra = [block.e_score_correction_bias] if hasattr(block, "e_score_correction_bias") else []
        result = router_of(block)(x, *extra)
        if len(result) == 2:  # Llama 4: scores, zero where not chosen
            return result[0].topk(block.top_k).indices.sort().values
        return result[2].sort().values


def inputs(block, sizes, generator):
    """Rows whose experts stay the same when the router's weights move by far more than rounding does."""
    x = torch.randn(4 * sizes["n_tokens"], sizes["d_model"], generator=generator)
    if hasattr(router_of(block), "tid2eid"):
        return x[: sizes["n_tokens"]].contiguous()
    moved = copy.deepcopy(block)
    safe = torch.ones(len(x), dtype=torch.bool)
    for _ in range(8):
        for (_, to), (_, of) in zip(router_of(moved).named_parameters(), router_of(block).named_parameters()):
            to.data.copy_(of + 1e-4 * torch.randn(of.shape, generator=generator))
        safe &= (choices(moved, x) == choices(block, x)).all(-1)
    x = x[safe][: sizes["n_tokens"]].contiguous()
    assert len(x) == sizes["n_tokens"], "too few rows with a safe margin"
    return x


def saved(whole, block, place):
    """The block's tensors under the names of checkpoints."""
    if whole is None:
        return {f"{place}.{name}": t.detach().clone() for name, t in block.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        whole.save_pretrained(folder)
        tensors = {}
        for file in pathlib.Path(folder).glob("*.safetensors"):
            tensors.update(load_file(file))
    layer = place.rsplit(".", 1)[0] + "."
    words = (".block_sparse_moe.", ".mlp.", ".ffn.", ".feed_forward.")
    return {name: t for name, t in tensors.items() if name.startswith(layer) and any(w in name for w in words)}


def in_eight_bits(t):
    """A matrix as checkpoints have it, with a factor for each block of 128 x 128, and what it stands for."""
    rows, columns = (-(-n // 128) for n in t.shape)
    factors = 0.004 + 0.007 * torch.arange(rows)[:, None] + 0.003 * torch.arange(columns)
    whole = factors.repeat_interleave(128, 0).repeat_interleave(128, 1)[: t.shape[0], : t.shape[1]]
    stored = (t / whole).to(torch.float8_e4m3fn)
    return stored, factors, stored.float() * whole


def round_experts(block):
    for name, t in block.named_parameters():
        matrices = [t] if t.dim() == 2 else [m for e in t for m in e.chunk(2 if "gate_up" in name else 1)]
        for m in matrices if "expert" in name else []:
            m.data.copy_(in_eight_bits(m.data)[2])


def make(model, case, path, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = sizes_of(model, case)
    block, whole, place = block_of(model, sizes)
    block.eval()
    fill(block, generator)
    if case is WIDE:
        round_experts(block)
    x = inputs(block, sizes, generator).requires_grad_()
    ids = torch.randint(VOCABULARY, (1, len(x)), generator=generator)
    y = block(x[None], ids) if hasattr(router_of(block), "tid2eid") else block(x[None])
    y = (y[0] if isinstance(y, tuple) else y).reshape(x.shape)
    dy = torch.randn(y.shape, generator=generator)
    y.backward(dy)
    tensors = saved(whole, block, place)
    metadata = {"model": model, "prefix": place.rsplit(".", 1)[0] + ".", **{k: str(v) for k, v in sizes.items()}}
    memory = {f"{place}.{name}": t.detach().clone() for name, t in block.state_dict().items()}
    save_file(memory, path.with_suffix(".memory.safetensors"), metadata)
    if case is WIDE:
        bits = dict(tensors)
        for name, t in tensors.items():
            if "expert" in name:
                bits[name], bits[f"{name}_scale_inv"], value = in_eight_bits(t)
                assert torch.equal(value, t), name
        save_file(bits, path.with_suffix(".fp8.safetensors"), metadata)
    for parameter in block.parameters():
        parameter.data.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    tensors.update({f"grad.{name}": t for name, t in saved(whole, block, place).items()})
    tensors.update(x=x.detach(), dy=dy, y=y.detach(), dx=x.grad, ids=ids)
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata)


def main():
    torch.set_num_threads(1)
    if sys.argv[1] == "--save":
        for model in MODELS:
            make(model, SMALL, pathlib.Path(sys.argv[2]) / f"moe_{model}.safetensors", 1)
            (pathlib.Path(sys.argv[2]) / f"moe_{model}.memory.safetensors").unlink()
        return 0
    program = pathlib.Path(sys.argv[1]).resolve()
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        for model, (kind, *_) in MODELS.items():
            if kind not in CONFIG_MAPPING:
                print(f"{model}: transformers {transformers.__version__} does not have it")
                continue
            paths = []
            for i, case in enumerate((SMALL, ODD, LARGER)):
                for seed in (1, 2, 3):
                    paths.append(pathlib.Path(name) / f"{model}_{i}_{seed}.safetensors")
                    make(model, case, paths[-1], seed)
            if model == "deepseek_v3":
                paths.append(pathlib.Path(name) / f"{model}_wide.safetensors")
                make(model, WIDE, paths[-1], 1)
            failed += subprocess.run([program, *paths]).returncode != 0
    print(f"{len(MODELS)} models, {failed} failed; transformers {transformers.__version__}, torch {torch.__version__}")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
