"""A pickled checkpoint as safetensors. The only place that reads such a file, and it runs nothing that is in it."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

from kd.errors import UserError

OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def rewrite(pickled: Path, out: Path) -> int:
    """Writes the tensors of ``pytorch_model.bin`` to ``out``; how many. A tensor of two names is written once.

    Raises UserError for a file with anything but tensors in it.
    """
    import torch
    from safetensors.torch import save_file

    try:
        loaded = torch.load(pickled, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        other = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        raise UserError(
            f"{pickled} is not read: it {f'holds a {other[1]}' if other else 'is broken'}, and nothing but tensors is "
            "taken from such a file, since anything else could run as a program. Get the model as model.safetensors."
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise UserError(f"{pickled} is no state of a model: names with tensors are expected in it.")
    kept, seen = {}, set()
    for name, tensor in loaded.items():
        for old, new in OLD_NAMES.items():
            name = name.replace(old, new) if name.endswith(old) else name
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
        if place not in seen or not tensor.numel():
            kept[name] = tensor.detach().contiguous().clone()
        seen.add(place)
    save_file(kept, out, metadata={"format": "pt"})
    return len(kept)
