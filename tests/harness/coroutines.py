"""Tests that are coroutine functions, played on a stage of their module's choice."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection


def as_test(scenario, stage: Collection[str], play: Callable, options: Collection[str] = ()):
    """A test of ``scenario``, as pytest wants it.

    ``play(call, **options)`` has to run ``call(**props)``, a coroutine, with a value for each name
    in ``stage``; those are passed on that ``scenario`` takes. Its other parameters, and
    ``options``, come from pytest.
    """
    wanted = inspect.signature(scenario).parameters

    def test(**given):
        chosen = {name: given.pop(name) for name in options}

        def call(**props):
            return scenario(**{n: prop for n, prop in props.items() if n in wanted}, **given)

        play(call, **chosen)

    others = [parameter for name, parameter in wanted.items() if name not in stage]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    test.__signature__ = inspect.Signature(
        [*others, *(inspect.Parameter(name, kind) for name in options)]
    )
    test.__name__, test.__doc__ = scenario.__name__, scenario.__doc__
    return test
