"""After a storm of bad clients everything is as it was before; `benchmarks/storm.py` is the long version."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

from running_service import RunningService
from storm import BEHAVIOURS, Storm, config, leaks

NUM_WARM_UP = 200
NUM_CLIENTS = 600


async def test_a_storm_leaves_nothing_behind(checkpoint: Path, tmp_path: Path) -> None:
    """No sequence, no KV block, no connection, no thread, no descriptor, no memory; and the same answers."""
    path = tmp_path / "penstock.yaml"
    path.write_text(json.dumps(config(str(checkpoint), kv_cache_mb=1)))
    with RunningService("up", "--config", str(path)) as service:
        port = urlsplit(service.wait_announced()).port
        assert port is not None
        children = service.children()
        storm = Storm(service, port, seed=1)
        expected = await storm.ask()
        before = await storm.census()
        await storm.rage(iter(range(NUM_WARM_UP)))
        warm = await storm.census()
        await storm.rage(iter(range(NUM_WARM_UP, NUM_WARM_UP + NUM_CLIENTS)))
        after = await storm.census(lambda now: now.work == 0 and now.descriptors == before.descriptors)
        assert leaks(before, warm, after) == []
        assert await storm.ask() == expected
        assert service.children() == children  # nothing was restarted
        assert '"level": "error"' not in service.stderr
        assert sum(storm.outcomes.values()) == NUM_WARM_UP + NUM_CLIENTS
        assert {outcome.split(":")[0] for outcome in storm.outcomes} == {b.__name__ for b in BEHAVIOURS}
        assert storm.outcomes["whole: 200"]
