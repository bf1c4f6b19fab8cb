"""Images with fixed seeds: settings, generation, and the folder of a run's images."""

from __future__ import annotations

from unlearnbench.sampling.folder import link_images as link_images
from unlearnbench.sampling.folder import sample as sample
from unlearnbench.sampling.generation import ImageGenerator as ImageGenerator
from unlearnbench.sampling.generation import NonFiniteSample as NonFiniteSample
from unlearnbench.sampling.generation import SamplingBatch as SamplingBatch
from unlearnbench.sampling.generation import encode_images as encode_images
from unlearnbench.sampling.generation import generate as generate
from unlearnbench.sampling.settings import Sampling as Sampling
