"""Encoders as modules of ids alone: transformers' own answers, any batch and length, and random networks alive."""

import numpy as np
import pytest
import torch
from text_models import BERT_SEPARATOR, FAMILIES, longest, tiny, tiny_ids

from intq.errors import IntqError
from intq.nlp.models import ARCHITECTURES, architecture
from intq.nlp.synthetic import OUTLIER_GAIN, random_checkpoint, random_ids
from intq.nlp.wrap import FromIds

HEADS = ("classification", "regression", "tokens", "embedding")
# Parameters of the published networks with a new head of two labels, as transformers counts them.
PARAMETERS = {
    "roberta-base": 124_647_170,
    "roberta-large": 355_361_794,
    "bert-base": 109_483_778,
    "distilbert-base": 66_955_010,
    "xlm-roberta-base": 278_045_186,
    "ibert-roberta-base": 124_647_170,
    "minilm-l6": 22_713_986,
}


def plainly(family: str, network: FromIds, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers answers to a tokenizer's input_ids, attention_mask and token_type_ids; and the mask."""
    mask = (ids != network.padding).long()
    given = {"input_ids": ids, "attention_mask": mask}
    if family in ("bert", "electra"):
        segments = torch.zeros_like(ids)
        for row, sentence in enumerate(ids.tolist()):
            end = sentence.index(BERT_SEPARATOR) if BERT_SEPARATOR in sentence else len(sentence)
            segments[row, end + 1 :] = 1
        given["token_type_ids"] = segments * mask  # tokenizers give padding the segment 0
    output = network.model(**given)
    return (output.logits if network.pooling is None else output.last_hidden_state), mask


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_alone_give_what_transformers_gives(family, head):
    network, ids = tiny(family, head), tiny_ids(family, 6, 13)
    expected, mask = plainly(family, network, ids)
    found = network(ids)
    if head == "tokens":
        expected, found = expected[mask.bool()], found[mask.bool()]
    elif head == "embedding":
        expected = (expected * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    assert torch.equal(found, expected)
    assert found.std() > 0.05
    assert torch.equal(network(ids.int()), network(ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sentence_does_not_see_the_padding(family):
    network, ids = tiny(family), tiny_ids(family, 5, 17, seed=1)
    for row in ids:
        alone = row[row != network.padding][None]
        torch.testing.assert_close(network(alone)[0], network(ids)[(ids == row).all(1)][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "head"), [*((family, "classification") for family in FAMILIES), ("bert", "tokens")])
def test_export_with_any_batch_and_any_length(family, head):
    network, dynamic = tiny(family, head), torch.export.Dim.DYNAMIC
    program = torch.export.export(network, (tiny_ids(family, 2, 9),), dynamic_shapes=({0: dynamic, 1: dynamic},))
    operations = [str(node.target) for node in program.graph.nodes]
    assert operations.count("aten.scaled_dot_product_attention.default") == 2
    assert not [name for name in operations if "softmax" in name or "matmul" in name or "expand" in name]
    exported = program.module()
    for n, s in ((1, 1), (3, 2), (4, longest(family))):
        ids = tiny_ids(family, n, s, seed=n)
        assert torch.equal(exported(ids), network(ids))


def test_first_token_pooling():
    mean, ids = tiny("roberta", "embedding"), tiny_ids("roberta", 3, 8)
    first = FromIds(mean.model, mean.padding, None, "first")
    assert torch.equal(first(ids), plainly("roberta", mean, ids)[0][:, 0])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_published_sizes(name):
    import transformers

    known = architecture(name)
    config = getattr(transformers, known.prefix + "Config")(**known.settings)
    with torch.device("meta"):
        model = getattr(transformers, known.prefix + "ForSequenceClassification")(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert config.pad_token_id == known.padding


def test_random_networks_are_reproducible_and_alive():
    before = torch.random.get_rng_state()
    one, again, other = (random_checkpoint("minilm-l6", seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert (one.tokenizer, one.longest, one.padding, one.vocabulary) == (None, 512, 0, 30522)
    assert (one.head, one.labels, one.separator) == ("classification", ("negative", "positive"), 102)
    for key, value in one.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])
    assert not torch.equal(next(one.model.parameters()), next(other.model.parameters()))
    widths = []
    for module in one.model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            assert module.weight.max() > 0.6 * OUTLIER_GAIN
            module.register_forward_hook(lambda _module, _inputs, output: widths.append(output.std().item()))
    logits = one.model(torch.from_numpy(random_ids(8, 24, one.vocabulary, 0, 101, 102)))
    assert len(widths) == 13 and min(widths) > 0.5 and max(widths) < 3
    assert logits.std(0).min() > 0.05 and logits.abs().max() < 5


def test_positions_count_from_the_padding_id():
    roberta = architecture("roberta-base")
    assert roberta.settings["max_position_embeddings"] - roberta.padding - 1 == 512
    assert architecture("ibert-roberta-base").functions == "ibert"


def test_random_ids_are_sentences():
    ids = random_ids(40, 16, 60, 1, 0, 2, seed=5)
    assert ids.dtype == np.int32 and ids.shape == (40, 16) and ids.min() >= 0 and ids.max() < 60
    np.testing.assert_array_equal(ids, random_ids(40, 16, 60, 1, 0, 2, seed=5))
    lengths = (ids != 1).sum(1)
    assert lengths[0] == 16 and lengths.min() >= 2 and len(set(lengths)) > 8
    for row, length in zip(ids, lengths, strict=True):
        assert row[0] == 0 and row[length - 1] == 2 and (row[length:] == 1).all()
    assert {1, 2} == set((ids == 2).sum(1))
    assert random_ids(2, 1, 9, 1, 0, 2).shape == (2, 1)


def test_unknown_architecture():
    with pytest.raises(IntqError, match="no architecture is called 'gpt2'; there are roberta-base"):
        random_checkpoint("gpt2")
