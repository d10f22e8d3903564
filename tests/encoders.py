"""An independent BERT: a WordPiece tokenizer, a forward pass in numpy, and a writer for its weights as a GGUF file.

It is the reference for services.worker.embedding. Weights have the names of Hugging Face's BertModel; the forward pass follows
Devlin et al. 2018 (arXiv:1810.04805), with every token of type 0, as llama.cpp computes it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Weights = Mapping[str, Array]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class WordPiece:
    """Lower-cases, removes accents, splits at whitespace, punctuation and CJK characters, then takes the longest known pieces."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.ids = {piece: number for number, piece in enumerate(vocabulary)}

    def encode(self, text: str) -> list[int]:
        return [self.ids["[CLS]"], *self.body(text), self.ids["[SEP]"]]

    def body(self, text: str) -> list[int]:
        return [number for word in _words(text) for number in self._pieces(word)]

    def _pieces(self, word: str) -> list[int]:
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            end = next((end for end in range(len(word), start, -1) if prefix + word[start:end] in self.ids), None)
            if end is None:
                return [self.ids["[UNK]"]]
            pieces.append(self.ids[prefix + word[start:end]])
            start = end
        return pieces


def _words(text: str) -> list[str]:
    spaced = []
    for char in unicodedata.normalize("NFD", text.lower()):
        category = unicodedata.category(char)
        if category == "Mn" or char in "\0\ufffd" or (category[0] == "C" and char not in "\t\n\r"):
            continue
        spaced.append(f" {char} " if _stands_alone(char, category) else char)
    return "".join(spaced).split()


def _stands_alone(char: str, category: str) -> bool:
    return category[0] == "P" or (char.isascii() and category[0] == "S") or 0x4E00 <= ord(char) <= 0x9FFF


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    heads: int
    positions: int


def last_hidden(weights: Weights, shape: Shape, ids: Sequence[int]) -> Array:
    """The last hidden state: one row per token."""
    x = (
        weights["embeddings.word_embeddings.weight"][list(ids)]
        + weights["embeddings.position_embeddings.weight"][: len(ids)]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    x = _layer_norm(x, weights, "embeddings.LayerNorm")
    for layer in range(shape.layers):
        name = f"encoder.layer.{layer}"
        attended = _dense(_attention(x, weights, name, shape.heads), weights, f"{name}.attention.output.dense")
        x = _layer_norm(x + attended, weights, f"{name}.attention.output.LayerNorm")
        inner = _gelu(_dense(x, weights, f"{name}.intermediate.dense"))
        x = _layer_norm(x + _dense(inner, weights, f"{name}.output.dense"), weights, f"{name}.output.LayerNorm")
    return x


def unit(vector: Array) -> Array:
    return vector / np.linalg.norm(vector)


def rank_score(weights: Weights, hidden: Array) -> float:
    """The score by the classifier of RobertaForSequenceClassification on the first token: dense, tanh, projection."""
    pooled = np.tanh(_dense(hidden[0], weights, "classifier.dense"))
    return float(_dense(pooled, weights, "classifier.out_proj")[0])


def _dense(x: Array, weights: Weights, name: str) -> Array:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _layer_norm(x: Array, weights: Weights, name: str) -> Array:
    centred: Array = x - x.mean(axis=-1, keepdims=True)
    scaled: Array = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _attention(x: Array, weights: Weights, name: str, heads: int) -> Array:
    def split(part: str) -> Array:
        return _dense(x, weights, f"{name}.attention.self.{part}").reshape(len(x), heads, -1).swapaxes(0, 1)

    query, key, value = split("query"), split("key"), split("value")
    scores = query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1])
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed: Array = (scores / scores.sum(axis=-1, keepdims=True)) @ value
    return mixed.swapaxes(0, 1).reshape(x.shape)


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _erf(x: Array) -> Array:
    """Abramowitz and Stegun 7.1.26, with an error below 1.5e-7."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    polynomial = ((((1.061405429 * t - 1.453152027) * t) + 1.421413741) * t - 0.284496736) * t + 0.254829592
    signed: Array = np.sign(x) * (1 - polynomial * t * np.exp(-x * x))
    return signed


def random_weights(vocabulary: int, shape: Shape, *, seed: int = 0) -> dict[str, Array]:
    """Random weights of a whole encoder with a reranker's classifier."""
    rng = np.random.default_rng(seed)

    def normal(*size: int) -> Array:
        return rng.normal(scale=0.3, size=size).astype(np.float32)

    width, weights = shape.width, {}
    for name, rows in [("word", vocabulary), ("position", shape.positions), ("token_type", 1)]:
        weights[f"embeddings.{name}_embeddings.weight"] = normal(rows, width)
    dense = {
        f"encoder.layer.{n}.attention.self.{part}": width for n in range(shape.layers) for part in ("query", "key", "value")
    }
    dense |= {f"encoder.layer.{n}.attention.output.dense": width for n in range(shape.layers)} | {"classifier.dense": width}
    for name in dense:
        weights |= {f"{name}.weight": normal(width, width), f"{name}.bias": normal(width)}
    for layer in range(shape.layers):
        name = f"encoder.layer.{layer}"
        weights |= {f"{name}.intermediate.dense.weight": normal(2 * width, width)}
        weights |= {f"{name}.intermediate.dense.bias": normal(2 * width)}
        weights |= {f"{name}.output.dense.weight": normal(width, 2 * width), f"{name}.output.dense.bias": normal(width)}
    weights |= {"classifier.out_proj.weight": normal(1, width), "classifier.out_proj.bias": normal(1)}
    norms = [f"encoder.layer.{n}.{part}" for n in range(shape.layers) for part in ("attention.output", "output")]
    for name in ["embeddings", *norms]:
        weights[f"{name}.LayerNorm.weight"] = (1 + normal(width) / 10).astype(np.float32)
        weights[f"{name}.LayerNorm.bias"] = (normal(width) / 10).astype(np.float32)
    return weights


