"""Which texts come next: every text once, within the bounds, and nobody waits for a large request."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.encoder_queue import Job, JobQueue

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


@given(
    jobs=st.lists(st.tuples(LENGTHS, st.integers(0, 5), st.integers(1, 9)), max_size=6),
    max_texts=st.integers(1, 8),
    max_tokens=st.integers(1, 60),
)
def test_every_text_comes_once_within_the_bounds(
    jobs: list[tuple[list[int], int, int]], max_texts: int, max_tokens: int
) -> None:
    """Jobs arrive before some step and are removed some steps later; then nothing of them comes any more."""
    queue: JobQueue[int] = JobQueue(max_texts, max_tokens)
    waiting = [Job(lengths, number) for number, (lengths, _, _) in enumerate(jobs)]
    removed, seen, step = set[int](), list[tuple[int, int]](), 0
    while step < 20 or len(queue):
        for job, (_, arrival, stay) in zip(waiting, jobs, strict=True):
            if step == arrival:
                queue.add(job)
            if step == arrival + stay:
                queue.remove(job)
                removed.add(job.work)
        batch = queue.next_batch()
        lengths = [job.lengths[index] for job, index in batch]
        assert len(batch) <= max_texts
        assert sum(lengths) <= max_tokens or len(batch) == 1
        assert not any(job.work in removed for job, _ in batch)
        seen += [(job.work, index) for job, index in batch]
        step += 1
    assert len(set(seen)) == len(seen)
    for job in waiting:
        computed = {index for number, index in seen if number == job.work}
        assert computed | set(job.left) == set(range(len(job.lengths)))
        assert not computed & set(job.left)


@given(lengths=LENGTHS, max_texts=st.integers(1, 4), max_tokens=st.integers(1, 60))
def test_a_job_is_computed_to_its_end(lengths: list[int], max_texts: int, max_tokens: int) -> None:
    """Texts longer than a batch may be, too."""
    queue: JobQueue[None] = JobQueue(max_texts, max_tokens)
    queue.add(Job(lengths, None))
    seen = [index for _ in lengths for _, index in queue.next_batch()]
    assert sorted(seen) == list(range(len(lengths)))
    assert len(queue) == 0


@given(others=st.integers(1, 5), longest=st.integers(1, 40))
def test_a_small_job_does_not_wait_for_a_large_one(others: int, longest: int) -> None:
    """It has its text computed within as many batches as there are jobs."""
    queue: JobQueue[str] = JobQueue(max_texts=8, max_tokens=40)
    for _ in range(others):
        queue.add(Job([longest] * 2000, "large"))
    queue.next_batch()
    queue.add(Job([40], "small"))
    batches = [queue.next_batch() for _ in range(others + 1)]
    assert any(job.work == "small" for batch in batches for job, _ in batch)


def test_texts_of_a_batch_are_of_similar_length() -> None:
    """A job's texts go from the longest to the shortest."""
    queue: JobQueue[None] = JobQueue(max_texts=3, max_tokens=100)
    queue.add(Job([1, 9, 2, 8, 3, 7], None))
    lengths = [[job.lengths[index] for job, index in queue.next_batch()] for _ in range(2)]
    assert lengths == [[9, 8, 7], [3, 2, 1]]


def test_jobs_share_a_batch() -> None:
    """One text each in turn."""
    queue: JobQueue[str] = JobQueue(max_texts=5, max_tokens=100)
    queue.add(Job([1] * 9, "a"))
    queue.add(Job([1] * 9, "b"))
    assert [job.work for job, _ in queue.next_batch()] == ["a", "b", "a", "b", "a"]
    assert [job.work for job, _ in queue.next_batch()] == ["b", "a", "b", "a", "b"]


def test_late_jobs_are_taken_out() -> None:
    """At their deadline, not before."""
    queue: JobQueue[str] = JobQueue(max_texts=5, max_tokens=100)
    queue.add(Job([1], "late", deadline=2.0))
    queue.add(Job([1], "in time", deadline=2.5))
    assert queue.expired(1.9) == []
    assert [job.work for job in queue.expired(2.0)] == ["late"]
    assert [job.work for job, _ in queue.next_batch()] == ["in time"]
