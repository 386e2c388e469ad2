"""The decoders of tests/tiny_models.py as checkpoints, with names and fingerprints."""

import functools

import numpy as np
from tiny_models import CONFIGS, random_decoder

from pintern.models.families import FAMILIES, decoder_config
from pintern.models.layout import (
    model_fingerprint,
    parameters_by_path,
    places_of,
    stored_tensor,
    tensor_digest,
)
from pintern.models.load import Checkpoint


@functools.cache
def checkpoint(family: str) -> Checkpoint:
    """The random decoder of a family as if it had been loaded."""
    kind, decoder = FAMILIES[family], random_decoder(family)
    config = decoder_config(kind, CONFIGS[family])
    weights = parameters_by_path(decoder)
    digests = {
        place.name: tensor_digest(stored_tensor(weights, place, np.float32))
        for place in places_of(kind, config)
    }
    fingerprint = model_fingerprint(config, digests)
    return Checkpoint(decoder, config, kind, CONFIGS[family], None, fingerprint)
