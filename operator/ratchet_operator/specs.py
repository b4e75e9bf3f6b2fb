"""Specs as their models. They change far more rarely than they are looked at, so each is parsed once."""

from functools import lru_cache
from typing import TypeVar, cast

import orjson

from ratchet.api.v1alpha1.base import ApiModel
from ratchet_operator.kinds import Json, spec_of

Model = TypeVar("Model", bound=ApiModel)
REMEMBERED = 512  # what moves at once; a thousand jobs at rest need no models


def parsed(model: type[Model], obj: Json) -> Model:
    """The spec of an object, which is shared with others who ask for it: models are immutable.

    Raises:
        ValidationError: it breaks the model's rules.

    """
    return cast(Model, _parsed(model, orjson.dumps(spec_of(obj))))


@lru_cache(REMEMBERED)
def _parsed(model: type[ApiModel], text: bytes) -> ApiModel:
    return model.model_validate(orjson.loads(text))
