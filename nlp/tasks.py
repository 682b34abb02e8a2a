"""The nine tasks of GLUE (Wang et al. 2019, table 1): their official files, their classes in order, their metrics.

The order of the classes is the one by which everybody numbers them, the data set "glue" of the Hugging Face hub too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from intq.errors import IntqError


@dataclass(frozen=True)
class Task:
    """A task: where its examples lie and how its answers are judged.

    folder: of the official files. columns: one text or a pair of them, as the official files call them; online: as the
    hub calls them, where that differs. classes: () for a regression. sets: each set that is evaluated, by what its
    metrics' names end in, as (official file, split of the hub). train: the official files, the first that is there.
    header: of official files that have none. ragged: some rows of the official files lack columns, and nobody counts
    them.
    """

    name: str
    folder: str
    columns: tuple[str, ...]
    label: str
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    sets: Mapping[str, tuple[tuple[str, ...], str]] = field(default_factory=lambda: {"": (("dev.tsv",), "validation")})
    train: tuple[str, ...] = ("train.tsv",)
    header: tuple[str, ...] = ()
    online: tuple[str, ...] = ()
    ragged: bool = False

    @property
    def hub_columns(self) -> tuple[str, ...]:
        return self.online or self.columns

    @property
    def head(self) -> str:
        """The kind of head that answers it."""
        return "classification" if self.classes else "regression"


ENTAILED = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")

TASKS = {
    task.name: task
    for task in (
        Task(
            "cola",
            "CoLA",
            ("sentence",),
            "label",
            ("unacceptable", "acceptable"),
            ("matthews",),
            header=("source", "label", "mark", "sentence"),
        ),
        Task("sst2", "SST-2", ("sentence",), "label", ("negative", "positive"), ("accuracy",)),
        Task(
            "mrpc",
            "MRPC",
            ("#1 String", "#2 String"),
            "Quality",
            ("not_equivalent", "equivalent"),
            ("f1", "accuracy"),
            # GLUE's own download has dev.tsv; Microsoft's has the test set with its labels.
            {"": (("dev.tsv", "msr_paraphrase_test.txt"), "validation")},
            ("train.tsv", "msr_paraphrase_train.txt"),
            online=PAIR,
        ),
        Task("stsb", "STS-B", PAIR, "score", (), ("pearson", "spearman")),
        Task(
            "qqp",
            "QQP",
            ("question1", "question2"),
            "is_duplicate",
            ("not_duplicate", "duplicate"),
            ("f1", "accuracy"),
            ragged=True,
        ),
        Task(
            "mnli",
            "MNLI",
            PAIR,
            "gold_label",
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            {
                "_matched": (("dev_matched.tsv",), "validation_matched"),
                "_mismatched": (("dev_mismatched.tsv",), "validation_mismatched"),
            },
            online=("premise", "hypothesis"),
        ),
        Task("qnli", "QNLI", ("question", "sentence"), "label", ENTAILED, ("accuracy",)),
        Task("rte", "RTE", PAIR, "label", ENTAILED, ("accuracy",)),
        Task("wnli", "WNLI", PAIR, "label", ENTAILED[::-1], ("accuracy",)),
    )
}
GLUE = "glue"  # the name of all of them together


def task(name: str) -> Task:
    """The task with this name, however it is written: "sst2", "SST-2". IntqError, which lists them, for no task."""
    plain = "".join(character for character in name.lower() if character.isalnum())
    if plain not in TASKS:
        raise IntqError(f"no task is called {name!r}; there are {', '.join(TASKS)}, and {GLUE} for all of them")
    return TASKS[plain]
