"""Causal language models and tokenizers of transformers, by folder or name."""

import logging
import threading
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from kvpredict.core.errors import KvpredictError, MissingExtra

__all__ = ["load_model", "load_tokenizer"]

PATIENCE = 5.0  # seconds for the hub to answer
log = logging.getLogger("kvpredict.llm")


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
    offline = _offline(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, attn_implementation="sdpa", local_files_only=offline
        )
    except (OSError, ValueError) as error:
        found = _unreachable() if offline else _first_line(error)
        raise KvpredictError(f"no causal language model at {name}: {found}") from error
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
    offline = _offline(name)
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=offline)
    except (OSError, ValueError) as error:
        found = _unreachable() if offline else _first_line(error)
        raise KvpredictError(f"no tokenizer at {name}: {found}") from error


def _offline(name: str) -> bool:
    """Tell whether ``name`` is no folder, and the hub cannot be asked for it.

    Without a network transformers tries again and again, for most of a minute; this one question takes seconds.
    """
    from huggingface_hub import constants, get_session

    if Path(name).exists():
        return False
    if constants.HF_HUB_OFFLINE:
        return True
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=PATIENCE))
        except Exception as error:  # of whatever class the hub's client has
            log.debug("the Hugging Face hub does not answer: %s", error)

    asking = threading.Thread(target=ask, daemon=True)  # a name server that is silent heeds no timeout
    asking.start()
    asking.join(PATIENCE)
    return not answers


def _unreachable() -> str:
    return (
        "it is no folder and not among the files downloaded before, and the Hugging Face hub does not answer, or "
        "HF_HUB_OFFLINE is set: give a folder that holds it"
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
