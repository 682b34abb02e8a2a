"""Text checkpoints: a folder's logits are transformers' own, and what is no text encoder is one clear error."""

import json
import logging
import pickle

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from text_models import FAMILIES, POSITIONS, longest, save_tiny, tiny_ids, tiny_tokenizer, tiny_transformer

from intq.backends import reference
from intq.errors import IntqError
from intq.nlp import checkpoint
from intq.quantize import decibel, quantize

TEXTS = [("a good film", "it was fine , and word30"), ("bad", "dull"), ("the plot is very very dull", "not so")]


@pytest.fixture(autouse=True, scope="module")
def quiet():
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def encode(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_gives_transformers_logits(family, tmp_path):
    model = save_tiny(tmp_path / "net", family, id2label={0: "no", 1: "maybe", 2: "yes"})
    loaded = checkpoint.load(tmp_path / "net")
    given = encode(tmp_path / "net")
    assert torch.equal(loaded.model(given["input_ids"]), model(**given).logits)
    assert (loaded.head, loaded.labels, loaded.name) == ("classification", ("no", "maybe", "yes"), "net")
    assert loaded.source == str((tmp_path / "net").resolve())
    assert (loaded.longest, loaded.vocabulary, loaded.functions, loaded.ranges) == (longest(family), 60, "exact", {})
    assert loaded.separator == (3 if family in ("bert", "electra") else None)
    assert loaded.padding == loaded.tokenizer.pad_token_id
    assert not loaded.model.training and not any(value.requires_grad for value in loaded.model.parameters())


@pytest.mark.parametrize("head", ["regression", "tokens"])
def test_heads(head, tmp_path):
    model = save_tiny(tmp_path, "roberta", head)
    loaded = checkpoint.load(tmp_path)
    assert loaded.head == head and len(loaded.labels) == {"regression": 0, "tokens": 3}[head]
    given = encode(tmp_path)
    found, expected = loaded.model(given["input_ids"]), model(**given).logits
    if head == "tokens":
        found, expected = (value[given["attention_mask"].bool()] for value in (found, expected))
    assert torch.equal(found, expected)


def test_sentence_embeddings(tmp_path, caplog):
    model = save_tiny(tmp_path, "bert", "embedding")
    given = encode(tmp_path)
    hidden, mask = model(**given).last_hidden_state, given["attention_mask"][..., None]
    with caplog.at_level(logging.WARNING):
        loaded = checkpoint.load(tmp_path)
    assert "is a bare encoder: its answer is the mean" in caplog.text
    assert (loaded.head, loaded.labels) == ("embedding", ())
    assert torch.equal(loaded.model(given["input_ids"]), (hidden * mask).sum(1) / mask.sum(1))

    # modules.json is sentence-transformers' mark; then the class in config.json is of no account.
    modules = [
        {"path": path, "type": f"sentence_transformers.models.{path[2:]}"} for path in ("1_Pooling", "2_Normalize")
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    edit(tmp_path / "config.json", architectures=["BertForMaskedLM"])
    assert torch.equal(checkpoint.load(tmp_path).model(given["input_ids"]), loaded.model(given["input_ids"]))
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.parent.mkdir()
    for chosen in ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, {"pooling_mode": "cls"}):
        pooling.write_text(json.dumps({"word_embedding_dimension": 32, **chosen}))
        assert torch.equal(checkpoint.load(tmp_path).model(given["input_ids"]), hidden[:, 0])
    edit(pooling, pooling_mode_max_tokens=True)
    with pytest.raises(IntqError, match="pools by cls, pooling_mode_max_tokens; taken are mean and first token"):
        checkpoint.load(tmp_path)
    for broken, match in (
        ('{"a": 1}', "is not a list"),
        ('[{"type": "x.Dense", "path": ""}]', "a module Dense behind"),
    ):
        (tmp_path / "modules.json").write_text(broken)
        with pytest.raises(IntqError, match=match):
            checkpoint.load(tmp_path)


def test_bert_words_with_two_segments_in_a_roberta(tmp_path):
    """A RoBERTa may have BERT's tokenizer and padding id: its segments are then BERT's."""
    torch.manual_seed(0)
    options = {**FAMILIES["roberta"][1], "type_vocab_size": 2, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    model = transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**options)).eval()
    model.save_pretrained(tmp_path)
    tiny_tokenizer("bert").save_pretrained(tmp_path)
    loaded, given = checkpoint.load(tmp_path), encode(tmp_path)
    assert (loaded.separator, loaded.padding, loaded.longest) == (3, 0, POSITIONS - 1)
    torch.testing.assert_close(loaded.model(given["input_ids"]), model(**given).logits)


