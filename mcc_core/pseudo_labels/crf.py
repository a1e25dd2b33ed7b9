"""Dense CRF post-processing of predictions (Krähenbühl and Koltun 2011), by pydensecrf.

Optional: the library comes with the extra `crf`. Nothing here needs torch, so that pool workers start quickly.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import numpy.typing as npt

from mcc_core.config import CrfConfig
from mcc_core.errors import UsageError

Image = npt.NDArray[np.uint8]  # H,W,3
Probabilities = npt.NDArray[np.float32]  # C,H,W

_LEAST = 1e-5  # probabilities are raised to this before the logarithm


PUBLISHED = CrfConfig()


def dense_crf(image: Image, probabilities: Probabilities, config: CrfConfig = PUBLISHED) -> Probabilities:
    """Class probabilities C,H,W after mean-field inference, from those of a network and the image H,W,3.

    Raises:
        UsageError: pydensecrf is not installed.
        ValueError: the shapes disagree, or the image is not 8-bit.
    """
    require_crf()
    import pydensecrf.densecrf as library

    classes, height, width = probabilities.shape
    if image.shape != (height, width, 3) or image.dtype != np.uint8:
        raise ValueError(f"image is {image.dtype} {image.shape}, not uint8 {(height, width, 3)}")
    crf = library.DenseCRF2D(width, height, classes)
    unary = -np.log(np.clip(probabilities, _LEAST, 1.0)).reshape(classes, -1)
    crf.setUnaryEnergy(np.ascontiguousarray(unary, dtype=np.float32))
    crf.addPairwiseGaussian(sxy=config.gaussian_sxy, compat=config.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=config.bilateral_sxy,
        srgb=config.bilateral_srgb,
        rgbim=np.ascontiguousarray(image),
        compat=config.bilateral_compat,
    )
    return np.array(crf.inference(config.iterations), dtype=np.float32).reshape(classes, height, width)


def require_crf() -> None:
    """Raise UsageError unless pydensecrf can be imported."""
    try:
        installed = importlib.util.find_spec("pydensecrf") is not None
    except ValueError:  # a module that was blocked from being imported
        installed = False
    if not installed:
        raise UsageError("dense CRF needs pydensecrf, which is not installed: run `pip install 'mcc[crf]'`")
