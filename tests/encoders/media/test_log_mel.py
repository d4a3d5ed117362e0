import numpy as np
import torch

from stages.datasets.media import Sound
from stages.encoders import media
from stages.encoders.media.encoder import Place
from tests.datasets.media_files import tone


def _tokens(samples, **options):
    encoder = media.build("m", "log_mel", options, Place("cpu", 1, None))
    return encoder.encode([Sound(np.asarray(samples, np.float32), 16000)])[0]


def test_a_higher_tone_is_loudest_in_a_higher_band():
    """Bands are equally wide in mel: 2595 log10(1 + f / 700)."""
    top = 2595 * np.log10(1 + 8000 / 700)
    for frequency in (300, 1000, 3000):
        band = int(_tokens(tone(frequency, 2.0)).values[1, :40].argmax())
        expected = 2595 * np.log10(1 + frequency / 700) / top * 41 - 1
        assert abs(band - expected) <= 1, frequency


def test_a_click_shows_in_the_maximum_and_hardly_in_the_mean():
    quiet = 0.001 * np.random.default_rng(0).normal(size=32000)
    clicked = quiet.copy()
    clicked[24000:24016] += 0.5
    without, with_click = _tokens(quiet), _tokens(clicked)
    change = (with_click.values - without.values)[2].view(3, 40).mean(1)  # the window around the click: mean, deviation, maximum
    assert change[2] > 10 * change[0] > 0 and change[1] > change[0]
    assert torch.equal(with_click.values[0], without.values[0]), "the window before the click has not changed"


def test_the_last_window_ends_with_the_sound_and_a_short_sound_is_one_window():
    for seconds, windows in ((0.01, 1), (1.0, 1), (1.2, 2), (2.0, 3), (2.3, 4)):
        tokens = _tokens(tone(500, seconds))
        assert len(tokens.values) == windows, seconds
    ends = 0.5 * np.ones(int(2.3 * 16000))
    ends[-800:] = 0
    assert not torch.allclose(_tokens(ends).values[-1], _tokens(0.5 * np.ones(len(ends))).values[-1], atol=1e-3)
