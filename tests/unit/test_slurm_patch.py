"""A status question to SLURM is asked until it is answered."""

import asyncio
import logging
from types import SimpleNamespace

from workflow.slurm_patch import install


def make_plugin(answers, ages):
    async def query_job_status(command, logger):
        return answers.pop(0)

    return SimpleNamespace(query_job_status=query_job_status, get_min_job_age=lambda: ages.pop(0))


def test_no_answer_is_not_taken_for_one(caplog):
    plugin = make_plugin([(None, None), (None, None), ({"7": "RUNNING"}, 0.1)], [600])
    install(plugin, every_s=0)
    answer = asyncio.run(plugin.query_job_status("squeue --me", logging.getLogger("test")))
    assert answer == ({"7": "RUNNING"}, 0.1)
    assert [r.getMessage() for r in caplog.records] == [
        "SLURM does not answer `squeue`; its jobs go on. Asked again in 0 s."
    ] * 2


def test_an_empty_answer_is_an_answer():
    plugin = make_plugin([({}, 0.1)], [600])
    install(plugin)
    assert asyncio.run(plugin.query_job_status("squeue", logging.getLogger("test"))) == ({}, 0.1)


def test_the_age_is_remembered_while_nobody_tells_it():
    plugin = make_plugin([], [600, None, 300, None])
    install(plugin)
    assert [plugin.get_min_job_age() for _ in range(3)] == [600, 300, 300]


def test_once_is_enough():
    plugin = make_plugin([({}, 0.1)], [600])
    install(plugin)
    first = plugin.query_job_status
    install(plugin)
    assert plugin.query_job_status is first
