"""The media of the generated welds: what happens (evidence, process), and how each medium shows it (sensors, film, sound, photos)."""
