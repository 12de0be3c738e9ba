"""BERT with its masked-word head, as phone timings of BERT run it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertModel

from haq.nn.models.bert import MASKED


class WordHead(nn.Module):
    """Hidden states (batch, tokens, hidden) to logits over the vocabulary: (batch, tokens, words).

    transformers' decoder is the word embeddings; here it is a matrix of its own, as a compiler stores it.
    """

    def __init__(self, hidden: int, words: int, epsilon: float, act: nn.Module) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.act = act
        self.norm = nn.LayerNorm(hidden, eps=epsilon)
        self.decoder = nn.Linear(hidden, words)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.decoder(self.norm(self.act(self.dense(hidden))))  # type: ignore[no-any-return]


class BertWords(nn.Module):
    """BERT's encoder and the word head. forward: as BertClassifier's."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        config._attn_implementation = "eager"
        self.bert = BertModel(config, add_pooling_layer=False)
        self.words = WordHead(config.hidden_size, config.vocab_size, config.layer_norm_eps, nn.GELU())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        kept = attention_mask.to(self.words.dense.weight.dtype)
        hidden = self.bert(
            input_ids=input_ids,
            attention_mask=(1 - kept)[:, None, None, :] * MASKED,
            token_type_ids=torch.zeros_like(input_ids),
        )
        return self.words(hidden.last_hidden_state)  # type: ignore[no-any-return]


def bert_words() -> BertWords:
    """BERT-Base with its masked-word head and random weights; its decoder is a matrix of its own."""
    return BertWords(BertConfig())