def write_bert(
    path: Path,
    weights: Weights,
    vocabulary: Sequence[str],
    shape: Shape,
    *,
    pooling: gguf.PoolingType | None,
    f16: bool = False,
) -> Path:
    """Writes a GGUF of llama.cpp's architecture `bert`; matrices in f16 if `f16`. With `pooling` None the file names no
    pooling."""
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("encoder")
    writer.add_context_length(shape.positions)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(len(weights["encoder.layer.0.intermediate.dense.bias"]))
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_token_type_count(len(weights["embeddings.token_type_embeddings.weight"]))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if f16 else gguf.LlamaFileType.ALL_F32)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    _add_vocabulary(writer, vocabulary)
    for name, tensor in weights.items():
        matrix = tensor.ndim == 2 and "position" not in name and "token_type" not in name
        writer.add_tensor(_gguf_name(name), tensor.astype(np.float16 if f16 and matrix else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Sequence[str]) -> None:
    """llama.cpp marks the start of a word; BERT marks its continuation."""
    writer.add_tokenizer_model("bert")
    writer.add_token_list(list(_marked(vocabulary)))
    control = [gguf.TokenType.CONTROL if piece in SPECIAL else gguf.TokenType.NORMAL for piece in vocabulary]
    writer.add_token_types(control)
    numbers = {piece: vocabulary.index(piece) for piece in SPECIAL}
    writer.add_pad_token_id(numbers["[PAD]"])
    writer.add_unk_token_id(numbers["[UNK]"])
    writer.add_bos_token_id(numbers["[CLS]"])
    writer.add_sep_token_id(numbers["[SEP]"])
    writer.add_mask_token_id(numbers["[MASK]"])


def _marked(vocabulary: Iterable[str]) -> Iterable[str]:
    for piece in vocabulary:
        if piece.startswith("[") and piece.endswith("]"):
            yield piece
        else:
            yield piece[2:] if piece.startswith("##") else "\u2581" + piece


_PARTS = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}

_OUTSIDE = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "classifier.dense": "cls",
    "classifier.out_proj": "cls.output",
}


def _gguf_name(name: str) -> str:
    place, _, kind = name.rpartition(".")
    if place in _OUTSIDE:
        return f"{_OUTSIDE[place]}.{kind}"
    _, _, layer, part = place.split(".", 3)
    return f"blk.{layer}.{_PARTS[part]}.{kind}"
