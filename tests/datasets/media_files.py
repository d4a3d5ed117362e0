"""Writers of small films and sounds, for tests of whatever reads them."""

import wave
from fractions import Fraction

import numpy as np


def write_film(path, levels, size=32, rate=10, options=None):
    """A film of grey frames, one a level."""
    import av

    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = size, size, "yuv420p", 4_000_000
        stream.time_base = Fraction(1, rate)
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_wave(path, channels, rate=16000):
    """16-bit WAV of a list of (n,) arrays within -1..1."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.stack(channels, 1) * 32767).astype("<i2").tobytes())
    return path


def tone(frequency, seconds=0.5, rate=16000):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)
