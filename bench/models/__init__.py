"""Models by name: shapes with random weights, a checkpoint in a package, a folder, or the hub.

A name is looked up in this order: a file of ``suites/models``, a local directory in the Hugging
Face format (``config.json`` and safetensors), a hub name ``owner/name``.

    names()      what is built in
    prepare()    everything slow or one-off, before any run is measured
    load()       the model of one run
    load_shape() the same module without its weights, for predictions

To add a shape, write one file into ``suites/models``; nothing else. Importing this package does
not import torch.
"""

from __future__ import annotations

from bench.models.catalogue import names
from bench.models.loaded import Kind, LoadedModel

__all__ = ["Kind", "LoadedModel", "load", "load_shape", "names", "prepare"]


def prepare(name: str) -> None:
    """Do once what must not happen inside a measured run: download, or convert into the cache.

    Several processes may call it at the same time; it returns when the model is ready.

    Raises:
        UserError: no such model, the hub can't be reached, a package is missing, or no space.

    """
    # Why here: torch and transformers take seconds to import, and `names` needs neither.
    from bench.models.resolve import resolve

    resolve(name).prepare()


def load(
    name: str, *, dtype: str, device: str, seed: int, head_classes: int | None = None
) -> LoadedModel:
    """Build the model of one run: evaluation mode, every parameter requires a gradient.

    Args:
        name: built-in, directory, or hub name.
        dtype: of all weights: "float32", "bfloat16" or "float16".
        device: "cpu", "cuda" or "cuda:N". Weights are made there, without a second copy.
        seed: of random weights; a checkpoint ignores it. The same seed gives the same bits on
            the same kind of device. Global random streams are left as they were.
        head_classes: put a zero classification head with so many classes (``WithHead``) in the
            place of the model's own head.

    Raises:
        UserError: as ``prepare``; or the checkpoint does not hold all of the model's weights; or
            an encoder is asked for without a classification head.

    """
    from bench.models.resolve import resolve  # why here: see prepare

    return resolve(name).load(dtype=dtype, device=device, seed=seed, head_classes=head_classes)


def load_shape(
    name: str, *, dtype: str, device: str, head_classes: int | None = None
) -> LoadedModel:
    """Build the same module, tokenizer and facts as ``load``, with weights that mean nothing.

    No weight is read from disk, so it works on ``device="meta"`` and under FakeTensorMode.

    Raises:
        UserError: as ``prepare``; or an encoder is asked for without a classification head.

    """
    from bench.models.resolve import resolve  # why here: see prepare

    return resolve(name).load_shape(dtype=dtype, device=device, head_classes=head_classes)