def ibert(quant_mode: bool = False, head: str = "ForSequenceClassification"):
    torch.manual_seed(1)
    config = transformers.IBertConfig(**FAMILIES["roberta"][1], quant_mode=quant_mode, num_labels=3)
    model = getattr(transformers, "IBert" + head)(config).eval()
    for name, value in model.named_parameters():
        if "LayerNorm" not in name:
            value.data.normal_(0, 0.2)
    return model


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification", "Model"])
def test_ibert_is_the_roberta_of_its_weights(head, tmp_path):
    model = ibert(head=head)
    model.save_pretrained(tmp_path)
    tiny_tokenizer("roberta").save_pretrained(tmp_path)
    (tmp_path / "modules.json").write_text("[]")
    if head != "Model":
        (tmp_path / "modules.json").unlink()
    loaded, given = checkpoint.load(tmp_path), encode(tmp_path)
    found, mask = loaded.model(given["input_ids"]), given["attention_mask"]
    expected = model(**given)[0]
    if head == "ForTokenClassification":
        found, expected = found[mask.bool()], expected[mask.bool()]
    elif head == "Model":
        expected = (expected * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (loaded.functions, loaded.ranges) == ("exact", {})


def test_ibert_learned_ranges(tmp_path):
    model = ibert(quant_mode=True)
    tiny_tokenizer("roberta").save_pretrained(tmp_path)
    given = encode(tmp_path)
    model.train()
    with torch.no_grad():
        model(**given)
    model.eval().save_pretrained(tmp_path)
    loaded = checkpoint.load(tmp_path)
    assert loaded.functions == "ibert"
    state, modules = model.state_dict(), dict(loaded.model.named_modules())
    assert len(loaded.ranges) == 1 + 2 * 7 and set(loaded.ranges) <= set(modules)
    query = "encoder.layer.1.attention.self.query"
    learned = tuple(float(state[f"ibert.{query}_activation.{bound}"]) for bound in ("x_min", "x_max"))
    assert loaded.ranges[f"model.roberta.{query}"] == learned
    assert learned[0] < -0.1 and learned[1] > 0.1
    # One batch was seen, so that the ranges are those of the same values, up to I-BERT's own rounding.
    for name, index in (("model.roberta.embeddings.LayerNorm", 0), (f"model.roberta.{query}", 0)):
        module, seen = modules[name], []
        handle = module.register_forward_hook(lambda _module, _inputs, output, seen=seen: seen.append(output))
        loaded.model(given["input_ids"])
        handle.remove()
        low, high = loaded.ranges[name]
        assert low == pytest.approx(float(seen[index].min()), rel=0.15)
        assert high == pytest.approx(float(seen[index].max()), rel=0.15)


def test_ibert_in_integers_is_as_near_as_its_own_simulation(tmp_path):
    """From a checkpoint trained with I-BERT's simulation: its ranges are the integer network's, its answers too."""
    model = ibert(quant_mode=True).train()
    batches = [tiny_ids("roberta", 16, 20, seed) for seed in range(6)]
    with torch.no_grad():
        for ids in batches:
            model(input_ids=ids, attention_mask=(ids != 1).long())
    model.eval().save_pretrained(tmp_path)
    tiny_tokenizer("roberta").save_pretrained(tmp_path)
    loaded = checkpoint.load(tmp_path)
    graph = quantize(loaded.model, batches[:4], functions=loaded.functions, ranges=loaded.ranges)
    query = "model.roberta.encoder.layer.1.attention.self.query"
    low, high = loaded.ranges[query]
    assert graph.values[query].scale == pytest.approx(max(-low, high) / 127, rel=1e-5)
    low, high = loaded.ranges["model.roberta.encoder.layer.1.output.LayerNorm"]
    assert graph.values["model.roberta.encoder.layer.1.output.LayerNorm"].scale == pytest.approx((high - low) / 255)

    ids = tiny_ids("roberta", 32, 25, seed=9)
    (scores,) = reference.run(graph, ids.int().numpy())
    real = loaded.model(ids).numpy()
    simulated = model(input_ids=ids, attention_mask=(ids != 1).long()).logits.detach().numpy()
    answer = graph.values[graph.outputs[0]].scale * scores
    with pytest.raises(IntqError, match=r"ranges are given for 'model\.nowhere', which no value"):
        quantize(loaded.model, batches[:1], ranges={"model.nowhere": (0.0, 1.0)})
    assert decibel(np.square(real).mean(), np.square(answer - real).mean()) > 25
    assert decibel(np.square(real).mean(), np.square(answer - simulated).mean()) > 22


def test_hub_id_is_downloaded(monkeypatch, tmp_path):
    import huggingface_hub

    save_tiny(tmp_path, "distilbert")
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    loaded = checkpoint.load("someone/distilbert-tiny")
    assert (loaded.name, loaded.source) == ("distilbert-tiny", "someone/distilbert-tiny")
    assert asked[0][0] == "someone/distilbert-tiny" and "tokenizer.json" in asked[0][1]

    def unreachable(*_arguments, **_options):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(IntqError, match=r"textattack/x .*could not be fetched.*no route to the hub"):
        checkpoint.load("textattack/x")


def test_names_that_are_no_checkpoint(tmp_path):
    with pytest.raises(IntqError, match="roberta-base is an architecture without weights here"):
        checkpoint.load("roberta-base")
    with pytest.raises(IntqError, match="there is no folder"):
        checkpoint.load(tmp_path / "net")
    (tmp_path / "file").touch()
    with pytest.raises(IntqError, match="is a file: expected a folder"):
        checkpoint.load(tmp_path / "file")
    with pytest.raises(IntqError, match=r"is no checkpoint: expected .* found file"):
        checkpoint.load(tmp_path)


def test_other_kinds_of_models(tmp_path):
    save_tiny(tmp_path, "bert")
    config = tmp_path / "config.json"
    whole = config.read_text()
    for changes, match in (
        ({"architectures": ["BertForMaskedLM"]}, "holds a BertForMaskedLM, which has no head that gives an answer"),
        ({"architectures": ["BertLMHeadModel"]}, "BertLMHeadModel, which generates text; taken are encoders: bert"),
        ({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}, "which generates text"),
        ({"is_decoder": True}, "which generates text"),
        ({"architectures": ["MPNetModel"], "model_type": "mpnet"}, "type 'mpnet'; taken are the families bert"),
        ({"model_type": None}, "type None"),
        ({"architectures": ["BertForQuestionAnswering"]}, "BertForQuestionAnswering, which has no head"),
    ):
        edit(config, **changes)
        with pytest.raises(IntqError, match=match):
            checkpoint.load(tmp_path)
        config.write_text(whole)


def test_broken_folders(tmp_path):
    save_tiny(tmp_path, "bert")
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    whole, tensors = config.read_text(), load_file(weights)
    for broken in ("[]", whole[:100], "\0"):
        config.write_text(broken)
        with pytest.raises(IntqError, match=r"config\.json"):
            checkpoint.load(tmp_path)
    config.write_text(whole)

    save_file({key: value for key, value in tensors.items() if "classifier" not in key}, weights, {"format": "pt"})
    with pytest.raises(IntqError, match=r"the weights lack classifier\.bias, classifier\.weight of BertForSeq"):
        checkpoint.load(tmp_path)
    save_file(tensors | {"bert.encoder.layer.9.x": torch.zeros(2)}, weights, {"format": "pt"})
    with pytest.raises(IntqError, match=r"the weights hold bert\.encoder\.layer\.9\.x"):
        checkpoint.load(tmp_path)
    name = "bert.encoder.layer.1.output.dense.weight"
    damaged = tensors | {name: torch.full_like(tensors[name], torch.nan)}
    save_file(damaged, weights, {"format": "pt"})
    with pytest.raises(IntqError, match=rf"{name} holds 2048 NaN"):
        checkpoint.load(tmp_path)
    # Of pretraining and of old versions: not used, and no harm.
    extra = {"cls.predictions.bias": torch.zeros(60), "bert.embeddings.position_ids": torch.arange(40)[None]}
    save_file(tensors | extra, weights, {"format": "pt"})
    assert checkpoint.load(tmp_path).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(IntqError, match="do not load"):
        checkpoint.load(tmp_path)
    weights.unlink()
    with pytest.raises(IntqError, match=r"no weights: looked for model\.safetensors"):
        checkpoint.load(tmp_path)


class Harmful:
    """An object whose unpickling runs code."""

    def __reduce__(self):
        return (pytest.fail, ("code in the checkpoint ran",))


def test_pickled_weights_are_tensors_only(tmp_path):
    model = save_tiny(tmp_path, "roberta")
    (tmp_path / "model.safetensors").unlink()
    path = tmp_path / "pytorch_model.bin"
    torch.save(model.state_dict(), path)
    given = encode(tmp_path)
    assert torch.equal(checkpoint.load(tmp_path).model(given["input_ids"]), model(**given).logits)
    torch.save({**model.state_dict(), "extra": Harmful()}, path)
    with pytest.raises(IntqError, match="do not load"):
        checkpoint.load(tmp_path)
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(IntqError, match="do not load"):
        checkpoint.load(tmp_path)


def test_tokenizers(tmp_path):
    folder = tmp_path / "bare"
    tiny_transformer("roberta").save_pretrained(folder)
    with pytest.raises(IntqError, match=r"has no tokenizer: expected one of tokenizer\.json"):
        checkpoint.load(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(IntqError, match="the tokenizer does not load"):
        checkpoint.load(folder)
    tokenizer = tiny_tokenizer("roberta")
    tokenizer.pad_token = "<mask>"
    tokenizer.save_pretrained(folder)
    with pytest.raises(IntqError, match=r"pads with the id 4, but config\.json counts positions from pad_token_id 1"):
        checkpoint.load(folder)
    save_tiny(tmp_path / "bert", "bert")
    other = tiny_tokenizer("roberta")  # two separators between the texts of a pair, and no segments
    other.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    other.save_pretrained(tmp_path / "bert")
    with pytest.raises(IntqError, match="do not change after each separator"):
        checkpoint.load(tmp_path / "bert")
    tokenizer = tiny_tokenizer("bert")
    tokenizer.model_max_length = 12
    tokenizer.save_pretrained(tmp_path / "bert")
    assert checkpoint.load(tmp_path / "bert").longest == 12
