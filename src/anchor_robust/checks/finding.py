"""What a check says, and how sure it has to be before it warns."""

from scipy.special import bdtrc

Finding = dict[str, str]

# A sound model is falsely accused by one comparison at most once in so many evaluations.
ALARM = 1 / 1000


def finding(name: str, fault: bool, seen: str, advice: str) -> Finding:
    """An entry of `checks` in evaluation.json: what was seen and, with a warning, what it means and what to do."""
    return {"name": name, "verdict": "warn" if fault else "pass", "detail": f"{seen}; {advice}" if fault else seen}


def skipped(name: str, reason: str) -> Finding:
    return {"name": name, "verdict": "skip", "detail": reason}


def beyond(count: int, n: int, tolerated: float) -> bool:
    """Whether `count` of n shows a share above `tolerated`: the exact one-sided binomial test at level ALARM.

        P[X >= count] < ALARM,   X ~ Binomial(n, tolerated)

    So six of 100 images are beyond 1 %, and five are not.
    """
    return count > 0 and float(bdtrc(count - 1, n, tolerated)) < ALARM
