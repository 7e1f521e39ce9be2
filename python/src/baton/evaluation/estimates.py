"""pass@k and how sure it is, from how many of each problem's samples are right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

CONFIDENCE = 0.95
METHOD = "Wilson score interval over problems, with the effective sample size that the spread between them leaves"


@dataclass(frozen=True)
class PassAtK:
    """The mean over `problems`, and its interval; None where there are no problems."""

    k: int
    problems: int
    value: float | None
    low: float | None
    high: float | None


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that one of `k` samples is right, of `samples` with `correct` right ones:
    1 - C(samples - correct, k) / C(samples, k).

    The unbiased estimator of Chen et al., "Evaluating Large Language Models Trained on Code" (2021), section 2.1.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"pass@{k} of {correct} right samples in {samples}")
    return 1.0 - math.prod(1.0 - k / left for left in range(samples - correct + 1, samples + 1))


def estimate(counts: Sequence[tuple[int, int]], k: int, confidence: float = CONFIDENCE) -> PassAtK:
    """pass@k over problems of which `counts` has (samples, right ones), less those with fewer than `k` samples.

    A problem's samples are no independent evidence about problems, so the interval is one over problems: Wilson's
    (1927) with an effective sample size, as for samples from clusters (Korn & Graubard 1998; Franco et al. 2019,
    "Comparative Study of Confidence Intervals for Proportions in Complex Sample Surveys"). That size is
    value (1 - value) / (squared standard error of the mean over problems), at least the number of problems, and at
    most the number of disjoint groups of k samples. With one sample a problem this is Wilson's interval itself. It
    stays within 0 and 1, and has a width when all problems or none are solved.
    """
    used = [(n, c) for n, c in counts if n >= k]
    if not used:
        return PassAtK(k, 0, None, None, None)
    scores = [pass_at_k(n, c, k) for n, c in used]
    value, problems = fmean(scores), len(scores)
    most = sum(n // k for n, _ in used)
    spread = variance(scores) if problems > 1 else 0.0
    if value in (0.0, 1.0) or problems == 1:
        size = float(problems)
    elif spread == 0.0:
        size = float(most)
    else:
        size = min(max(value * (1.0 - value) * problems / spread, float(problems)), float(most))
    low, high = wilson(value, size, confidence)
    return PassAtK(k, problems, value, low, high)


def wilson(share: float, size: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a share that was seen in `size` independent trials."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    center = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    return max(0.0, min(share, center - half)), min(1.0, max(share, center + half))
