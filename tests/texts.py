"""GLUE's nine tasks as tiny official files, and a network's stand-in, for several tests."""

from pathlib import Path

import numpy as np
from text_models import tiny_tokenizer

from intq.nlp.tokens import Reader

A, B = "the film is good", "a dull plot , it was bad"

# Of each file: its header, unless it has none, and rows with the right number of fields.
FILES = {
    "CoLA/train.tsv": ["gj04\t1\t\t" + A, 'gj04\t0\t*\tit "is film very'],
    "CoLA/dev.tsv": ["gj04\t1\t\t" + A, "gj04\t0\t*\t" + B, "gj05\t0\t*\tit the is"],
    "SST-2/train.tsv": ["sentence\tlabel", A + "\t1", B + "\t0"],
    "SST-2/dev.tsv": ["sentence\tlabel", A + "\t1", '"' + B + "\t0", "very good\u2028but dull\t1"],
    "MRPC/msr_paraphrase_train.txt": ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", f"1\t70\t71\t{A}\t{B}"],
    "MRPC/dev.tsv": ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", f"1\t7\t8\t{A}\t{B}", f"0\t9\t10\t{B}\t{A}"],
    "STS-B/train.tsv": ["index\tgenre\tsentence1\tsentence2\tscore", f"0\tnews\t{A}\t{B}\t1.250"],
    "STS-B/dev.tsv": [
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        f"0\tnews\tf\t2012\t5\tnone\tnone\t{A}\t{B}\t1.250",
        f"1\tnews\tf\t2012\t6\tnone\tnone\t{A}\t{A}\t5.000",
        f"2\tnews\tf\t2012\t7\tnone\tnone\t{B}\tthe plot\t0.000",
    ],
    "QQP/train.tsv": ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", f"1\t2\t3\t{A}\t{B}\t0", "4\t5\t6\tis it"],
    "QQP/dev.tsv": [
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        f"1\t2\t3\t{A}\t{B}\t0",
        "4\t5\t6\tbroken line",
        f"7\t8\t9\t\t{A}\t1",
    ],
    "MNLI/train.tsv": ["index\tsentence1\tsentence2\tlabel1\tgold_label", f"0\t{A}\t{B}\tneutral\tneutral"],
    "MNLI/dev_matched.tsv": [
        "index\tsentence1\tsentence2\tlabel1\tlabel2\tgold_label",
        f"0\t{A}\t{B}\tneutral\tneutral\tcontradiction",
        f"1\t{A}\t{A}\tneutral\tneutral\tentailment",
    ],
    "MNLI/dev_mismatched.tsv": ["index\tsentence1\tsentence2\tlabel1\tgold_label", f"0\t{B}\t{A}\tneutral\tneutral"],
    "QNLI/train.tsv": ["index\tquestion\tsentence\tlabel", f"0\t{A}\t{B}\tnot_entailment"],
    "QNLI/dev.tsv": ["index\tquestion\tsentence\tlabel", f"0\t{A}\t{B}\tnot_entailment", f"1\t{B}\t{A}\tentailment"],
    "RTE/train.tsv": ["index\tsentence1\tsentence2\tlabel", f"0\t{A}\t{B}\tentailment"],
    "RTE/dev.tsv": ["index\tsentence1\tsentence2\tlabel", f"0\t{A}\t{B}\tentailment", f"1\t{B}\t{A}\tnot_entailment"],
    "WNLI/train.tsv": ["index\tsentence1\tsentence2\tlabel", f"0\t{A}\t{B}\t1"],
    "WNLI/dev.tsv": ["index\tsentence1\tsentence2\tlabel", f"0\t{A}\t{B}\t1", f"1\t{B}\t{A}\t0"],
}


def write(path: Path, *lines: str) -> Path:
    """A file of these lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return path


def write_glue(folder: Path) -> Path:
    """The nine tasks' official folders."""
    for name, lines in FILES.items():
        write(folder / name, *lines)
    return folder


def tiny_reader(family: str = "bert", **options) -> Reader:
    """A reader of the tiny tokenizer: 60 ids, 20 tokens at most."""
    tokenizer = tiny_tokenizer(family)
    return Reader(tokenizer, **({"padding": tokenizer.pad_token_id, "longest": 20, "vocabulary": 60} | options))


def stand_in(outputs: int, tokens: bool = False, padding: int = 0):
    """ids (n, s) -> int32 scores (n, outputs) or (n, s, outputs) that depend on all tokens but padding.

    A network's stand-in: a text gets the same scores alone and in a padded batch.
    """

    def predict(ids: np.ndarray) -> np.ndarray:
        assert ids.dtype == np.int32 and ids.ndim == 2
        weights = np.random.default_rng(0).integers(-99, 99, (60, outputs))
        each = weights[ids] * (ids != padding)[..., None]  # (n, s, outputs)
        scores = each * (1 + np.arange(ids.shape[1]))[:, None]
        return (scores if tokens else scores.sum(1)).astype(np.int32)

    return predict


def metadata(head: str, labels=(), **more) -> dict:
    """What travels in the graph of a tiny network."""
    own = {"domain": "nlp", "model": "tiny", "source": "", "head": head, "labels": list(labels)}
    return own | {"padding": 0, "longest": 20, "vocabulary": 60, "scale": 0.5} | more
