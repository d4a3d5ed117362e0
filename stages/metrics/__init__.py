"""How good a detector is: arrays in, numbers out.

One rule holds everywhere: an image or a pixel is called anomalous when its score is *above* the threshold (`score > threshold`). So a part
that scores exactly as high as the worst good part ever seen is still good, and every threshold of a curve is a finite number.
"""
