"""kvpress 0.5.5 on the same sequences: its presses evict after the same prefix, the same continuation is scored.

    python -m experiments.decode_cache.kvpress_peer            # makes the environment, runs, writes kvpress.csv
    python -m experiments.decode_cache.run tables

kvpress pins an older transformers, so it runs in an environment of its own, in the user's cache folder, which sees
this one's torch; sequences go there and losses come back as files. The full cache's loss is measured there as well.
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from experiments.common import Rows

HERE = Path(__file__).parent
PACKAGES = ("kvpress==0.5.5", "transformers<5.3")
PRESSES = ("ObservedAttentionPress", "SnapKVPress", "ExpectedAttentionPress", "TOVAPress", "KeyDiffPress", "KnormPress",
           "StreamingLLMPress", "PyramidKVPress")  # fmt: skip

# Runs in the other environment: reads a job, writes {press: {budget: [loss of each sequence]}}.
PROGRAM = """
import json, sys
import torch, kvpress
from transformers import AutoModelForCausalLM, DynamicCache
from torch.nn.functional import cross_entropy

job = json.loads(open(sys.argv[1]).read())
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16, attn_implementation="sdpa").eval()
prefix, out = job["prefix"], {}
with torch.no_grad():
    for name, budget in [("full", 1.0)] + [(p, b) for p in job["presses"] for b in job["budgets"]]:
        # Weights of attention come from the eager implementation alone.
        model.set_attn_implementation("eager" if name == "ObservedAttentionPress" else "sdpa")
        losses = []
        for tokens in job["sequences"]:
            ids, cache = torch.tensor([tokens]), DynamicCache()
            if name == "full":
                model(ids[:, :prefix], past_key_values=cache, logits_to_keep=1)
            else:
                press = getattr(kvpress, name)(compression_ratio=1 - budget)
                with press(model):
                    extra = {"output_attentions": True} if name == "ObservedAttentionPress" else {}
                    model(ids[:, :prefix], past_key_values=cache, logits_to_keep=1, **extra)
            at = torch.arange(prefix, ids.shape[1] - 1)
            logits = model(ids[:, prefix:-1], past_key_values=cache, position_ids=at[None]).logits
            losses.append(float(cross_entropy(logits[0].float(), ids[0, prefix + 1 :])))
        out.setdefault(name, {})[str(budget)] = losses
        print(name, budget, sum(losses) / len(losses), flush=True)
        open(sys.argv[2], "w").write(json.dumps(out))
"""


def environment(folder: Path) -> Path:
    """Return the Python of the environment, made where it is not there."""
    python = folder / "bin" / "python"
    if not (folder / ".made").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        packages = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip
        # What this environment has, torch above all, is seen after what that one has itself.
        (Path(packages) / "zz_outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (folder / ".made").touch()
    return python


def main() -> None:
    from experiments.decode_cache.documents import sequences
    from experiments.decode_cache.run import BUDGETS, COLUMNS, LENGTHS
    from experiments.smollm2 import cache_folder, load_smollm2

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="test", choices=["validation", "test"])
    parser.add_argument("--presses", nargs="*", default=PRESSES)
    parser.add_argument("--budgets", type=float, nargs="*", default=BUDGETS)
    parser.add_argument("--environment", type=Path, default=cache_folder() / "kvpress")
    options = parser.parse_args()
    python = environment(options.environment)
    _, tokenizer = load_smollm2()
    prefix, continuation, count = LENGTHS[1024]
    some = sequences(tokenizer, options.part, prefix + continuation, count)
    rows = Rows(HERE / "kvpress.csv", COLUMNS, COLUMNS[:-1])
    with tempfile.TemporaryDirectory() as scratch:
        job, answer, program = (Path(scratch) / name for name in ("job.json", "answer.json", "program.py"))
        job.write_text(json.dumps({
            "model": str(cache_folder() / "smollm2-135m-instruct"), "prefix": prefix, "presses": options.presses,
            "budgets": options.budgets, "sequences": [s.tokens for s in some],
        }))  # fmt: skip
        program.write_text(PROGRAM)
        subprocess.run([python, program, job, answer], check=True)
        found = json.loads(answer.read_text())
    for press, budgets in found.items():
        for budget, losses in budgets.items():
            name = "full" if press == "full" else f"kvpress {press.removesuffix('Press')}"
            rows.add(
                [{"part": options.part, "length": 1024, "genre": s.genre, "document": s.document, "offset": s.offset,
                  "mode": "once", "policy": name, "budget": budget, "nll": nll}
                 for s, nll in zip(some, losses, strict=True)]
            )  # fmt: skip


if __name__ == "__main__":
    main()
