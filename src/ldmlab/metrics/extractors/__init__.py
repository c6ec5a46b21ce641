"""Feature extractors: the networks with whose eyes sets of images are compared."""

from ldmlab.metrics.extractors.base import FeatureExtractor, Features, check_judge, full_precision, to_uint8
from ldmlab.metrics.extractors.effnet import EffNetLite0
from ldmlab.metrics.extractors.inception import InceptionV3
from ldmlab.metrics.extractors.transformer import CLIP, DINOv2

__all__ = [
    "CLIP",
    "DINOv2",
    "EffNetLite0",
    "FeatureExtractor",
    "Features",
    "InceptionV3",
    "check_judge",
    "full_precision",
    "to_uint8",
]
