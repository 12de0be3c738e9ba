"""The forward passes of BERT classifiers in JAX, line by line those of transformers and `haq.nn.models.bert`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from transformers.activations import GELUActivation
from transformers.models.bert import modeling_bert as hf

from haq.errors import InputError
from haq.export.flax_twins.twin import Twin, chain, product, run
from haq.nn.models.bert import MASKED, BertClassifier


def embeddings(twin: Twin, ids: jax.Array) -> jax.Array:
    """Word, type and position summed and normalized. ids: (batch, tokens)."""
    positions = jnp.arange(ids.shape[1])[None]
    x = run(twin, "word_embeddings", ids) + run(twin, "token_type_embeddings", jnp.zeros_like(ids))
    return run(twin, "LayerNorm", x + run(twin, "position_embeddings", positions))


def self_attention(twin: Twin, x: jax.Array, mask: jax.Array) -> jax.Array:
    """mask: (batch, 1, 1, tokens), added to the scores."""
    heads = (*x.shape[:-1], twin.source.num_attention_heads, twin.source.attention_head_size)
    query, key, value = (run(twin, name, x).reshape(heads).transpose(0, 2, 1, 3) for name in ("query", "key", "value"))
    scores = product(twin, 0, query, key.transpose(0, 1, 3, 2)) * twin.source.scaling + mask
    mixed = product(twin, 1, jax.nn.softmax(scores, axis=-1), value)
    return mixed.transpose(0, 2, 1, 3).reshape(x.shape)


def attention(twin: Twin, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Self-attention, its projection, the shortcut and the norm."""
    return run(twin, "output", run(twin, "self", x, mask), x)


def add_and_norm(twin: Twin, x: jax.Array, shortcut: jax.Array) -> jax.Array:
    """A projection, normalized together with what went around it."""
    return run(twin, "LayerNorm", run(twin, "dense", x) + shortcut)


def intermediate(twin: Twin, x: jax.Array) -> jax.Array:
    """The wide half of the feed-forward network; raises InputError on another curve than GELU."""
    act = twin.source.intermediate_act_fn
    if not isinstance(act, GELUActivation):
        raise InputError("an activation that the twin has not", got=type(act).__name__, expected="gelu")
    return jax.nn.gelu(run(twin, "dense", x), approximate=False)


def layer(twin: Twin, x: jax.Array, mask: jax.Array) -> jax.Array:
    """One transformer layer."""
    x = run(twin, "attention", x, mask)
    return run(twin, "output", run(twin, "intermediate", x), x)


def encoder(twin: Twin, x: jax.Array, mask: jax.Array) -> jax.Array:
    """The list of layers."""
    return run(twin, "layer", x, mask)


def model(twin: Twin, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """The hidden states of the last layer; the pooled first token where there is a pooler."""
    x = run(twin, "encoder", run(twin, "embeddings", ids), mask)
    return x if twin.source.pooler is None else run(twin, "pooler", x[:, 0])


def classifier(twin: Twin, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
    """(batch, tokens) ids and mask -> (batch, labels)."""
    kept = attention_mask.astype(jnp.float32)
    x = run(twin, "bert", input_ids, (1 - kept)[:, None, None, :] * MASKED)
    if twin.source.bert.pooler is None:
        weights = kept[..., None]
        x = (x * weights).sum(1) / jnp.maximum(weights.sum(1), 1)
    return run(twin, "classifier", x)


FORWARDS = {
    hf.BertEmbeddings: embeddings,
    hf.BertSelfAttention: self_attention,
    hf.BertSelfOutput: add_and_norm,
    hf.BertAttention: attention,
    hf.BertIntermediate: intermediate,
    hf.BertOutput: add_and_norm,
    hf.BertLayer: layer,
    hf.BertEncoder: encoder,
    hf.BertPooler: chain,
    hf.BertModel: model,
    BertClassifier: classifier,
}
