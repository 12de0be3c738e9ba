"""BERT text classifiers: transformers' encoder with a mask that traces on the meta device, and a linear head."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Narrow imports: the package's top level would load every architecture's index.
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertModel

from haq.errors import InputError, lookup
from haq.nn.checkpoints import StateDict, fit_state, load_state

POOLINGS = ("first", "mean")
"""What the head reads: the first token through BERT's tanh pooler, or the mean over the tokens that are no padding."""

# Added to the attention scores of padding. exp(-1e4) is 0 in every format, and fp16 (up to 65504) can hold it.
MASKED = -1e4

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
NOT_PARAMETERS = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")
"""Constants that older checkpoints carry; the model computes them."""


class BertClassifier(nn.Module):
    """Logits out of token ids; the state-dict keys are those of transformers' BertForSequenceClassification.

    forward: (batch, tokens) integers; attention_mask is 1 on tokens and 0 on padding. Attention runs as plain matrix
    products, so that they can be traced and quantized as `bert.encoder.layer.0.attention.self/matmul_0`, ...
    """

    def __init__(self, config: BertConfig, labels: int, pooling: str) -> None:
        super().__init__()
        config._attn_implementation = "eager"
        self.bert = BertModel(config, add_pooling_layer=pooling == "first")
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        kept = attention_mask.to(self.classifier.weight.dtype)
        # A ready mask of four axes is taken as it is; transformers' own asks for its values, which meta tensors lack.
        hidden = self.bert(
            input_ids=input_ids,
            attention_mask=(1 - kept)[:, None, None, :] * MASKED,
            token_type_ids=token_type_ids,
        )
        if self.bert.pooler is not None:
            pooled = hidden.pooler_output
        else:
            weights = kept.unsqueeze(-1)
            pooled = (hidden.last_hidden_state * weights).sum(1) / weights.sum(1).clamp(min=1)
        return self.classifier(self.dropout(pooled))  # type: ignore[no-any-return]


def bert_classifier(*, layers: int, hidden: int, heads: int, labels: int = 2, pooling: str = "first") -> BertClassifier:
    """A BERT of the given size with random weights: 30,522 word pieces, 512 positions, feed-forward 4 x hidden.

    Base is 12 layers, hidden 768, 12 heads; large 24, 1024, 16 (Devlin et al. 2019, section 3).
    """
    lookup(dict.fromkeys(POOLINGS), pooling, "pooling")
    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )
    return BertClassifier(config, labels, pooling)


def from_folder(folder: Path) -> BertClassifier:
    """The trained classifier in a Hugging Face folder (config.json beside model.safetensors or pytorch_model.bin).

    Nothing is downloaded and no code in the folder runs. Raises InputError on a missing or foreign file, and on a
    checkpoint that is no BERT sequence classifier (an encoder without a head has not been trained for a task).
    """
    config = read_config(folder)
    labels = len(class_names(config))
    try:
        model = BertClassifier(BertConfig(**{k: config[k] for k in _CONFIG_KEYS if k in config}), labels, "first")
    except Exception as error:  # a wrong type, heads that do not divide the width: transformers raises various kinds
        raise InputError(
            "no BERT can be built from this file",
            where=str(folder / "config.json"),
            got=(str(error).splitlines() or [type(error).__name__])[-1].strip()[:160],
        ) from error
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None:
        raise InputError(
            "the folder holds no weights",
            where=str(folder),
            expected=" or ".join(WEIGHT_FILES),
            way_out="save a sharded or TensorFlow model again with save_pretrained(folder, safe_serialization=True)",
        )
    fit_state(model, _modern_names(load_state(weights)), where=str(weights))
    return model.eval()


_CONFIG_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
)
"""What shapes a BERT. Nothing else of a user's file reaches the model."""


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json; raises InputError if it is absent, not JSON, or of another architecture."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError("no config.json", where=str(folder), expected="a folder written by save_pretrained")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError("not JSON", where=str(path), got=str(error)) from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "bert":
        raise InputError("not a BERT model", where=str(path), got=f"model_type {kind!r}", expected="model_type 'bert'")
    return dict(config)


def class_names(config: Mapping[str, object]) -> tuple[str, ...]:
    """The model's label names in the order of its logits; two numbered classes where the config names none."""
    names = config.get("id2label")
    if not isinstance(names, Mapping) or not names or not all(str(key).isdecimal() for key in names):
        return ("LABEL_0", "LABEL_1")
    return tuple(str(names[key]) for key in sorted(names, key=int))


def _modern_names(state: StateDict) -> StateDict:
    """The state dict without constants, layer norms' old TensorFlow names replaced."""
    renamed = {}
    for key, value in state.items():
        name = key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if name not in NOT_PARAMETERS:
            renamed[name] = value
    return renamed
