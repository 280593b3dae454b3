"""What the log says of choices."""

from __future__ import annotations

import logging
from dataclasses import replace

from edged.changes import LAST_RESORT_S, ChoiceLog
from edged.records import Choice
from policies.model import RequestClass, Verdict
from tests.harness.scripted import Stage, staged


@staged
async def test_last_resorts_are_told_once_a_minute_and_real_choices_always():
    stage = Stage()
    a, b = stage.table.peek("up", RequestClass.of(0)).order
    told = []

    def choose(new, at, verdict):
        new = replace(new, state=replace(new.state, verdict=verdict))
        log(Choice("up", RequestClass.of(0), a, new, "why", at))
        levels, told[:] = list(told), []
        return levels

    class Keep(logging.Handler):
        def emit(self, record):
            told.append(record.levelname)

    log, logger, handler = ChoiceLog(), logging.getLogger("edged"), Keep()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        assert choose(a, 0.0, Verdict.DOWN) == ["INFO"]
        assert choose(b, 3.0, Verdict.DOWN) == ["DEBUG"]
        assert choose(a, LAST_RESORT_S, Verdict.DOWN) == ["INFO"]
        assert choose(b, LAST_RESORT_S + 1, Verdict.UP) == ["INFO"]
        assert choose(a, LAST_RESORT_S + 2, Verdict.DOWN) == ["INFO"]
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
