"""Course platform: cohorts move through lectures week by week, and everybody rushes before the deadline.

What the cache of a teaching site sees. Some courses start a cohort each week; a cohort reads the pages and watches the
videos of its current week, in order, then moves on, so the working set shifts every Monday and comes back with the
next cohort, weeks later. A video is a run of large segments, of which many viewers only see the first; pages are
small. Assignments are opened and handed in shortly before the deadline on Sunday night.

Videos left early: Kim et al., "Understanding In-Video Dropouts and Interaction Peaks in Online Lecture Videos", L@S
2014. The rush: Alfi, Parisi and Pietronero, "Conference Registration: How People React to a Deadline", Nature Physics
3, 2007 (they fit a hyperbola; here the time left is exponential).
"""

from dataclasses import dataclass

import numpy as np

from kvpredict.trace.trace import Trace
from kvpredict.trace.workloads._base import Workload, param
from kvpredict.trace.workloads._draw import (
    DAY,
    day_curve,
    lognormal_sizes,
    pick,
    rank_in_group,
    rhythm,
    spread_keys,
    zipf_weights,
)
from kvpredict.trace.workloads._events import Events

__all__ = ["CoursePlatform"]

WEEK = 7 * DAY


@dataclass(frozen=True)
class CoursePlatform(Workload):
    """Students of many courses, in cohorts; sizes in bytes.

    Parameters
    ----------
    requests : int, default 1_000_000
    weeks : int, default 12
        Length of the trace.
    courses : int, default 200
    alpha : float, default 0.8
        Skew of the courses' numbers of students.
    course_weeks : int, default 6
        Length of a course.
    cohort_weeks : int, default 4
        Weeks between two cohorts of a course; which courses start in a week is drawn.
    retention : float, default 0.85
        Share of a cohort that stays on from one week to the next.
    lectures : int, default 3
        Lectures a week.
    segments : int, default 15
        Segments of a lecture's video, one a minute.
    finish_share : float, default 0.5
        Share of viewers who watch to the end; the others stop anywhere.
    amplitude : float, default 0.8
        Height of the daily rhythm, from 0 (flat) to 1.
    rush_hours : float, default 10
        Mean time before the deadline at which an assignment is opened.

    The columns are ``op`` (get, put), ``kind`` (page, video, assignment, submission) and ``tenant``, the course.
    """

    name = "course_platform"

    requests: int = param(1_000_000, 1)
    weeks: int = param(12, 1, 520)
    courses: int = param(200, 1, 100_000)
    alpha: float = param(0.8, 0, 10)
    course_weeks: int = param(6, 1, 52)
    cohort_weeks: int = param(4, 1, 52)
    retention: float = param(0.85, 0.01, 1)
    lectures: int = param(3, 1, 100)
    segments: int = param(15, 1, 1000)
    finish_share: float = param(0.5, 0, 1)
    amplitude: float = param(0.8, 0, 1)
    rush_hours: float = param(10.0, 0)

    def check(self) -> None:
        if self.cohort_weeks > self.course_weeks:
            self.reject("cohort_weeks", f"must be at most course_weeks ({self.course_weeks}), or courses would pause")
        if self.courses * self.weeks * self.course_weeks > 50_000_000:
            self.reject("courses", "times weeks times course_weeks must be at most 50000000")

    def _generate(self, rng: np.random.Generator) -> Trace:
        course, week, unit = self._study(rng, -(-self.requests // (2 * self.lectures + 2)))
        watched = rng.integers(1, self.segments + 1, (course.size, self.lectures))
        watched[rng.random(watched.shape) < self.finish_share] = self.segments
        enough = int(np.searchsorted(np.cumsum(watched.sum(1) + self.lectures + 2), self.requests)) + 1
        course, week, unit, watched = course[:enough], week[:enough], unit[:enough], watched[:enough]

        n = course.size
        curve = day_curve(7, self.amplitude, peak_hour=19.0)
        sitting = np.sort(rhythm(rng, n * self.lectures, curve, WEEK).reshape(n, self.lectures), axis=1).ravel()
        student = np.repeat(np.arange(n), self.lectures)
        sitting += week[student] * WEEK
        place = course * self.course_weeks + unit  # one assignment for each
        lecture = (place[:, None] * self.lectures + np.arange(self.lectures)).ravel()

        events = Events(self._sizes(rng, n), ("get", "put"))
        events.add(student, sitting, "page", lecture, "get", tenant=course[student])
        run = watched.ravel()
        segment = rank_in_group(run)
        viewer = np.repeat(student, run)
        video = np.repeat(lecture, run) * self.segments + segment
        events.add(viewer, np.repeat(sitting, run) + 5 + 60.0 * segment, "video", video, "get", tenant=course[viewer])
        left = np.minimum(rng.exponential(self.rush_hours * 3600, n), WEEK - 1)
        opened = (week + 1) * WEEK - left
        students = np.arange(n)
        events.add(students, opened, "assignment", place, "get", tenant=course)
        events.add(students, opened + left * rng.random(n), "submission", students, "put", tenant=course)
        return events.trace(self.requests, {"tenant": tuple(f"course-{i + 1}" for i in range(self.courses))})

    def _study(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw ``n`` students' weeks: course, week of the trace, week of the course."""
        popularity = zipf_weights(self.courses, self.alpha)[spread_keys(rng, self.courses)]
        first = rng.integers(0, self.cohort_weeks, self.courses)
        week, unit = np.arange(self.weeks)[:, None], np.arange(self.course_weeks)
        taught = (week - unit - first[:, None, None]) % self.cohort_weeks == 0
        chance = popularity[:, None, None] * self.retention**unit * taught
        course, week, unit = np.unravel_index(pick(rng, chance.ravel(), n), chance.shape)
        return course, week, unit

    def _sizes(self, rng: np.random.Generator, submissions: int) -> dict[str, np.ndarray]:
        units = self.courses * self.course_weeks
        return {
            "page": lognormal_sizes(rng, units * self.lectures, 30_000, 0.7),
            "video": lognormal_sizes(rng, units * self.lectures * self.segments, 2_500_000, 0.3),
            "assignment": lognormal_sizes(rng, units, 60_000, 0.8),
            "submission": lognormal_sizes(rng, submissions, 200_000, 1.2),
        }
