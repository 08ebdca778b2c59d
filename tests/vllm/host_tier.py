"""A host tier for an engine on the CPU: vLLM's own offload tier in all but the device that copies.

``HostTier`` is vLLM's ``CPUOffloadingSpec`` with its manager, sizes and policies; vLLM's connector and scheduler look
up, pin, store, load and evict through it. Only ``get_worker`` differs, which upstream refuses without a GPU: here
blocks are copied between the engine's KV tensors and tensors of the tier, from memory to memory.

A transfer is carried out and reported as late as the interface allows: at the end of the second engine step after it
was submitted, or when the scheduler waits for it. A block that is reused too early thus shows in the outputs.
"""

from typing import Any

import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec

__all__ = ["HostTier"]

STEPS = 2


class HostTier(CPUOffloadingSpec):
    """Choose it by ``"spec_name": "HostTier", "spec_module_path": "tests.vllm.host_tier"``."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        assert self.blocks_per_chunk == 1
        if self._worker is None:
            self._worker = Copier(kv_caches, self.num_chunks, forgetful=bool(self.extra_config.get("forgetful")))
        return self._worker


class Copier(OffloadingWorker):
    """Copies blocks between the engine's tensors and the tier's; ``forgetful``, for a test, it leaves loads out."""

    def __init__(self, kv_caches: CanonicalKVCaches, chunks: int, forgetful: bool) -> None:
        self.engine = [t.tensor.view(-1, t.page_size_bytes) for t in kv_caches.tensors]  # int8 [blocks, bytes]
        self.tier = [torch.zeros(chunks, t.page_size_bytes, dtype=torch.int8) for t in kv_caches.tensors]
        self.forgetful = forgetful
        self.waiting: dict[int, tuple[int, Any, Any, bool]] = {}  # job to steps left, from, to, whether it loads
        self.finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        self.waiting[job_id] = (STEPS, src_spec.block_ids, dst_spec.block_ids, False)
        return True

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        self.waiting[job_id] = (STEPS, src_spec.block_ids, dst_spec.block_ids, True)
        return True

    def get_finished(self) -> list[TransferResult]:
        self.waiting = {job: (steps - 1, *rest) for job, (steps, *rest) in self.waiting.items()}
        self.wait({job for job, (steps, *_) in self.waiting.items() if steps <= 0})
        done, self.finished = self.finished, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        for job in sorted(job_ids & self.waiting.keys()):
            _, source, target, loads = self.waiting.pop(job)
            for engine, tier in zip(self.engine, self.tier, strict=True):
                if not loads:
                    tier[target] = engine[source]
                elif not self.forgetful:
                    engine[target] = tier[source]
            size = len(source) * sum(tier.shape[1] for tier in self.tier)
            self.finished.append(TransferResult(job, success=True, transfer_size=size, transfer_time=0.0))
