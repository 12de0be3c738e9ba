"""MobileBERT: transformers' encoder with a mask that traces on the meta device, bare or with its masked-word head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Narrow imports: the package's top level would load every architecture's index.
from transformers.models.mobilebert.configuration_mobilebert import MobileBertConfig
from transformers.models.mobilebert.modeling_mobilebert import MobileBertModel

from haq.nn.models.bert import MASKED
from haq.nn.models.bert_words import WordHead


class MobileBert(nn.Module):
    """Hidden states out of token ids: (batch, tokens) integers to (batch, tokens, 512).

    The encoder's state-dict keys are those of transformers' MobileBertModel under `mobilebert.`. As in BertClassifier,
    attention_mask is 1 on tokens and 0 on padding, and attention runs as plain matrix products.
    """

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__()
        config._attn_implementation = "eager"
        self.mobilebert = MobileBertModel(config, add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        kept = attention_mask.to(self.mobilebert.embeddings.word_embeddings.weight.dtype)
        return self.mobilebert(  # type: ignore[no-any-return]
            input_ids=input_ids,
            attention_mask=(1 - kept)[:, None, None, :] * MASKED,
            token_type_ids=token_type_ids,
        ).last_hidden_state


class MobileBertWords(nn.Module):
    """MobileBert and, for every token, logits over the vocabulary: (batch, tokens, words).

    transformers' head multiplies with the word embeddings joined to a matrix of its own. A compiler folds that join;
    here the decoder is one matrix from the start, so that its keys are not those of MobileBertForMaskedLM.
    """

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__()
        self.encoder = MobileBert(config)
        self.words = WordHead(config.hidden_size, config.vocab_size, config.layer_norm_eps, nn.ReLU())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        return self.words(self.encoder(input_ids, attention_mask, token_type_ids))  # type: ignore[no-any-return]


def mobilebert() -> MobileBert:
    """The encoder of google/mobilebert-uncased with random weights: 24,581,888 parameters.

    24 layers that work on 128 of the 512 channels, query and key behind one bottleneck, four feed-forward networks per
    layer, no layer norm (Sun et al. 2020, table 1): the defaults of MobileBertConfig.
    """
    return MobileBert(MobileBertConfig())


def mobilebert_words() -> MobileBertWords:
    """The same encoder with its masked-word head, as the phone timings of Qualcomm's AI Hub run it."""
    return MobileBertWords(MobileBertConfig())
