"""VILA in a process of its own: TensorFlow only, none of this package; run as a script by ``vila.py``.

Reads frames from standard input (4 bytes, big-endian: length; then that many bytes of PNG) and answers each with one
line holding the score in 0..1. A first line ``ready`` says that the model is loaded.
"""

from __future__ import annotations

import os
import struct
import sys


def main(location: str) -> None:
    """Load the SavedModel at ``location`` (a folder, or a TensorFlow Hub address) and answer until input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # TensorFlow may print to standard output: let that go to standard error
    import tensorflow as tf

    if os.path.isdir(location):  # noqa: PTH112  (this script runs under any interpreter)
        model = tf.saved_model.load(location)
    else:
        import tensorflow_hub

        model = tensorflow_hub.load(location)
    predict = model.signatures["serving_default"]
    answers.write("ready\n")
    answers.flush()
    while header := sys.stdin.buffer.read(4):
        picture = sys.stdin.buffer.read(struct.unpack(">I", header)[0])
        (score,) = predict(tf.constant(picture)).values()
        answers.write(f"{float(score)!r}\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
