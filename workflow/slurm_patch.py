"""Patience with a SLURM whose controller does not answer for a while.

snakemake-executor-plugin-slurm 2.8.0 forgets all its jobs when a round of status questions gets no answer, and takes
`sacct` from then on if it could not read MinJobAge just then: Snakemake waits for ever for jobs that are long done.
"""

import asyncio
from typing import Any

EVERY_S = 30.0


def install(plugin: Any, every_s: float = EVERY_S) -> None:
    """Have the plugin ask until there is an answer, and remember MinJobAge (seconds) from the last one."""
    if hasattr(plugin, "asks_again"):
        return
    read_age, ask = plugin.get_min_job_age, plugin.query_job_status
    known = read_age()

    def get_min_job_age() -> int | None:
        nonlocal known
        found: int | None = read_age()
        known = known if found is None else found
        return known

    async def query_job_status(command: str, logger: Any) -> tuple[dict[str, str], float]:
        while True:
            answer: tuple[dict[str, str] | None, float | None] = await ask(command, logger)
            if answer[0] is not None and answer[1] is not None:
                return answer[0], answer[1]
            logger.warning(
                f"SLURM does not answer `{command.split()[0]}`; its jobs go on. Asked again in {every_s:.0f} s."
            )
            await asyncio.sleep(every_s)

    plugin.get_min_job_age, plugin.query_job_status = get_min_job_age, query_job_status
    plugin.asks_again = True
