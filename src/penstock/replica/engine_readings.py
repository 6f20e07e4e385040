"""The engine's own counters as metrics."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.engine.core import EngineStats
from penstock.engine.memory import MemoryPlan
from penstock.engine.service import EngineService
from penstock.observe import engine_names as names
from penstock.observe.metrics import Reading

_Labels = tuple[str, str]


def engine_readings(service: EngineService, labels: _Labels) -> Iterator[Reading]:
    """What the engine says of itself, under vLLM's names and ours; `labels`: model_name and engine."""
    stats = service.stats()
    yield from _vllm(stats, labels)
    yield names.REJECTIONS, (*labels, "max_num_queued_reqs"), service.num_refused
    yield names.KV_BLOCKS, ("free",), stats.num_free_blocks
    yield names.KV_BLOCKS, ("cached",), stats.num_cached_blocks
    yield names.KV_BLOCKS, ("held",), stats.num_held_blocks
    yield names.STEP_SECONDS, (), stats.step_seconds
    yield names.FAILED_STEPS, (), stats.num_failed_steps
    yield names.STUCK_STEPS, (), service.is_stuck
    yield names.EVICTIONS, (), stats.num_evictions
    yield names.COMPUTED_PROMPT_TOKENS, (), stats.prompt_tokens
    drafts = stats.drafts
    yield names.DRAFT_ACCEPTANCE, (), drafts.num_accepted / drafts.num_tokens if drafts.num_tokens else 0.0


def memory_readings(memory: MemoryPlan, labels: _Labels, *, prefix_cache: bool) -> Iterator[Reading]:
    """What was planned for at the start."""
    shape = (
        str(memory.block_size),
        str(memory.num_blocks),
        memory.compute.kv_format,
        str(prefix_cache),
    )
    yield names.CACHE_CONFIG, (*labels, *shape), 1
    yield names.MEMORY, ("weights",), memory.weight_bytes
    yield names.MEMORY, ("kv_pool",), memory.num_blocks * memory.block_bytes
    yield names.MEMORY, ("workspace",), memory.workspace_bytes


def _vllm(stats: EngineStats, labels: _Labels) -> Iterator[Reading]:
    yield names.RUNNING, labels, stats.num_running
    yield names.WAITING, labels, stats.num_waiting + stats.num_held
    yield names.WAITING_BY_REASON, (*labels, "capacity"), stats.num_waiting
    yield names.WAITING_BY_REASON, (*labels, "deferred"), stats.num_held
    used = stats.num_blocks - stats.num_free_blocks - stats.num_evictable_blocks
    yield names.KV_USAGE, labels, used / stats.num_blocks
    queried, hits = stats.prefix_queried_tokens, stats.prefix_hit_tokens
    yield names.PROMPT_TOKENS, labels, queried
    yield names.PROMPT_TOKENS_BY_SOURCE, (*labels, "local_compute"), queried - hits
    yield names.PROMPT_TOKENS_BY_SOURCE, (*labels, "local_cache_hit"), hits
    yield names.PROMPT_TOKENS_CACHED, labels, hits
    yield names.GENERATION_TOKENS, labels, stats.generated_tokens
    yield names.PREEMPTIONS, labels, stats.num_preemptions
    yield names.PREFIX_QUERIES, labels, queried
    yield names.PREFIX_HITS, labels, hits
    yield names.CORRUPTED, labels, stats.num_corrupted
    yield names.DRAFTS, labels, stats.drafts.num_drafts
    yield names.DRAFT_TOKENS, labels, stats.drafts.num_tokens
    yield names.ACCEPTED_TOKENS, labels, stats.drafts.num_accepted
    for position, count in enumerate(stats.drafts.accepted_by_position):
        yield names.ACCEPTED_BY_POSITION, (*labels, str(position)), count
    yield names.STEP_TOKENS, labels, stats.step_tokens
