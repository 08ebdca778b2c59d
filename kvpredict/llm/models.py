"""Causal language models and tokenizers of transformers, by folder or name."""

from pickle import UnpicklingError
from typing import Any

from kvpredict.core.errors import KvpredictError, MissingExtra

__all__ = ["load_model", "load_tokenizer"]


def load_model(name: str, dtype: str = "auto", device: str = "cpu", threads: int | None = None) -> tuple[Any, Any]:
    """Return a causal LM, ready for inference, and its tokenizer.

    Parameters
    ----------
    name : str
        A folder or a name on the Hugging Face hub.
    dtype : str, default "auto"
        auto | float32 | bfloat16 | float16
    device : str, default "cpu"
    threads : int, optional
        Of the CPU, for this process.
    """
    try:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise MissingExtra(f'models need transformers: pip install "kvpredict[llm]" ({error})') from error
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        float(torch.ones(1, device=device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # not compiled for it, or none is there
        raise KvpredictError(
            f"device={device} cannot be used here ({_first_line(error)}): give another, such as cpu"
        ) from error
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, attn_implementation="sdpa")
    except (OSError, ValueError) as error:
        raise KvpredictError(f"no causal language model at {name}: {_first_line(error)}") from error
    except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
        raise KvpredictError(
            f"the weights of {name} cannot be read ({_first_line(error)}): copy or download them again"
        ) from error
    tokenizer = load_tokenizer(name)
    model.to(device)  # type: ignore[arg-type]
    return model.eval(), tokenizer


def load_tokenizer(name: str) -> Any:
    """Return the tokenizer in a folder, or of that name on the Hugging Face hub."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtra(f'tokenizers need transformers: pip install "kvpredict[llm]" ({error})') from error
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise KvpredictError(f"no tokenizer at {name}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
