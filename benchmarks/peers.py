"""The pairs that `speed.py` times: an architecture here, and the same one as somebody else has it.

Shapes of all: width 256, 6 layers, vocabulary 8192. Where an exchange map exists both sides hold the same weights.
Dropout is off on both sides.

V vocabulary, D width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import orrery

V, D, L = 8192, 256, 6
TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


class PlainGPT(nn.Module):
    """A GPT as one writes it in an afternoon: learned positions, LayerNorm, scaled_dot_product_attention, no cache."""

    def __init__(self, heads: int = 4, positions: int = 1024) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.positions = nn.Embedding(V, D), nn.Embedding(positions, D)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "n1": nn.LayerNorm(D),
                    "qkv": nn.Linear(D, 3 * D),
                    "out": nn.Linear(D, D),
                    "n2": nn.LayerNorm(D),
                    "up": nn.Linear(D, 4 * D),
                    "down": nn.Linear(4 * D, D),
                }
            )
            for _ in range(L)
        )
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, V, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor, cache: list[tuple[Tensor, Tensor]] | None = None) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """x (B,T) -> logits (B,T,V) and the keys and values of every layer."""
        before = 0 if cache is None else cache[0][0].shape[2]
        h = self.embed(x) + self.positions(torch.arange(before, before + x.shape[1]))
        kept = []
        for index, layer in enumerate(self.layers):
            q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in layer["qkv"](layer["n1"](h)).chunk(3, -1))
            if cache is not None:
                k, v = torch.cat([cache[index][0], k], 2), torch.cat([cache[index][1], v], 2)
            kept.append((k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
            h = h + layer["out"](y.transpose(1, 2).flatten(2))
            h = h + layer["down"](F.gelu(layer["up"](layer["n2"](h)), approximate="tanh"))
        return self.head(self.norm(h)), kept


class BareLSTM(nn.Module):
    """An LSTM language model as PyTorch offers it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(V, D), nn.LSTM(D, D, L, batch_first=True), nn.Linear(D, V, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        """x (B,T) -> logits (B,T,V)."""
        return self.head(self.rnn(self.embed(x))[0])


@dataclass(frozen=True)
class Pair:
    """One row of the table. `kind` says how the peer is called: hf (labels, generate), gpt (cache), plain (logits only).

    none: nobody else runs it on a CPU (peer "", build gives None for it). hf-train is hf without decoding: transformers'
    cache of Qwen3-Next needs at least one attention layer.
    """

    name: str
    peer: str
    kind: str
    build: Callable[[], tuple[nn.Module, nn.Module | None]]
    train: float | None = None  # targets: at least so many times the peer
    prefill: float | None = None
    decode: float | None = None
    fraction: float | None = None  # of the matmul rate, in training
    memory: float | None = None  # at most so many times the peer's
    needs: str = ""  # a package without which the row is kept as it was
    unless: str = ""  # a package whose row takes this one's place

    @property
    def measurable(self) -> bool:
        """Whether the row can and should be measured here."""
        return (not self.needs or bool(find_spec(self.needs))) and not (self.unless and find_spec(self.unless))


def _hf(cls: str, **settings: object) -> nn.Module:
    import transformers

    config = getattr(transformers, cls)(vocab_size=V, **TOKENS, **settings)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa" if cls in ("LlamaConfig", "GPT2Config") else None)


def _llama() -> tuple[nn.Module, nn.Module]:
    hf = _hf("LlamaConfig", hidden_size=D, num_hidden_layers=L, num_attention_heads=4, intermediate_size=688, tie_word_embeddings=True)
    return orrery.from_transformers(hf), hf


def _gpt2() -> tuple[nn.Module, nn.Module]:
    hf = _hf("GPT2Config", n_embd=D, n_layer=L, n_head=4, n_positions=1024, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return orrery.from_transformers(hf), hf


def _mamba2() -> tuple[nn.Module, nn.Module]:
    hf = _hf(
        "Mamba2Config", hidden_size=D, num_hidden_layers=L, state_size=128, num_heads=8, head_dim=64, n_groups=1, expand=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    return orrery.from_transformers(hf), hf


def _mamba() -> tuple[nn.Module, nn.Module]:
    """The peer's sequential path, which trains on 8 x 512 tokens in some minutes."""
    hf = _hf("MambaConfig", hidden_size=D, num_hidden_layers=L, tie_word_embeddings=True)
    return orrery.from_transformers(hf), hf


def _mambapy() -> tuple[nn.Module, nn.Module]:
    """The peer's parallel path, for which it needs the package mambapy."""
    hf = _hf("MambaConfig", hidden_size=D, num_hidden_layers=L, tie_word_embeddings=True, use_mambapy=True)
    return orrery.from_transformers(hf), hf


def _recurrent_gemma() -> tuple[nn.Module, nn.Module]:
    hf = _hf(
        "RecurrentGemmaConfig", hidden_size=D, num_hidden_layers=L, num_attention_heads=4, num_key_value_heads=1, intermediate_size=6 * D
    )
    return orrery.from_transformers(hf), hf


_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_groups": 1}
_GROUPED = {"hidden_size": D, "num_hidden_layers": L, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}


def _falcon_h1() -> tuple[nn.Module, nn.Module]:
    hf = _hf("FalconH1Config", intermediate_size=688, mamba_d_ssm=512, **_MAMBA, **_GROUPED)
    return orrery.from_transformers(hf), hf


def _bamba() -> tuple[nn.Module, nn.Module]:
    hf = _hf("BambaConfig", intermediate_size=688, attn_layer_indices=[3], **_MAMBA, **_GROUPED)
    return orrery.from_transformers(hf), hf


def _zamba2() -> tuple[nn.Module, nn.Module]:
    """Every third layer has shared attention, one block of it in two places, with maps of rank 16 beside its MLP's."""
    hf = _hf(
        "Zamba2Config", hidden_size=D, num_hidden_layers=L, layers_block_type=["mamba", "mamba", "hybrid"] * 2, n_mamba_heads=8,
        mamba_d_state=64, num_attention_heads=4, intermediate_size=688, adapter_rank=16, num_mem_blocks=1, tie_word_embeddings=True,
    )  # fmt: skip
    return orrery.from_transformers(hf), hf


def _mixtral() -> tuple[nn.Module, nn.Module]:
    hf = _hf("MixtralConfig", intermediate_size=344, num_local_experts=8, num_experts_per_tok=2, **_GROUPED)
    return orrery.from_transformers(hf), hf


def _rwkv() -> tuple[nn.Module, nn.Module]:
    hf = _hf("RwkvConfig", hidden_size=D, num_hidden_layers=L, context_length=1024, tie_word_embeddings=False)
    return orrery.from_transformers(hf), hf


def _qwen3_next() -> tuple[nn.Module, nn.Module]:
    """The layers of Qwen3-Next, all linear, with a dense channel mixer of the same size as ours."""
    hf = _hf(
        "Qwen3NextConfig", hidden_size=D, num_hidden_layers=L, intermediate_size=688, num_attention_heads=4, num_key_value_heads=4,
        linear_num_value_heads=3, linear_num_key_heads=3, linear_key_head_dim=64, linear_value_head_dim=128, head_dim=64,
        use_cache=False, layer_types=["linear_attention"] * L, mlp_only_layers=list(range(L)), num_experts=0, tie_word_embeddings=True,
    )  # fmt: skip
    own = orrery.create_model("gated-deltanet", width=D, depth=L, vocab_size=V, tied=True, **{"channel.hidden": 688})
    return own, hf


_DELTA = {
    "linear_num_key_heads": 3, "linear_num_value_heads": 3, "linear_key_head_dim": 64, "linear_value_head_dim": 128,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"] + ["linear_attention"] * 2, "intermediate_size": 688, **_GROUPED,
}  # fmt: skip


def _qwen3_hybrid() -> tuple[nn.Module, nn.Module]:
    """The fourth layer is attention; dense."""
    hf = _hf("Qwen3NextConfig", head_dim=64, mlp_only_layers=list(range(L)), num_experts=0, **_DELTA)
    return orrery.from_transformers(hf), hf


def _olmo_hybrid() -> tuple[nn.Module, nn.Module]:
    """The fourth layer is attention."""
    hf = _hf("OlmoHybridConfig", rope_parameters=None, **_DELTA)
    return orrery.from_transformers(hf), hf


def _lfm2() -> tuple[nn.Module, nn.Module]:
    """Every third layer is attention."""
    layers = ["conv", "conv", "full_attention"] * 2
    hf = _hf("Lfm2Config", intermediate_size=688, block_auto_adjust_ff_dim=False, layer_types=layers, **_GROUPED)
    return orrery.from_transformers(hf), hf


def _lfm3() -> tuple[nn.Module, nn.Module]:
    """Convolutions, and layers of full and of windowed attention."""
    layers = ["conv", "full_attention", "conv", "sliding_attention", "conv", "full_attention"]
    hf = _hf("Lfm3Config", intermediate_size=688, head_dim=64, layer_types=layers, **_GROUPED)
    return orrery.from_transformers(hf), hf


def _kimi() -> tuple[nn.Module, nn.Module]:
    """The linear layers of Kimi-Linear with a dense channel mixer of the same size as ours."""
    hf = _hf(
        "KimiLinearConfig", hidden_size=D, num_hidden_layers=L, intermediate_size=688, linear_num_heads=4, linear_head_dim=64,
        use_cache=False, layer_types=["linear_attention"] * L, mlp_layer_types=["dense"] * L, tie_word_embeddings=False,
    )  # fmt: skip
    own = orrery.create_model("kda", width=D, depth=L, vocab_size=V, tied=False, head_dim=64, **{"channel.hidden": 688})
    return own, hf


def _kimi_hybrid() -> tuple[nn.Module, nn.Module]:
    """The fourth layer is latent attention; all but the first with 8 experts of 344, of which 2 serve a token, and a shared one."""
    hf = _hf(
        "KimiLinearConfig", hidden_size=D, num_hidden_layers=L, intermediate_size=688, linear_num_heads=4, linear_head_dim=64,
        num_attention_heads=4, num_key_value_heads=4, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64, kv_lora_rank=256,
        layer_types=["linear_attention"] * 3 + ["full_attention"] + ["linear_attention"] * 2, mlp_layer_types=["dense"] + ["sparse"] * (L - 1),
        num_local_experts=8, num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=344, tie_word_embeddings=False,
    )  # fmt: skip
    return orrery.from_transformers(hf), hf


def _xlstm() -> tuple[nn.Module, nn.Module]:
    """xLSTM-7B's blocks with 4 heads. (Theirs cannot be trained with a cache; `generate` asks for one.)"""
    hf = _hf("xLSTMConfig", hidden_size=D, num_hidden_layers=L, num_heads=4, use_cache=False)
    return orrery.from_transformers(hf), hf


def _minimax() -> tuple[nn.Module, nn.Module]:
    """Softmax and lightning attention by turns (transformers' default), 8 experts of 344, of which 2 serve a token."""
    hf = _hf(
        "MiniMaxConfig", hidden_size=D, num_hidden_layers=L, num_attention_heads=4, num_key_value_heads=4, intermediate_size=344,
        num_local_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    return orrery.from_transformers(hf), hf


def _plain_gpt() -> tuple[nn.Module, nn.Module]:
    return orrery.create_model("gpt2", width=D, depth=L, vocab_size=V), PlainGPT()


def _lstm() -> tuple[nn.Module, nn.Module]:
    return orrery.create_model("lstm", width=D, depth=L, vocab_size=V, tied=True, **{"mixer.hidden": None}), BareLSTM()


def _alone(name: str) -> Callable[[], tuple[nn.Module, None]]:
    """An architecture that nobody else runs on a CPU."""
    return lambda: (orrery.create_model(name, width=D, depth=L, vocab_size=V), None)


PAIRS = (
    Pair("transformer", "transformers llama", "hf", _llama, train=1.1, prefill=1.0, decode=3.0, fraction=0.75, memory=0.65),
    Pair("gpt2", "transformers gpt2", "hf", _gpt2, train=1.1, prefill=1.0, decode=3.0, fraction=0.75, memory=0.65),
    Pair("gpt2", "plain SDPA GPT", "gpt", _plain_gpt, decode=1.5),
    Pair("mamba2", "transformers mamba2", "hf", _mamba2, train=1.5, prefill=1.4, decode=4.0, fraction=0.45, memory=0.65),
    Pair("mamba", "transformers mamba with mambapy", "hf", _mambapy, train=4.0, prefill=4.0, decode=4.0, memory=0.65, needs="mambapy"),
    Pair("mamba", "transformers mamba", "hf", _mamba, train=40.0, prefill=4.0, decode=4.0, memory=0.65, unless="mambapy"),
    Pair("griffin", "transformers recurrent_gemma", "hf", _recurrent_gemma, train=2.5, prefill=4.0, decode=4.0, memory=0.65),
    Pair("falcon-h1", "transformers falcon_h1", "hf", _falcon_h1, train=1.6, prefill=1.15, decode=4.0, memory=0.65),
    Pair("bamba", "transformers bamba", "hf", _bamba, train=1.4, prefill=1.15, decode=4.0, memory=0.65),
    Pair("zamba2", "transformers zamba2", "hf", _zamba2, train=1.4, prefill=1.15, decode=4.0, memory=0.65),
    Pair("mixtral", "transformers mixtral", "hf", _mixtral, train=1.1, prefill=1.0, decode=3.0, memory=0.65),
    Pair("gated-deltanet", "transformers qwen3_next (linear layers)", "hf-train", _qwen3_next, train=1.4, fraction=0.30, memory=0.65),
    Pair("qwen3-next", "transformers qwen3_next", "hf", _qwen3_hybrid, train=1.4, prefill=1.15, decode=4.0, fraction=0.30, memory=0.65),
    Pair("olmo-hybrid", "transformers olmo_hybrid", "hf", _olmo_hybrid, train=1.25, prefill=1.15, decode=4.0, fraction=0.30, memory=0.65),
    Pair("kda", "transformers kimi_linear (linear layers)", "hf-train", _kimi, train=1.4, fraction=0.30, memory=0.65),
    Pair("lfm2", "transformers lfm2", "hf", _lfm2, train=1.15, prefill=1.15, decode=4.0, memory=0.65),
    Pair("lfm3", "transformers lfm3", "hf", _lfm3, train=1.15, prefill=1.15, decode=4.0, memory=0.65),
    Pair("kimi-linear", "transformers kimi_linear", "hf", _kimi_hybrid, train=1.4, prefill=1.15, decode=4.0, fraction=0.30, memory=0.65),
    Pair("rwkv4", "transformers rwkv", "hf", _rwkv, train=4.5, prefill=4.0, decode=4.0, memory=0.65),
    Pair("xlstm-large", "transformers xlstm", "hf", _xlstm, train=1.25, prefill=1.15, decode=4.0, fraction=0.45, memory=0.65),
    Pair("minimax", "transformers minimax", "hf", _minimax, train=1.15, prefill=1.0, decode=4.0, memory=0.65),
    Pair("lstm", "bare nn.LSTM", "plain", _lstm, train=0.92),
    Pair("rwkv7", "", "none", _alone("rwkv7"), fraction=0.30),
    Pair("gla", "", "none", _alone("gla"), fraction=0.35),
    Pair("hgrn2", "", "none", _alone("hgrn2"), fraction=0.35),
    Pair("rwkv6", "", "none", _alone("rwkv6"), fraction=0.35),
    Pair("rwkv5", "", "none", _alone("rwkv5"), fraction=0.35),
    Pair("lizard", "", "none", _alone("lizard"), fraction=0.35),
)
