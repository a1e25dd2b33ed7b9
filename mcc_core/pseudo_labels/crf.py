"""Dense CRF post-processing of predictions (Krähenbühl and Koltun 2011), by pydensecrf.

Optional: the library comes with the extra `crf`. Nothing here needs torch, so that pool workers start quickly.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial

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


def crf_many(
    items: Iterable[tuple[Image, Probabilities]], processes: int = 1, config: CrfConfig = PUBLISHED
) -> Iterator[Probabilities]:
    """`dense_crf` of each (image, probabilities), in order; the same results whatever the number of processes.

    Items are taken as results are, at most two per process ahead, so that neither side is ever held in memory whole.
    With more than one process the caller's script needs the usual `if __name__ == "__main__":` guard.

    Raises:
        UsageError: at once, if pydensecrf is not installed or `processes` is not positive.
    """
    require_crf()
    if processes < 1:
        raise UsageError(f"processes must be at least 1, not {processes}")
    if processes == 1:
        return (dense_crf(image, probabilities, config) for image, probabilities in items)
    return _pooled(items, processes, config)


def require_crf() -> None:
    """Raise UsageError unless pydensecrf can be imported."""
    try:
        found = importlib.util.find_spec("pydensecrf") is not None
    except ValueError:  # a module that was blocked from being imported
        found = False
    if not found:
        raise UsageError("dense CRF needs pydensecrf, which is not installed: run `pip install 'mcc[crf]'`")


def _pooled(items: Iterable[tuple[Image, Probabilities]], processes: int, config: CrfConfig) -> Iterator[Probabilities]:
    run = partial(dense_crf, config=config)
    # Spawned, not forked: the caller may hold threads and a GPU.
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    waiting: deque[Future[Probabilities]] = deque()
    try:
        for image, probabilities in items:
            if len(waiting) == 2 * processes:
                yield waiting.popleft().result()
            waiting.append(pool.submit(run, image, probabilities))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
