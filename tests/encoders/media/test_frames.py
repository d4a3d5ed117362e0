import numpy as np
import torch
from PIL import Image

from stages.encoders import media
from stages.encoders.media.encoder import Place
from tests.datasets.media_files import write_film

SMALL = {"backbone": "test_efficientnet", "weights": "random", "image_size": 64}


def _encoder(**options):
    return media.build("f", "frames", {**SMALL, **options}, Place("cpu", 1, None))


def test_four_cells_average_to_the_whole_and_tell_where_something_is(tmp_path):
    draw = np.random.default_rng(0)
    plain = draw.integers(100, 110, (64, 64, 3), np.uint8)
    spotted = plain.copy()
    spotted[50:60, 4:14] = draw.integers(0, 255, (10, 10, 3), np.uint8)
    for name, picture in (("plain", plain), ("spotted", spotted)):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    cells, whole = _encoder(grid=2, layers=["layer2"]), _encoder(layers=["layer2"])
    plain_cells, spotted_cells = cells([tmp_path / "plain.png", tmp_path / "spotted.png"])
    torch.testing.assert_close(plain_cells.values.mean(0), whole([tmp_path / "plain.png"])[0].values[0], rtol=0, atol=1e-6)
    assert int((spotted_cells.values - plain_cells.values).norm(dim=1).argmax()) == 2, "below on the left: third in reading order"
    assert plain_cells.time.tolist() == [0, 0, 0, 0]


def test_a_film_of_one_picture_gives_the_token_of_that_picture(tmp_path):
    film = write_film(tmp_path / "a.mp4", [120] * 6, size=64)
    Image.fromarray(np.full((64, 64, 3), 120, np.uint8)).save(tmp_path / "a.png")
    moving, still = _encoder(reads="video", frames=3)([film])[0], _encoder()([tmp_path / "a.png"])[0]
    assert moving.time.tolist() == [0, 0.5, 1] or np.allclose(moving.time, [0, 0.4, 1])
    torch.testing.assert_close(moving.values, still.values.expand(3, -1), rtol=0.05, atol=0.05)
