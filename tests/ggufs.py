"""Writes tiny models: real GGUF files with random weights, within milliseconds."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def write_gguf(
    path: Path,
    *,
    context_length: int = 512,
    layers: int = 1,
    width: int = 32,
    heads: int = 2,
    template: str | None = CHAT_TEMPLATE,
    seed: int = 0,
    added: dict[str, NDArray[np.float64]] | None = None,
) -> Path:
    """A model whose vocabulary is the 256 bytes and three control tokens. `seed` changes the weights; `added` is added to the
    named tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(context_length)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_vocabulary(writer, template)
    rng = np.random.default_rng(seed)
    for name, shape in _tensors(layers, width):
        # 1 for norms; otherwise large enough that the logits differ clearly.
        values = np.ones(shape) if name.endswith("norm.weight") else rng.normal(scale=0.5, size=shape)
        writer.add_tensor(name, (values + (added or {}).get(name, 0)).astype(np.float32))
    return _written(writer, path)


def write_lora(path: Path, tensor: str, a: NDArray[np.float64], b: NDArray[np.float64], *, alpha: float) -> Path:
    """A LoRA adapter for one tensor of such a model: it adds b·a, multiplied by its scale and by alpha over its rank."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_tensor(f"{tensor}.lora_a", a.astype(np.float32))
    writer.add_tensor(f"{tensor}.lora_b", b.astype(np.float32))
    return _written(writer, path)


def _written(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_mamba(path: Path, *, layers: int = 2, width: int = 32, seed: int = 0) -> Path:
    """A recurrent model (Mamba 1) with the same vocabulary: its memory is a state that cannot be truncated."""
    inner, state, rank, kernel = 2 * width, 8, 2, 4
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(layers)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_vocabulary(writer, CHAT_TEMPLATE)
    tensors = _tensors(0, width)
    for layer in range(layers):
        shapes: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (width,),
            "ssm_in.weight": (2 * inner, width),
            "ssm_conv1d.weight": (inner, kernel),
            "ssm_conv1d.bias": (inner,),
            "ssm_x.weight": (rank + 2 * state, inner),
            "ssm_dt.weight": (inner, rank),
            "ssm_dt.bias": (inner,),
            "ssm_a": (inner, state),
            "ssm_d": (inner,),
            "ssm_out.weight": (width, inner),
        }
        tensors += [(f"blk.{layer}.{name}", shape) for name, shape in shapes.items()]
    rng = np.random.default_rng(seed)
    for name, shape in tensors:
        values = np.ones(shape) if name.endswith("norm.weight") else rng.normal(scale=0.5, size=shape)
        # A decays the state, so it is negative.
        writer.add_tensor(name, (-np.abs(values) if name.endswith("ssm_a") else values).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter, template: str | None) -> None:
    tokens = SPECIAL + BYTES
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL] + [gguf.TokenType.BYTE] * 256
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    if template is not None:
        writer.add_chat_template(template)


def _tensors(layers: int, width: int) -> list[tuple[str, tuple[int, ...]]]:
    vocabulary = len(SPECIAL) + len(BYTES)
    tensors: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (vocabulary, width)),
        ("output_norm.weight", (width,)),
        ("output.weight", (vocabulary, width)),
    ]
    for layer in range(layers):
        tensors += [(f"blk.{layer}.{name}.weight", (width, width)) for name in ("attn_q", "attn_k", "attn_v", "attn_output")]
        tensors += [(f"blk.{layer}.{name}.weight", (width,)) for name in ("attn_norm", "ffn_norm")]
        tensors += [(f"blk.{layer}.{name}.weight", (2 * width, width)) for name in ("ffn_gate", "ffn_up")]
        tensors.append((f"blk.{layer}.ffn_down.weight", (width, 2 * width)))
    return tensors


# Files byte by byte, for contents that no writer produces.

HEAD = b"GGUF" + struct.pack("<I", 3)


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


ARCHITECTURE = entry("general.architecture", 8, text("llama"))


def header(*entries: bytes, tensors: tuple[bytes, ...] = ()) -> bytes:
    return HEAD + struct.pack("<QQ", len(tensors), len(entries)) + b"".join(entries) + b"".join(tensors)


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
