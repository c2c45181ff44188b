"""Weights of a model in a Volume: trained by one function, read by another, every version in full or not at all.

squall run examples/model_files.py
"""

import io
import struct

import squall

app = squall.App("model-files")


@app.function()
def train(models: squall.Volume, version: int) -> None:
    """All files of the block become one new version of the volume."""
    weights = struct.pack("2d", 2.0 * version, 1.0)
    with models.batch_upload(force=True) as batch:
        batch.put_file(io.BytesIO(weights), f"models/v{version}/weights.bin")


@app.function()
def predict(models: squall.Volume, version: int, x: float) -> float:
    """a * x + b."""
    a, b = struct.unpack("2d", b"".join(models.read_file(f"models/v{version}/weights.bin")))
    return float(a * x + b)


@app.local_entrypoint()
def main() -> None:
    """Two versions."""
    with squall.Volume.ephemeral() as models:
        train.remote(models, 1)
        models.copy_files(["models/v1"], "models/v2", recursive=True)
        print("predicted", predict.remote(models, 2, 3.0))
        train.remote(models, 2)
        print("files:", ", ".join(entry.path for entry in models.iterdir() if entry.type == "file"))
