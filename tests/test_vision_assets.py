"""The real weights are right on the real photos."""

import pytest
import torch

from intq.vision import assets, checkpoint
from intq.vision.data import open_dataset
from intq.vision.evaluate import evaluate


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0"])
def test_real_weights_classify_real_photos(name):
    assets.fetch(name)
    loaded = checkpoint.load(name)
    photos = open_dataset(assets.fetch("photos"), loaded.preprocess, loaded.labels)

    def predict(pixels):
        with torch.inference_mode():
            normal = torch.from_numpy(loaded.preprocess.normalize(pixels)).permute(0, 3, 1, 2)
            return loaded.model(normal).numpy()

    result = evaluate(predict, photos, 10)
    assert result["examples"] == 20 and result["metrics"]["top1"] == 18 / 20
